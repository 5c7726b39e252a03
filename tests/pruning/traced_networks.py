"""Small networks with groups, Gram matrices and images, each worked out once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from networks import RESOLUTION, build
from torch import Tensor, nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.pruning.gram import GramStatistics, collect_gram


@dataclass(frozen=True)
class Subject:
    model: nn.Module
    groups: ChannelGroups
    images: Tensor
    gram: GramStatistics  # of every output position


def smooth_images(count: int, seed: int = 0) -> Tensor:
    """Neighbouring pixels are alike, as in photographs: then channels say something about each other."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.randn(count, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(seed + 1))
    return nn.functional.interpolate(coarse, RESOLUTION, mode="bilinear") + 0.1 * fine


@cache
def subject(name: str) -> Subject:
    """Of a network in PRUNABLE; tests must not change what it returns."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # biases keep what the layers draw for themselves
        model, images = build(name), smooth_images(60)
    groups = find_groups(model, images[:2])
    return Subject(model, groups, images, collect_gram(model, groups, images, positions=10**6))


def first_order(groups: ChannelGroups) -> dict[str, np.ndarray]:
    return {group.name: np.arange(group.channels) for group in groups.groups}


def halves(groups: ChannelGroups) -> np.ndarray:
    return np.maximum(2, groups.sizes // 2)
