"""Plans as networks on digits: scored folded, whatever the way their batch norms are wired, and refitted at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import build
from torch import nn

from amc_mobile.data.images import ImageSet
from amc_mobile.data.sources import name_data
from amc_mobile.data.split import DataSplit
from amc_mobile.export.converters import calibration_choice
from amc_mobile.models.loading import name_module
from amc_mobile.models.task import logits
from amc_mobile.pruning.fake_quantize import fake_quantized, find_rounding
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.search.budget import Unit
from amc_mobile.search.reward import Outcome, fidelity
from amc_mobile.workflows.network import Network, default_grids, load_network, may_have_seen
from amc_mobile.workflows.plans import ChannelPlans, PlanScorer, Preparations, Statistics
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.workspace import Settings, Workspace, silent

NET = """
from torch import nn


def net(num_classes=10):
    def unit(inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()

    return nn.Sequential(
        *unit(3, 16), *unit(16, 24), *unit(24, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes)
    )
"""

VIEWING = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.fc = nn.Linear(16 * 64, 10)

    def forward(self, x):
        x = self.conv2(self.norm(self.conv(x)).relu())
        return self.fc(x.view(x.shape[0], -1))

def net(num_classes=10, width_multiplier=1.0, input_size=32, in_channels=3):
    return Net()
"""


def statistics(network: Network, data: DataSplit, channel_choice: str) -> Statistics:
    return Preparations().statistics(
        network, data, channel_choice=channel_choice, seed=0, matrices=Matrices(), progress=silent
    )


def prepared(network: Network, data: DataSplit) -> ChannelPlans:
    return ChannelPlans(network, default_grids(network), statistics(network, data, "l1"))


def scored(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, reward: str = "fidelity", unit: Unit = "macs"
) -> tuple[PlanScorer, ChannelPlans, list[int]]:
    """A scorer, and the number of batch norms in every network that it evaluates."""
    network = load_network(Workspace(folder / "space"), Settings(model=model, data="digits", input_size=32))
    data = network.split(calibration=60, reward=40, seed=0)
    plans = prepared(network, data)
    norms: list[int] = []

    def watched(net: nn.Module, *args: object, **options: object) -> torch.Tensor:
        norms.append(sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()))
        return logits(net, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("amc_mobile.workflows.plans.logits", watched)
    return PlanScorer(network, data, plans, reward, unit=unit), plans, norms


def test_a_residual_network_is_scored_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, plans, norms = scored("resnet20", tmp_path, monkeypatch)
    sizes = plans.sizes
    assert scorer(sizes).reward == pytest.approx(1)
    half = np.maximum(sizes // 2, 2)
    outcome = scorer(half)
    assert norms == [0, 0, 0]  # the original and the two plans
    unfolded = logits(plans.build(half), scorer.images)
    assert outcome.fidelity == pytest.approx(fidelity(unfolded, scorer.reference), abs=0.02)  # bfloat16


def test_the_fidelity_looks_at_few_images_unless_told_or_accuracy_counts() -> None:
    asked = [
        SearchConfig(macs_ratio=0.5), SearchConfig(macs_ratio=0.5, reward_images=300),
        SearchConfig(macs_ratio=0.5, max_loss=0.01), SearchConfig(macs_ratio=0.5, reward="top1"),
    ]  # fmt: skip
    assert [wanted.scored_images for wanted in asked] == [128, None, None, None]


def test_few_images_hold_every_class_alike_and_score_like_all_of_them(tmp_path: Path) -> None:
    network = load_network(Workspace(tmp_path), Settings(model="resnet20", data="digits", input_size=32))
    data = network.split(calibration=60, reward=140, seed=0)
    plans = prepared(network, data)
    part, whole = (PlanScorer(network, data, plans, "fidelity", images=n, bf16=False) for n in (40, None))
    counts = torch.bincount(part.images.labels)
    assert len(part.images) == 40
    assert int(counts.max()) - int(counts.min()) <= 1
    assert len(whole.images) == 140
    half = np.maximum(plans.sizes // 2, 2)
    assert part(half).reward == pytest.approx(whole(half).reward, abs=0.1)
    assert part(plans.sizes).reward == pytest.approx(1)


def test_a_plan_is_scored_with_the_rounding_of_int8_files(tmp_path: Path) -> None:
    network = load_network(Workspace(tmp_path), Settings(model="resnet20", data="digits", input_size=32))
    data = network.split(calibration=60, reward=40, seed=0)
    plans = prepared(network, data)
    int8, float32 = (PlanScorer(network, data, plans, "fidelity", bf16=False, precision=p) for p in ("int8", "float32"))
    assert torch.equal(int8.reference, float32.reference)  # the network itself is not rounded
    assert float32(plans.sizes).reward == pytest.approx(1)
    assert 0.5 < int8(plans.sizes).reward < 0.9999
    half = np.maximum(plans.sizes // 2, 2)
    rounded = fake_quantized(plans.build(half), find_rounding(network.module, data.test.normalised(slice(0, 1))),
                             data.calibration.subset(calibration_choice(60)))  # fmt: skip
    assert int8(half).reward == fidelity(logits(rounded, int8.images, 32), int8.reference)
    assert int8.top1(network.module) == int8.original_top1


def test_a_network_that_views_its_maps_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.py"
    file.write_text(VIEWING)
    scorer, plans, norms = scored(f"{file}:net", tmp_path, monkeypatch)
    assert not scorer.folding.channels_last
    assert scorer(plans.sizes).reward == pytest.approx(1)
    assert norms == [0, 0]


@pytest.mark.parametrize(
    ("reward", "measured"),
    [("fidelity", 0.7), ("top1", 0.6), ("error-log-macs", -1.0), ("error-log-latency", -0.4 * np.log(2000))],
)
def test_only_rewards_that_hold_the_latency_change_when_it_is_measured(
    reward: str, measured: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.py"
    file.write_text(VIEWING)
    scorer, _, _ = scored(f"{file}:net", tmp_path, monkeypatch, reward=reward, unit="ms")
    before = {"fidelity": 0.7, "top1": 0.6}.get(reward, -1.0)
    outcome = Outcome(before, top1=0.6, fidelity=0.7)
    assert scorer.measured_reward(outcome, 2.0) == pytest.approx(measured)


def test_the_final_network_is_refitted_unless_that_loses_fidelity(tmp_path: Path) -> None:
    """Refitting on images unlike those of the data set makes the network worse there."""
    (tmp_path / "net.py").write_text(NET)
    settings = Settings(model=f"{tmp_path / 'net.py'}:net", data="digits", input_size=32)
    network = load_network(Workspace(tmp_path / "space"), settings)
    data = network.split(calibration=200, reward=100, seed=0)
    known = statistics(network, data, "backward")
    stripes = torch.arange(32) % 2 * torch.arange(200)[:, None, None, None]
    unlike = ImageSet(
        stripes.to(torch.uint8).expand(200, 3, 32, 32), data.calibration.labels, data.calibration.mean,
        data.calibration.std,
    )  # fmt: skip
    widths = np.full_like(network.groups.sizes, 8)
    finished = {}
    for name, calibration in (("like", data.calibration), ("unlike", unlike)):
        plans = ChannelPlans(network, default_grids(network), replace(known, calibration=calibration))
        finished[name] = plans.finished(widths, data, seed=0)
    wanted = logits(network.module, data.reward)
    scored = fidelity(logits(plans.build(widths), data.reward), wanted)
    for name, kept in (("like", "refitted"), ("unlike", "one-shot")):
        record = finished[name].refit
        scores = record.reward_fidelity
        assert record.kept == kept
        assert (record.images, scores["one-shot"]) == (200, scored)
        assert fidelity(logits(finished[name].network, data.reward), wanted) == max(scores.values()) == scores[kept]
    assert finished["like"].refit.text().startswith("refitted on 200 images: fidelity 0.")
    assert finished["unlike"].refit.text().startswith("kept as it was scored; refitted on 200 images it loses")


def test_a_network_may_be_python_objects(tmp_path: Path) -> None:
    module, images = build("Chain"), np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    space = Workspace(tmp_path / "space")
    settings = Settings(model=name_module(module, (1, 3, 16, 16)), data=name_data((images, np.arange(50) % 5)))
    network = load_network(space, settings)
    assert network.groups.names == ("stem", "wide", "last") and network.loaded.spec.startswith("Chain@")
    assert len(network.split(calibration=5, reward=5, seed=0).test) == 10
    assert may_have_seen(space, network, 5)
