"""Scoring plans on digits: folded networks, whatever the way their batch norms are wired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc_mobile.data.split import DataSplit
from amc_mobile.models.task import logits
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.pruning.reconstruction import Reconstructor
from amc_mobile.search.budget import Unit
from amc_mobile.search.reward import Outcome, fidelity
from amc_mobile.workflows.network import Network, default_grids, load_network
from amc_mobile.workflows.plans import ChannelPlans, PlanScorer, Preparations
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.workspace import Settings, Workspace, silent

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


def prepared(network: Network, data: DataSplit) -> ChannelPlans:
    statistics = Preparations().statistics(
        network, data, channel_choice="l1", seed=0, matrices=Matrices(), progress=silent
    )
    return ChannelPlans(network, default_grids(network), statistics)


def scored(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, reward: str = "fidelity", unit: Unit = "macs"
) -> tuple[PlanScorer, Reconstructor, list[int]]:
    """A scorer, and the number of batch norms in every network that it evaluates."""
    network = load_network(Workspace(folder / "space"), Settings(model=model, data="digits", input_size=32))
    data = network.split(calibration=60, reward=40, seed=0)
    plans = prepared(network, data)
    norms: list[int] = []

    def watched(net: nn.Module, *args: object, **options: object) -> torch.Tensor:
        norms.append(sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()))
        return logits(net, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("amc_mobile.workflows.plans.logits", watched)
    return PlanScorer(network, data, plans, reward, unit=unit), plans.reconstructor, norms


def test_a_residual_network_is_scored_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, reconstructor, norms = scored("resnet20", tmp_path, monkeypatch)
    sizes = reconstructor.sizes
    assert scorer(sizes).reward == pytest.approx(1)
    half = np.maximum(sizes // 2, 2)
    outcome = scorer(half)
    assert norms == [0, 0, 0]  # the original and the two plans
    unfolded = logits(reconstructor.build(half), scorer.images)
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


def test_a_network_that_views_its_maps_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.py"
    file.write_text(VIEWING)
    scorer, reconstructor, norms = scored(f"{file}:net", tmp_path, monkeypatch)
    assert not scorer.folding.channels_last
    assert scorer(reconstructor.sizes).reward == pytest.approx(1)
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
