"""Channel ids: one number per channel, united where two channels must be cut together. 0 stands for fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
FIXED = 0


class ChannelIds:
    """Union-find over channel ids; the smallest id of a class is its root, so that FIXED stays FIXED."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def fresh(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def unite(self, a: Ids | int, b: Ids | int) -> None:
        """Unites pairwise; the arrays are broadcast against each other."""
        left, right = np.broadcast_arrays(np.asarray(a), np.asarray(b))
        if not left.size:
            return
        for one, other in np.unique(np.stack([left.ravel(), right.ravel()], 1), axis=0):
            first, second = self.root(int(one)), self.root(int(other))
            if first != second:
                self._parent[max(first, second)] = min(first, second)

    def roots(self) -> Ids:
        """The root of every id, shape (ids,)."""
        return np.array([self.root(channel) for channel in range(len(self._parent))], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DimensionIds:
    """Where the channels along one dimension come from.

    `group`: shape (n,), the index of the channel group, -1 for positions that stay; `position`: shape (n,), the
    channel's index inside its group.
    """

    group: Ids
    position: Ids

    def __len__(self) -> int:
        return len(self.group)

    @property
    def is_fixed(self) -> bool:
        return bool((self.group < 0).all())

    def surviving(self, kept: list[Ids]) -> Ids:
        """Positions that stay, ascending, when group g keeps the channels `kept[g]`."""
        stays = self.group < 0
        for index in np.unique(self.group[self.group >= 0]):
            inside = self.group == index
            stays[inside] = np.isin(self.position[inside], kept[index])
        return np.flatnonzero(stays).astype(np.int64)

    def count(self, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions stay at `widths`, shape (..., groups) -> (...); the same for every choice of channels."""
        constant, factors = self.expression(widths.shape[-1])
        return np.asarray(constant + widths @ factors, dtype=np.int64)

    def runs(self) -> list[list[int]]:
        """[group, first position, length] of each stretch of consecutive positions, for a JSON file."""
        if not len(self):
            return []
        fixed = self.group < 0
        steps = np.diff(self.position) == np.where(fixed[1:], 0, 1)
        starts = np.flatnonzero(np.r_[True, (np.diff(self.group) != 0) | ~steps])
        lengths = np.diff(np.r_[starts, len(self)])
        return [
            [int(self.group[start]), int(self.position[start]), int(length)]
            for start, length in zip(starts, lengths, strict=True)
        ]

    @classmethod
    def from_runs(cls, runs: Sequence[Sequence[int]]) -> DimensionIds:
        none = [np.empty(0, dtype=np.int64)]
        group = np.concatenate(none + [np.full(length, group, dtype=np.int64) for group, _, length in runs])
        position = np.concatenate(
            none
            + [np.arange(length) + first if group >= 0 else np.full(length, first) for group, first, length in runs]
        )
        return cls(group, position.astype(np.int64))

    def expression(self, groups: int) -> tuple[int, NDArray[np.int64]]:
        """(constant, factor per group): the count of surviving positions as a sum of group widths."""
        factors = np.zeros(groups, dtype=np.int64)
        for index in np.unique(self.group[self.group >= 0]):
            inside = self.position[self.group == index]
            factors[index] = len(inside) // (int(inside.max()) + 1)
        return int((self.group < 0).sum()), factors
