"""NetAdapt (Yang et al. 2018): greedy, one group at a time, by the table that the budget is counted in."""

from __future__ import annotations

import numpy as np

from amc_mobile.search.budget import Budget, Widths
from amc_mobile.search.policy import Knowledge, SearchingPolicy


class NetAdaptPolicy(SearchingPolicy):
    """In each round every group alone is cut until the cost has fallen by one step; the best cut stays.

    The published method judges candidates that are still over the budget. Here each is judged at the budget, the
    candidate scaled down by one factor, so that every evaluation is of a plan that could be used. The steps are as
    many as the episodes allow; when the budget is reached, or no group can be cut further, it proposes the best plan.
    """

    name = "netadapt"

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self._scores: list[float] = []  # of the candidates, round after round, one for each group

    @property
    def rounds(self) -> int:
        return max(1, (self.knowledge.episodes - len(self.seeds)) // self.features.groups)

    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths:
        base = self._base(budget)
        finished, group = divmod(len(self._scores), self.features.groups)
        if finished >= self.rounds or budget.allows(base):
            return budget.fit(self.best(1, budget)[0])
        return budget.scale(_cut(budget, base, group, self._step(budget)) / budget.full)

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        super()._observe(widths, reward, rng)
        if self.episode >= len(self.seeds):
            self._scores.append(reward)

    def _step(self, budget: Budget) -> float:
        return max(budget.cost_of(budget.full) - budget.limit, 0.0) / self.rounds

    def _base(self, budget: Budget) -> Widths:
        """The plan after the finished rounds, under the cost as it is now."""
        plan, groups, step = budget.full, self.features.groups, self._step(budget)
        for first in range(0, min(len(self._scores) // groups, self.rounds) * groups, groups):
            if budget.allows(plan):
                break
            cuts = [_cut(budget, plan, group, step) for group in range(groups)]
            useful = [group for group in range(groups) if cuts[group][group] < plan[group]]
            if not useful:
                break
            plan = cuts[max(useful, key=lambda group: (self._scores[first + group], -group))]
        return plan


def _cut(budget: Budget, plan: Widths, group: int, step: float) -> Widths:
    """`plan` with one group at its largest width that saves `step`, or at its minimum."""
    grid = budget.grids[group]
    plans = np.repeat(plan[None], grid.size, axis=0)
    plans[:, group] = grid
    enough = np.flatnonzero((budget.cost(plans) <= budget.cost_of(plan) - step) & (grid < plan[group]))
    result: Widths = plans[enough[-1] if enough.size else 0]
    return result
