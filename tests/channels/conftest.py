"""Networks and their channel groups, found once for all tests (torch.export takes a second each)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from networks import build, example
from torch import Tensor, nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import ChannelGroups


@dataclass(frozen=True)
class Traced:
    model: nn.Module
    groups: ChannelGroups
    example: Tensor  # a batch of two


@cache
def _traced(name: str) -> Traced:
    torch.set_num_threads(1)
    model, images = build(name), example()
    return Traced(model, find_groups(model, images), images)


@pytest.fixture
def traced() -> Callable[[str], Traced]:
    """traced(name) of a network in PRUNABLE; tests must not change what it returns."""
    return _traced
