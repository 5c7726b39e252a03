"""The detector prunes as classifiers do, and its heads stay whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import randomised
from torch import nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups, later_half, prove, random_kept
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.models.zoo.registry import MODELS

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def detector() -> tuple[nn.Module, ChannelGroups]:
    fresh = MODELS["ssdlite_mobilenet_v2"].factory(num_classes=3, width_multiplier=0.125, input_size=32)
    model = randomised(fresh)
    return model, find_groups(model, EXAMPLE[:1])


def test_only_the_outputs_of_the_heads_are_kept_and_for_that_reason(detector: tuple[nn.Module, ChannelGroups]) -> None:
    kept = {group.name: (group.channels, group.reason) for group in detector[1].kept_groups}
    heads = {("classification_heads", 4 * 4), ("regression_heads", 4 * 4)}
    expected = {f"{head}.{scale}.1": (outputs, "network output") for head, outputs in heads for scale in range(3)}
    assert kept == expected


def test_the_maps_that_the_heads_read_can_be_cut(detector: tuple[nn.Module, ChannelGroups]) -> None:
    readers = {group.name: group.consumers for group in detector[1].groups}
    assert {"classification_heads.0.1", "regression_heads.0.1"} < set(readers["backbone.14.conv.0.0"])
    assert {"extras.0.0.0", "classification_heads.1.1", "regression_heads.1.1"} == set(readers["backbone.18.0"])
    assert set(readers["extras.0.2.0"]) == {"classification_heads.2.1", "regression_heads.2.1"}


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_detector_equals_the_one_with_masked_consumers(
    seed: int, detector: tuple[nn.Module, ChannelGroups]
) -> None:
    model, groups = detector
    assert prove(model, groups, EXAMPLE, seed=seed) < 1e-5
    assert prove(model, groups, EXAMPLE, kept=later_half(groups)) < 1e-5


def test_a_pruned_detector_gives_as_many_anchors_and_keeps_its_task(
    detector: tuple[nn.Module, ChannelGroups],
) -> None:
    model, groups = detector
    pruned = surgery.apply(model, groups, random_kept(groups, np.random.default_rng(0)))
    with torch.no_grad():
        assert pruned(EXAMPLE).shape == model(EXAMPLE).shape
    assert pruned.task.num_classes(model(EXAMPLE[:1])) == 3  # type: ignore[union-attr, operator]
