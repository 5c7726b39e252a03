"""The final network of a search: refitted, unless that loses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from networks import build

from amc_mobile.data.images import ImageSet
from amc_mobile.data.sources import name_data
from amc_mobile.models.loading import name_module
from amc_mobile.models.task import logits
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.search.reward import fidelity
from amc_mobile.workflows.network import default_grids, load_network, may_have_seen
from amc_mobile.workflows.plans import ChannelPlans, Preparations
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


def test_the_final_network_is_refitted_unless_that_loses_fidelity(tmp_path: Path) -> None:
    """Refitting on images unlike those of the data set makes the network worse there."""
    (tmp_path / "net.py").write_text(NET)
    settings = Settings(model=f"{tmp_path / 'net.py'}:net", data="digits", input_size=32)
    network = load_network(Workspace(tmp_path / "space"), settings)
    data = network.split(calibration=200, reward=100, seed=0)
    known = Preparations().statistics(
        network, data, channel_choice="backward", seed=0, matrices=Matrices(), progress=silent
    )
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
