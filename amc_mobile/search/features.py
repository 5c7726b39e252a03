"""The agent's observation: one definition, used by the env and by every agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc_mobile.errors import InvalidInput
from amc_mobile.search.budget import Budget, Floats, Widths

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "cost", "reduced", "rest", "previous_keep_ratio")


@dataclass(frozen=True)
class GroupFacts:
    """What the agent sees of a channel group: the shape of its first producer."""

    name: str
    out_channels: int
    in_channels: int
    height: int  # of the producer's output map; 1 for a Linear layer
    width: int
    stride: int
    kernel_size: int


class Features:
    """Builds observations, (11,) float32, each number in [0, 1], in the order of FEATURES (the paper's list).

    Shapes and `cost` are min-max scaled over the groups (1 where all groups are equal). Cost enters as
    `cost_shares`, (G,): how much of the prunable cost each group accounts for. `reduced` is the share already
    taken away by the decided groups, `rest` the share of the groups after this one. The shares are fixed once,
    so that an episode looks the same to the agent before and after the latency model is corrected.
    """

    def __init__(self, facts: Sequence[GroupFacts], smallest: Widths, full: Widths, cost_shares: Floats) -> None:
        if not len(facts) == len(smallest) == len(full) == len(cost_shares):
            raise InvalidInput(f"{len(facts)} group facts for {len(full)} channel groups")
        self.facts = tuple(facts)
        self.smallest = smallest
        self.full = full
        self.min_ratios: Floats = smallest / full
        self.cost_shares = np.asarray(cost_shares, dtype=np.float64)
        shapes = [
            (f.out_channels, f.in_channels, f.height, f.width, f.stride, f.kernel_size) for f in self.facts
        ]  # n, c, h, w, stride, k
        columns = np.column_stack([np.array(shapes, dtype=np.float64), self.cost_shares])
        self._static = np.apply_along_axis(_min_max, 0, columns)
        after = np.cumsum(self.cost_shares[::-1])[::-1]
        self._rest = np.append(after[1:], [0.0, 0.0])  # one more for the state after the last group

    @classmethod
    def of(cls, facts: Sequence[GroupFacts], budget: Budget) -> Features:
        """With the cost shares of the budget's cost as it is now."""
        return cls(facts, budget.smallest(), budget.full, cost_shares(budget))

    @property
    def groups(self) -> int:
        return len(self.facts)

    def observation(self, keep_ratios: Sequence[float] | Floats) -> npt.NDArray[np.float32]:
        """The state in which the group after the decided ones is chosen; after the last group, the terminal one."""
        decided = len(keep_ratios)
        ratios = np.asarray(keep_ratios, dtype=np.float64)
        prunable = np.maximum(1 - self.min_ratios[:decided], 1e-9)
        reduced = float(np.sum(self.cost_shares[:decided] * np.minimum((1 - ratios) / prunable, 1)))
        row = np.empty(len(FEATURES), dtype=np.float64)
        row[0] = decided / self.groups
        row[1:8] = self._static[min(decided, self.groups - 1)]
        row[8:] = reduced, self._rest[decided], ratios[-1] if decided else 1.0
        observation: npt.NDArray[np.float32] = np.clip(row, 0, 1).astype(np.float32)
        return observation

    def episode(self, widths: Widths) -> npt.NDArray[np.float32]:
        """All observations of the episode that chose `widths`, the terminal one included: (G + 1, 11)."""
        ratios = widths / self.full
        return np.stack([self.observation(ratios[:decided]) for decided in range(self.groups + 1)])


def cost_shares(budget: Budget) -> Floats:
    """What the cost falls by when one group alone goes to its minimum, normalised to sum 1: (G,)."""
    groups = len(budget.grids)
    plans = np.repeat(budget.full[None], groups + 1, axis=0)
    plans[np.arange(groups), np.arange(groups)] = budget.smallest()
    costs = budget.cost(plans)
    saved = np.maximum(costs[-1] - costs[:-1], 0)
    total = float(saved.sum())
    return saved / total if total > 0 else np.full(groups, 1 / groups)


def _min_max(column: Floats) -> Floats:
    low, high = column.min(), column.max()
    return (column - low) / (high - low) if high > low else np.ones_like(column)
