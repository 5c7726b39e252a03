from __future__ import annotations

import itertools

import numpy as np
import pytest

from amc_mobile.errors import InvalidInput, UnreachableBudget
from amc_mobile.search import policy
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.policy import best_additive_plan
from tests.search import toy


def problem(seed: int, *, interacting: bool) -> tuple[CostLimit, list[np.ndarray]]:
    """Five groups with grids of one to five widths and errors that fall unevenly."""
    rng = np.random.default_rng(seed)
    grids = [np.sort(rng.choice(np.arange(2, 30), size=rng.integers(1, 6), replace=False)) for _ in range(5)]
    errors = [np.sort(rng.exponential(size=grid.size))[::-1] for grid in grids]
    weights = rng.uniform(0.5, 3, 5)

    def cost(widths: np.ndarray) -> np.ndarray:
        total = widths @ weights
        return total + 0.05 * (widths[:, 1:] * widths[:, :-1]).sum(axis=1) if interacting else total

    ends = cost(np.array([[grid[0] for grid in grids], [grid[-1] for grid in grids]]))
    return CostLimit(cost, float(ends[0] + 0.45 * (ends[1] - ends[0]) + 1e-6), tuple(grids), "ms"), errors


def brute_force(budget: CostLimit, errors: list[np.ndarray]) -> float:
    """The smallest sum of errors of any plan within the budget."""
    plans = np.array(list(itertools.product(*[range(grid.size) for grid in budget.grids])))
    widths = np.stack([grid[plans[:, g]] for g, grid in enumerate(budget.grids)], axis=1)
    total = np.sum([error[plans[:, g]] for g, error in enumerate(errors)], axis=0)
    return float(total[budget.cost(widths) <= budget.limit].min())


def error_of(budget: CostLimit, errors: list[np.ndarray], plan: np.ndarray) -> float:
    return float(sum(e[grid.tolist().index(w)] for e, grid, w in zip(errors, budget.grids, plan, strict=True)))


@pytest.mark.parametrize("seed", range(12))
def test_with_additive_costs_the_plan_is_the_best_there_is(seed: int) -> None:
    budget, errors = problem(seed, interacting=False)
    plan = best_additive_plan(budget, errors)
    assert budget.allows(plan)
    assert error_of(budget, errors, plan) == pytest.approx(brute_force(budget, errors))


def test_with_costs_that_multiply_the_plan_is_within_the_budget_and_near_the_best() -> None:
    ratios = []
    for seed in range(12):
        budget, errors = problem(seed, interacting=True)
        plan = best_additive_plan(budget, errors)
        assert budget.allows(plan)
        ratios.append(error_of(budget, errors, plan) / brute_force(budget, errors))
    assert np.median(ratios) == pytest.approx(1)
    assert max(ratios) < 1.2


def test_thinning_the_states_keeps_the_plan_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MOST_STATES", 4)
    budget, errors = problem(3, interacting=False)
    assert budget.allows(best_additive_plan(budget, errors))


def test_errors_of_another_grid_are_refused() -> None:
    with pytest.raises(InvalidInput, match="error tables"):
        best_additive_plan(toy.budget(), [row[1:] for row in toy.ERRORS])


def test_a_budget_below_every_plan_is_refused() -> None:
    with pytest.raises(UnreachableBudget):
        best_additive_plan(toy.budget(0.1), toy.ERRORS)
