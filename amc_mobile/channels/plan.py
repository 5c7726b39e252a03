"""Pruning plans as plain data: how many channels, and which, stay in each channel group. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import InvalidInput

CHANNEL_CHOICES = (
    "backward",
    "omp",
    "lasso",
    "thinet",
    "taylor",
    "fpgm",
    "l1-rms",
    "l1",
)  # `channel_order` explains them


MOST_CHANNELS = 2**31  # files may hold any integer
MIN_CHANNELS = 2  # one input channel turns a convolution into a depthwise one in the exported graph


@dataclass(frozen=True)
class PruningPlan:
    """Kept channels per channel group, in the groups' order of first use.

    `channels`: the original widths; `kept_indices`: which original channels stay, sorted, where that is decided.
    Raises InvalidInput for names, counts or indices that do not fit together.
    """

    channels: Mapping[str, int]
    kept_channels: Mapping[str, int]
    kept_indices: Mapping[str, tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        if list(self.channels) != list(self.kept_channels):
            raise InvalidInput(f"a plan for {list(self.kept_channels)} does not fit groups {list(self.channels)}")
        for name, kept in self.kept_channels.items():
            if not min(MIN_CHANNELS, self.channels[name]) <= kept <= self.channels[name] < MOST_CHANNELS:
                raise InvalidInput(f"{name}: cannot keep {kept} of {self.channels[name]} channels")
        for name, indices in (self.kept_indices or {}).items():
            fits = 0 < len(indices) == self.kept_channels.get(name) and sorted(set(indices)) == list(indices)
            if not fits or not (indices[0] >= 0 and indices[-1] < self.channels[name]):
                raise InvalidInput(f"{name}: kept indices do not fit {self.kept_channels.get(name)} kept channels")

    @classmethod
    def full(cls, channels: Mapping[str, int]) -> PruningPlan:
        return cls(dict(channels), dict(channels))

    @classmethod
    def from_widths(cls, channels: Mapping[str, int], widths: Sequence[int] | NDArray[np.int64]) -> PruningPlan:
        return cls(dict(channels), {name: int(width) for name, width in zip(channels, widths, strict=True)})

    @property
    def widths(self) -> NDArray[np.int64]:
        """Shape (groups,): kept channels."""
        return np.array(list(self.kept_channels.values()), dtype=np.int64)

    @property
    def keep_ratios(self) -> dict[str, float]:
        """By group: the share of its channels that stays."""
        return {name: self.kept_channels[name] / channels for name, channels in self.channels.items()}

    def kept(self) -> dict[str, NDArray[np.int64]]:
        """The original channels that stay, per group; the first ones where they are not decided."""
        chosen = self.kept_indices or {}
        return {
            name: np.array(chosen.get(name, range(count)), dtype=np.int64) for name, count in self.kept_channels.items()
        }

    def keeping(self, group: str, keep_ratio: float, *, multiple: int = 8) -> PruningPlan:
        """A plan with one group changed: rounded up to `multiple`, never above the original."""
        kept = math.ceil(keep_ratio * self.channels[group] / multiple) * multiple
        kept = min(max(kept, multiple, MIN_CHANNELS), self.channels[group])
        return replace(self, kept_channels={**self.kept_channels, group: kept}, kept_indices=None)

    def with_order(self, order: Mapping[str, NDArray[np.int64]]) -> PruningPlan:
        """Decides the indices: the first ones of each group's `order` (most important first)."""
        indices = {
            name: tuple(sorted(int(i) for i in order[name][:count])) for name, count in self.kept_channels.items()
        }
        return replace(self, kept_indices=indices)


@dataclass(frozen=True)
class WeightPlan:
    """How many single weights stay in each layer; their shapes stay. Raises InvalidInput for counts that cannot be."""

    weights: Mapping[str, int]
    kept_weights: Mapping[str, int]

    def __post_init__(self) -> None:
        if list(self.weights) != list(self.kept_weights):
            raise InvalidInput("the plan does not name the same layers twice")
        if not all(1 <= kept <= self.weights[name] for name, kept in self.kept_weights.items()):
            raise InvalidInput("the plan keeps weights that the network does not have")

    @property
    def keep_ratios(self) -> dict[str, float]:
        """By layer: the share of its weights that stays."""
        return {name: self.kept_weights[name] / weights for name, weights in self.weights.items()}


LEAST_CHOICES = 4  # multiples that a group's width is chosen from


def multiple_for(channels: int, multiple: int) -> int:
    """What a group's widths are multiples of: `multiple`, halved while it leaves the group too few choices."""
    while multiple > 2 and channels // multiple < LEAST_CHOICES:
        multiple //= 2
    return multiple


def grid(channels: int, *, multiple: int = 8, min_keep_ratio: float = 0.2) -> NDArray[np.int64]:
    """The widths a search may choose for a group: multiples of `multiple` and the full width, ascending.

    Groups that `multiple` would leave fewer than four choices use half of it, down to 2: a CIFAR ResNet's 16 channels
    become 4, 8, 12, 16. Never below 2 channels.
    """
    multiple = multiple_for(channels, multiple)
    lowest = max(MIN_CHANNELS, math.ceil(min_keep_ratio * channels))
    widths = {w for w in range(multiple, channels + 1, multiple) if w >= lowest} | {channels}
    return np.array(sorted(widths), dtype=np.int64)
