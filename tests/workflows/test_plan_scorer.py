"""Scoring plans on digits: folded networks, whatever the way their batch norms are wired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc_mobile.models.evaluation import logits
from amc_mobile.pruning.gram import collect_gram
from amc_mobile.pruning.importance import channel_order
from amc_mobile.pruning.reconstruction import Reconstructor
from amc_mobile.search.reward import Outcome, fidelity
from amc_mobile.workflows import plan_scorer
from amc_mobile.workflows.network import load_network
from amc_mobile.workflows.plan_scorer import PlanScorer
from amc_mobile.workflows.workspace import Settings, Workspace

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


def scored(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, reward: str = "fidelity"
) -> tuple[PlanScorer, Reconstructor, list[int]]:
    """A scorer, and the number of batch norms in every network that it evaluates."""
    network = load_network(Workspace(folder / "space"), Settings(model=model, data="digits", input_size=32))
    data = network.split(calibration=60, reward=40, seed=0)
    gram = collect_gram(network.module, network.groups, data.calibration.normalised())
    order = channel_order(network.groups, network.module, gram, method="l1")
    reconstructor = Reconstructor(network.module, network.groups, gram, order)
    norms: list[int] = []

    def watched(net: nn.Module, *args: object, **options: object) -> torch.Tensor:
        norms.append(sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()))
        return logits(net, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(plan_scorer, "logits", watched)
    return PlanScorer(network, data, reconstructor, reward), reconstructor, norms


def test_a_residual_network_is_scored_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, reconstructor, norms = scored("resnet20", tmp_path, monkeypatch)
    sizes = reconstructor.sizes
    assert scorer(sizes).reward == pytest.approx(1)
    half = np.maximum(sizes // 2, 2)
    outcome = scorer(half)
    assert norms == [0, 0, 0]  # the original and the two plans
    unfolded = logits(reconstructor.build(half), scorer.images)
    assert outcome.fidelity == pytest.approx(fidelity(unfolded, scorer.reference), abs=0.02)  # bfloat16


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
    scorer, _, _ = scored(f"{file}:net", tmp_path, monkeypatch, reward=reward)
    scorer.unit = "ms"
    before = {"fidelity": 0.7, "top1": 0.6}.get(reward, -1.0)
    outcome = Outcome(before, top1=0.6, fidelity=0.7)
    assert scorer.measured_reward(outcome, 2.0) == pytest.approx(measured)
