"""Searches for cheaper plans than the budget asks for: with a promise of accuracy, or a reward that holds the cost.

Policies spend the budget that they are given, so the budget is what moves from episode to episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.episode_log import CHECK, EpisodeRow

FIRST_STEP = 0.3  # off the cheapest cost so far, for the episode after a success ...
STEP_DECAY = 0.8  # ... and its factor with each failure
NEAR_BEST = 0.15  # deviation of a drawn limit from the best plan's cost, in its logarithm


@dataclass(frozen=True)
class AccuracyGuarantee:
    """The cheapest plan that keeps the accuracy, and the end when nothing cheaper does.

    Each episode's limit is a share of what the cheapest plan that kept the accuracy costs. The share starts low and
    nears 1 with each failure in a row. `top1`: the share of reward images, in [0, 1], that a plan must get right.
    `patience`: failures in a row, after a plan that kept the accuracy, with which the search ends.
    """

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
        """Whether a plan has kept the accuracy, and nothing cheaper for `patience` episodes."""
        kept = any(self.keeps(row) for row in rows)
        return kept and self._standing(rows, full_cost)[1] >= self.patience

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


@dataclass(frozen=True)
class DrawnLimits:
    """A limit for each episode: in turn anywhere below the budget, and near the best plan's cost.

    For rewards that hold the cost: what they prefer may be far below the budget.
    """

    seed: int

    def rank(self, row: EpisodeRow) -> tuple[float, ...]:
        """By reward; of equal ones, as of plans without a mistake, the cheaper first."""
        return (row.reward, -(row.measured_ms if row.measured_ms is not None else row.predicted_cost))

    def limit(self, rows: Sequence[EpisodeRow], smallest: float, largest: float) -> float:
        """For the next episode, in the budget's unit. `rows`: all so far; the rest: costs of plans."""
        tried = [row for row in rows if row.policy != CHECK]
        rng = np.random.default_rng([self.seed, len(tried), 3])
        if tried and len(tried) % 2:
            wanted = max(tried, key=self.rank).predicted_cost * np.exp(NEAR_BEST * rng.standard_normal())
        else:
            wanted = np.exp(rng.uniform(np.log(smallest), np.log(max(largest, smallest))))
        return float(np.clip(wanted, smallest, max(largest, smallest)))
