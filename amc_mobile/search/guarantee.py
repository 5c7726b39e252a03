"""Accuracy-guaranteed search: the cheapest plan that keeps the accuracy, and the end when nothing cheaper does.

Policies spend the budget that they are given, so the budget is what moves: each episode's limit is a share of what the
cheapest plan that kept the accuracy costs. The share starts low and nears 1 with each failure in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.episode_log import CHECK, EpisodeRow

FIRST_STEP = 0.3  # off the cheapest cost so far, for the episode after a success ...
STEP_DECAY = 0.8  # ... and its factor with each failure


@dataclass(frozen=True)
class AccuracyGuarantee:
    """`top1`: the share of reward images, in [0, 1], that a plan must get right. `patience`: failures in a row after
    which the search ends."""

    top1: float
    patience: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.top1 <= 1 or self.patience < 1:
            raise InvalidConfig("the accuracy to keep must be in [0, 1] and the patience at least 1")

    def keeps(self, row: EpisodeRow) -> bool:
        return row.top1 is not None and row.top1 >= self.top1

    def rank(self, row: EpisodeRow) -> tuple[float, ...]:
        """Plans that keep the accuracy before all others, the cheapest first; the others by reward."""
        if self.keeps(row):
            return (1.0, -(row.measured_ms if row.measured_ms is not None else row.predicted_cost))
        return (0.0, row.reward)

    def limit(self, rows: Sequence[EpisodeRow], full_cost: float) -> float:
        """For the next episode, in the budget's unit. `rows`: all so far; the original network keeps the accuracy."""
        cheapest, failures = self._standing(rows, full_cost)
        return cheapest * (1 - FIRST_STEP * STEP_DECAY**failures)

    def is_over(self, rows: Sequence[EpisodeRow], full_cost: float) -> bool:
        """Whether nothing cheaper has kept the accuracy for `patience` episodes."""
        return self._standing(rows, full_cost)[1] >= self.patience

    def _standing(self, rows: Sequence[EpisodeRow], full_cost: float) -> tuple[float, int]:
        """The cost of the cheapest plan that keeps the accuracy, and the failures since."""
        cheapest, failures = full_cost, 0
        for row in rows:
            if row.policy == CHECK:
                continue
            if self.keeps(row) and row.predicted_cost < cheapest:
                cheapest, failures = row.predicted_cost, 0
            else:
                failures += 1
        return cheapest, failures
