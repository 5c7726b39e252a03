import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_mobile.errors import InvalidInput, UnreachableBudget
from amc_mobile.search.budget import CostLimit, format_cost, joined
from tests.search import toy


@st.composite
def problems(draw, *, bumpy: bool = False):
    """A budget over a random cost that grows with the widths (or nearly), and ratios to scale."""
    groups = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grids = [np.arange(8, 8 * rng.integers(1, 12) + 1, 8) for _ in range(groups)]
    full = np.array([grid[-1] for grid in grids])
    own, both = rng.uniform(0.1, 2, groups), rng.uniform(0, 2, (groups, groups))

    def cost(widths):
        ratios = widths / full
        smooth = ratios @ own + np.einsum("ni,ij,nj->n", ratios, both, ratios)
        return smooth * (1 + 0.05 * np.sin(widths.sum(axis=1))) if bumpy else smooth

    # Costed one by one, as the budget judges them: a batch may differ by the last bit.
    low, high = (float(cost(np.array([[grid[end] for grid in grids]]))[0]) for end in (0, -1))
    return CostLimit(cost, low + draw(st.floats(0, 1.1)) * max(high - low, 0.0), tuple(grids), "ms"), rng.uniform(
        0.0, 1, groups
    )


@given(problems())
@settings(max_examples=150, deadline=None)
def test_a_scaled_plan_is_on_the_grid_within_the_limit_and_no_group_can_take_another_step(problem):
    budget, ratios = problem
    plan = budget.scale(ratios)
    assert budget.cost_of(plan) <= budget.limit
    for group, grid in enumerate(budget.grids):
        assert plan[group] in grid
        if plan[group] < grid[-1]:
            more = plan.copy()
            more[group] = grid[np.searchsorted(grid, plan[group]) + 1]
            assert budget.cost_of(more) > budget.limit * (1 - 1e-12)


@given(problems(bumpy=True))
@settings(max_examples=150, deadline=None)
def test_a_scaled_plan_is_never_over_the_limit_when_the_cost_is_not_monotone(problem):
    budget, ratios = problem
    assert budget.cost_of(budget.scale(ratios)) <= budget.limit
    assert budget.cost_of(budget.fit(budget.full)) <= budget.limit


@given(problems())
@settings(max_examples=100, deadline=None)
def test_any_walk_between_the_bounds_ends_within_the_limit_and_leaves_no_step_unused(problem):
    budget, ratios = problem
    decided: list[int] = []
    for ratio in ratios:
        allowed = budget.allowed(decided)
        decided.append(int(allowed[int(ratio * (len(allowed) - 1))]))
    plan = budget.fit(decided)
    assert budget.cost_of(plan) <= budget.limit
    if budget.allows(np.array(decided)):
        assert plan.tolist() == decided
    else:  # by the last bit, see above
        assert budget.cost_of(np.array(decided)) == pytest.approx(budget.limit, rel=1e-12)
        return
    last = budget.grids[-1]
    if plan[-1] < last[-1]:
        plan[-1] = last[np.searchsorted(last, plan[-1]) + 1]
        assert budget.cost_of(plan) >= budget.limit * (1 - 1e-12)


def test_the_upper_wall_is_the_widest_step_that_leaves_room_for_the_smallest_rest():
    budget = toy.budget(5.0)
    for first in budget.grids[0]:
        plan = budget.smallest()
        plan[0] = first
        assert (first <= budget.allowed([])[-1]) == (budget.cost_of(plan) <= 5.0)


def test_the_lower_wall_forbids_widths_that_leave_budget_even_when_the_rest_is_full():
    budget = toy.budget(0.97 * toy.cost(toy.FULL[None])[0])
    low, high = budget.allowed([])[[0, -1]]
    plan = budget.full
    plan[0] = low
    assert low > budget.grids[0][0]
    assert budget.cost_of(plan) >= budget.limit
    plan[0] = low - 8
    assert budget.cost_of(plan) < budget.limit
    assert high == 32


def test_a_budget_that_allows_everything_prunes_nothing():
    budget = toy.budget(1000)
    assert budget.scale(np.full(6, 0.3)).tolist() == toy.FULL.tolist()
    assert budget.allowed([32]).tolist() == [32]


def test_an_unreachable_budget_names_the_smallest_reachable_cost():
    budget = toy.budget(1.5)
    smallest = budget.cost_of(budget.smallest())
    with pytest.raises(UnreachableBudget, match=rf"1\.5 ms.*{smallest:.4g} ms"):
        budget.check()
    with pytest.raises(UnreachableBudget):
        budget.uniform()


def test_the_budget_follows_a_cost_that_changes():
    factor = [1.0]
    budget = toy.budget(7.0, cost=lambda widths: factor[0] * toy.cost(widths))
    before = budget.uniform()
    factor[0] = 1.3
    assert not budget.allows(before)
    assert budget.allows(budget.uniform())


