"""What the searches find on a landscape whose best plan is none of the seeds, at equal evaluations."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.critic import CriticPolicy, GaussianProcess
from amc_mobile.search.policies import NetAdaptPolicy, make_policy
from amc_mobile.search.policy import moved
from tests.search import toy

EPISODES = 60
SEEDS = range(5)


@cache
def median_loss(name: str) -> float:
    """Of the best plan after EPISODES, over the seeds."""
    losses = []
    for seed in SEEDS:
        policy, budget = toy.policy(name, episodes=EPISODES, seed=seed), toy.budget()
        best = 1.0
        for _ in range(EPISODES):
            widths = policy.propose(budget)
            reward = toy.score(widths).reward
            policy.observe(widths, reward)
            best = min(best, 1 - reward)
        losses.append(best)
    return float(np.median(losses))


@pytest.mark.parametrize("name", ["critic", "evolution"])
def test_learning_beats_random_search_at_equal_evaluations(name: str) -> None:
    assert median_loss(name) < 0.97 * median_loss("random")


def test_the_critic_is_no_worse_than_evolution_at_equal_evaluations() -> None:
    assert median_loss("critic") <= median_loss("evolution")


def test_the_best_plans_are_those_within_the_budget_as_it_is_now() -> None:
    policy, wide = toy.policy("critic", episodes=30), toy.budget()
    assert isinstance(policy, CriticPolicy)
    for limit in (7.0, 5.0) * 15:
        widths = policy.propose(toy.budget(limit))
        policy.observe(widths, toy.score(widths).reward)
    rewards = [policy.known[tuple(plan)] for plan in policy.best(4, wide).tolist()]
    assert rewards == sorted(policy.known.values(), reverse=True)[:4]

    narrow = toy.budget(5.0)
    best = policy.best(4, narrow)
    assert len(best) == 4 and (narrow.cost(best) <= 5.0).all()
    within = [reward for plan, reward in policy.known.items() if narrow.allows(np.array(plan))]
    assert policy.known[tuple(best[0].tolist())] == max(within) < max(policy.known.values())

    assert policy.best(1, toy.budget(0.1)).tolist() == policy.best(1, wide).tolist()  # none is within: the best of all


def test_moves_spend_the_budget_and_change_few_groups() -> None:
    budget = toy.budget()
    parent = budget.uniform()
    children = moved(budget, np.repeat(parent[None], 200, axis=0), np.random.default_rng(0))
    assert (budget.cost(children) <= budget.limit).all()
    for group, grid in enumerate(budget.grids):
        assert np.isin(children[:, group], grid).all()
        raised = children.copy()
        raised[:, group] = grid[np.minimum(np.searchsorted(grid, children[:, group]) + 1, grid.size - 1)]
        grown = raised[:, group] > children[:, group]
        assert (budget.cost(raised)[grown] > budget.limit).all()  # nothing is left over
    assert len(np.unique(children, axis=0)) > 50
    assert not (children == parent).all(axis=1).all()


def test_moves_leave_groups_with_one_width_alone() -> None:
    whole = toy.CostLimit(toy.cost, 7.0, (toy.GRIDS[0][-1:], *toy.GRIDS[1:]), "ms")
    children = moved(whole, np.repeat(whole.uniform()[None], 50, axis=0), np.random.default_rng(1))
    assert (children[:, 0] == toy.FULL[0]).all()


def test_the_gaussian_process_goes_through_its_data_and_is_unsure_far_away() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 4))
    target = 5 + np.sin(inputs[:, 0]) + 0.5 * inputs[:, 1]
    process = GaussianProcess(inputs[:50], target[:50], (1.0, 0.3, 0.003))
    mean, spread = process.predict(inputs)
    assert np.abs(mean[:50] - target[:50]).max() < 0.1
    left = np.square(mean[50:] - target[50:]).mean()
    assert left < 0.3 * target[50:].var()
    assert process.predict(np.full((1, 4), 9.0))[1][0] > 3 * spread[:50].max()
    noisy = GaussianProcess(inputs[:50], rng.normal(size=50), (1.0, 0.3, 0.003))
    assert process.log_likelihood > noisy.log_likelihood


def test_netadapt_cuts_one_group_a_round_and_ends_at_the_budget() -> None:
    policy, budget = toy.policy("netadapt", episodes=64), toy.budget()
    assert isinstance(policy, NetAdaptPolicy)
    assert policy.rounds == 10
    plans = []
    for _ in range(64):
        widths = policy.propose(budget)
        policy.observe(widths, toy.score(widths).reward)
        plans.append(widths)
    last = plans[-7:-1]  # the candidates of the last round are judged as they are
    assert max(budget.cost_of(plan) for plan in last) > 0.93 * budget.limit
    uniform = toy.score(budget.uniform()).reward
    assert max(toy.score(plan).reward for plan in plans[4:]) > uniform


def test_dynamic_programming_asks_for_the_errors() -> None:
    policy = make_policy("dp", toy.facts(), toy.budget())
    with pytest.raises(InvalidConfig, match="reconstruction errors"):
        policy.propose(toy.budget())


def test_from_file_asks_for_a_plan() -> None:
    with pytest.raises(InvalidConfig, match="needs a plan"):
        make_policy("from-file", toy.facts(), toy.budget())


def test_the_critic_works_without_errors() -> None:
    policy, budget = make_policy("critic", toy.facts(), toy.budget(), seed=1), toy.budget()
    plans = set()
    for _ in range(12):
        widths = policy.propose(budget)
        policy.observe(widths, toy.score(widths).reward)
        plans.add(tuple(widths))
    assert len(plans) == 12
