"""What a search knows of the plans it has tried, and so which one stands best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from amc_mobile.search.budget import Budget
from amc_mobile.search.episode_log import CHECK, EpisodeRow

Plan = tuple[int, ...]
Rank = Callable[[EpisodeRow], tuple[float, ...]]


@dataclass
class Standings:
    """Built by `take` from log lines alone, so that a search that goes on knows what it knew."""

    budget_limit: float
    search_limit: float = math.inf  # what plans are held to: the budget, or less after tightening
    episodes: int = 0
    tightenings: int = 0
    checks: int = 0  # since the last tightening
    overs: int = 0  # measurements over the budget in a row, since the last tightening
    plans: dict[Plan, EpisodeRow] = field(default_factory=dict)  # the latest line of each plan, best known
    rank: Rank = field(default=lambda row: (row.reward,), repr=False)  # what "best" means: the highest

    def __post_init__(self) -> None:
        self.search_limit = min(self.search_limit, self.budget_limit)

    def take(self, row: EpisodeRow) -> None:
        if row.limit < self.search_limit:
            self.tighten(row.limit)
        known = self.plans.get(row.widths)
        if row.ci_high_ms is not None and (known is None or known.ci_high_ms is None):
            self.overs = 0 if self._measured_within(row) else self.overs + 1
        if row.policy == CHECK:
            self.checks += 1
            self.plans[row.widths] = row
        else:
            self.episodes += 1
            if known is None or known.measured_ms is None:
                # A plan proposed again keeps the episode that found it.
                self.plans[row.widths] = row if known is None else replace(row, episode=known.episode)

    def tighten(self, limit: float) -> None:
        self.search_limit = limit
        self.tightenings += 1
        self.checks = 0
        self.overs = 0

    def tightened(self, budget: Budget) -> Budget:
        """`budget` at the limit that plans are held to now."""
        return budget.with_limit(self.search_limit)

    def best_measured(self) -> EpisodeRow | None:
        """The best among the plans measured within the budget."""
        return self._best([row for row in self.plans.values() if self._measured_within(row)])

    def best_predicted(self, budget: Budget) -> EpisodeRow | None:
        """The best among the plans whose cost, as it is now, is within the budget."""
        return self._best(self._predicted_within(list(self.plans.values()), budget))

    def best_standing(self, budget: Budget) -> EpisodeRow | None:
        """The best among plans measured within the budget, or not measured and predicted within it."""
        unmeasured = [row for row in self.plans.values() if row.ci_high_ms is None]
        measured = [row for row in self.plans.values() if self._measured_within(row)]
        return self._best(measured + self._predicted_within(unmeasured, budget))

    def better_over(self, best: EpisodeRow) -> list[EpisodeRow]:
        """The plans better than `best` that were measured over the budget, best first: why none of them was chosen."""
        over = [row for row in self.plans.values() if row.ci_high_ms is not None and not self._measured_within(row)]
        better = [row for row in over if self.rank(row) > self.rank(best)]
        return sorted(better, key=self.rank, reverse=True)

    def candidate(self, budget: Budget) -> EpisodeRow | None:
        """The best plan not measured yet that would beat the best measured one."""
        best = self.best_measured()
        better = [
            row
            for row in self.plans.values()
            if row.ci_high_ms is None and (best is None or self.rank(row) > self.rank(best))
        ]
        return self._best(self._predicted_within(better, budget))

    def fastest(self) -> EpisodeRow | None:
        """The plan with the lowest upper end of its measured confidence interval."""
        measured = [row for row in self.plans.values() if row.ci_high_ms is not None]
        return min(measured, key=lambda row: row.ci_high_ms or 0, default=None)

    def observed_ratio(self, budget: Budget) -> float:
        """How much the measured upper end exceeds the cost predicted now: the worst of the five fastest plans."""
        measured = [row for row in self.plans.values() if row.ci_high_ms is not None]
        fastest = sorted(measured, key=lambda row: row.ci_high_ms or 0)[:5]
        if not fastest:
            return 1.0
        predicted = budget.cost(np.array([row.widths for row in fastest], dtype=np.int64))
        return float(np.max(np.array([row.ci_high_ms for row in fastest]) / predicted))

    def _measured_within(self, row: EpisodeRow) -> bool:
        return row.ci_high_ms is not None and row.ci_high_ms <= self.budget_limit

    def _predicted_within(self, rows: list[EpisodeRow], budget: Budget) -> list[EpisodeRow]:
        if not rows:
            return []
        costs = budget.cost(np.array([row.widths for row in rows], dtype=np.int64))
        return [row for row, cost in zip(rows, costs, strict=True) if cost <= budget.limit]

    def _best(self, rows: list[EpisodeRow]) -> EpisodeRow | None:
        return max(rows, key=lambda row: (self.rank(row), -row.episode), default=None)