def test_shallow_prunes_the_first_groups_more_and_deep_the_last():
    budget = toy.budget(6.0)
    shallow, deep = budget.shallow() / toy.FULL, budget.deep() / toy.FULL
    assert shallow[:3].mean() < shallow[3:].mean()
    assert deep[:3].mean() > deep[3:].mean()


def test_fit_leaves_a_plan_that_fits_as_it_is_on_the_grid():
    assert toy.budget(7.0).fit([9, 16, 16, 16, 16, 16]).tolist() == [8, 16, 16, 16, 16, 16]


def test_fifty_groups_are_scaled_in_milliseconds():
    rng = np.random.default_rng(0)
    grids = [np.arange(8 * (full // 40 + 1), full + 1, 8) for full in rng.choice([64, 128, 256, 512, 1024], 50)]
    full = np.array([grid[-1] for grid in grids])
    own = rng.uniform(0.5, 2, 50)

    def cost(widths):
        ratios = widths / full
        return ratios @ own + (ratios[:, 1:] * ratios[:, :-1]).sum(axis=1)

    budget = CostLimit(cost, 0.5 * float(cost(full[None])[0]), tuple(grids), "ms")
    spent = []
    for _ in range(30):
        ratios = rng.uniform(0.2, 1, 50)
        started = time.perf_counter()
        plan = budget.scale(ratios)
        spent.append(time.perf_counter() - started)
        assert 0.998 * budget.limit < budget.cost_of(plan) <= budget.limit
    assert min(spent) < 0.01  # about 1 ms; the bound only catches a loop over single plans


@pytest.mark.parametrize("grid", [[16, 8], [0, 8], [8, 8], []])
def test_a_grid_that_is_not_ascending_and_positive_is_refused(grid):
    with pytest.raises(InvalidInput, match="ascending"):
        CostLimit(toy.cost, 1.0, (np.array(grid),), "ms")


def test_costs_are_written_with_their_unit():
    assert format_cost(12.345, "ms") == "12.35 ms"
    assert format_cost(284.9e6, "macs") == "284.9 M MACs"
    assert format_cost(2.41e6, "parameters") == "2.41 M parameters"


def other_budget(limit: float) -> CostLimit:
    """Counted in MACs, with other weights than the milliseconds of the toy."""
    return CostLimit(
        lambda widths: (widths / toy.FULL) @ np.array([1.0, 1, 1, 1, 1, 6]) * 1e6, limit, toy.GRIDS, "macs"
    )


@pytest.mark.parametrize(("ms", "macs"), [(7.0, 4e6), (4.0, 9e6), (6.0, 5e6)])
def test_a_joint_budget_allows_what_every_budget_allows(ms, macs):
    first, second = toy.budget(ms), other_budget(macs)
    both = joined([first, second])
    plans = np.stack([np.random.default_rng(0).choice(grid, 300) for grid in toy.GRIDS], axis=1)
    allowed = [both.allows(plan) for plan in plans]
    assert allowed == [first.allows(plan) and second.allows(plan) for plan in plans]
    assert 0 < sum(allowed) < 300
    assert both.unit == "ms"
    assert both.limit == ms
    assert both.cost_of(toy.FULL) >= first.cost_of(toy.FULL)
    uniform = both.uniform()
    assert first.allows(uniform)
    assert second.allows(uniform)


def test_a_joint_budget_of_one_is_that_budget():
    alone = joined([toy.budget(7.0)])
    assert alone.uniform().tolist() == toy.budget(7.0).uniform().tolist()


def test_budgets_over_other_widths_are_not_joined():
    other = CostLimit(toy.cost, 7.0, tuple(grid[1:] for grid in toy.GRIDS), "ms")
    with pytest.raises(InvalidInput, match="different widths"):
        joined([toy.budget(), other])


def test_a_joined_budget_that_cannot_be_met_names_the_one_that_binds():
    own = replace(toy.budget(7.0), label="latency-ms 7")
    slow = CostLimit(lambda widths: toy.cost(widths) * 3, 0.01, own.grids, "ms", "also slow:0.01")
    with pytest.raises(UnreachableBudget, match=r"0.01 ms \(also slow:0.01\)"):
        joined([own, slow]).check()
    tight = joined([own, slow.with_limit(30.0)]).with_limit(0.01)  # tightened by a search
    with pytest.raises(UnreachableBudget, match="all budgets together"):
        tight.check()


@pytest.mark.parametrize("name", ["dp", "netadapt", "ddpg", "evolution", "critic", "random", "uniform"])
def test_every_policy_stays_within_two_budgets_of_different_shape(name):
    first = toy.budget(7.0)
    deep = CostLimit(lambda widths: widths[:, -1] * 1.0, float(first.grids[-1][1]), first.grids, "parameters")
    both = joined([first, deep])
    plans = toy.play(toy.policy_for(both, name, episodes=8), 8, both)
    assert all(first.allows(plan) and deep.allows(plan) for plan in plans)
