import itertools
import json
from functools import cache

import numpy as np
import pytest

from amc_mobile.errors import InvalidConfig, InvalidInput, UnreachableBudget
from amc_mobile.search import policy as policy_module
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.critic import CriticPolicy, GaussianProcess
from amc_mobile.search.ddpg import DdpgProfile
from amc_mobile.search.policies import NetAdaptPolicy, make_policy
from amc_mobile.search.policy import POLICIES, best_additive_plan, moved
from tests.search import toy

FIXED = ("uniform", "shallow", "deep", "dp", "from-file")


def run(policy, episodes: int) -> list[list[int]]:
    return [plan.tolist() for plan in toy.play(policy, episodes)]


@pytest.mark.parametrize("name", POLICIES)
def test_every_plan_of_every_policy_is_within_the_budget(name):
    for plan in run(toy.policy(name, episodes=24), 24):
        assert toy.budget().allows(np.array(plan))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_deterministic_given_its_seed(name):
    first = run(toy.policy(name, episodes=24, seed=3), 24)
    assert first == run(toy.policy(name, episodes=24, seed=3), 24)
    if name not in FIXED and name != "netadapt":
        assert first != run(toy.policy(name, episodes=24, seed=4), 24)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in FIXED])
def test_a_search_starts_with_the_same_seeds_whatever_the_policy(name):
    policy, budget = toy.policy(name, episodes=24), toy.budget()
    assert policy.label == "uniform"
    plans = run(policy, 4)
    dynamic = best_additive_plan(budget, toy.ERRORS)
    assert plans == [plan.tolist() for plan in (budget.uniform(), budget.shallow(), budget.deep(), dynamic)]
    assert policy.label.startswith(name)


def test_given_plans_follow_the_hand_made_ones_and_are_brought_within_the_budget():
    budget, small = toy.budget(), np.full(6, 8)
    policy = make_policy("random", toy.facts(), budget, seed=0, episodes=10, given=[small, toy.FULL])
    plans = run(policy, 5)
    assert plans[3] == small.tolist()
    assert budget.allows(np.array(plans[4]))


@pytest.mark.parametrize("name", POLICIES)
def test_asking_twice_gives_the_same_proposal(name):
    policy = toy.policy(name, episodes=24)
    run(policy, 10)
    assert policy.propose(toy.budget()).tolist() == policy.propose(toy.budget()).tolist()


@pytest.mark.parametrize(("episodes", "warmup"), [(300, 60), (30, 10), (1, 0)])
def test_the_warm_up_is_at_most_a_third_of_the_episodes(episodes, warmup):
    policy = toy.policy("ddpg", episodes=episodes)
    assert isinstance(policy, DdpgProfile)
    assert policy.warmup_episodes == warmup


def test_learning_moves_the_actor_after_the_warm_up_only():
    policy = toy.policy("ddpg", episodes=15)
    assert isinstance(policy, DdpgProfile)
    before = policy.agent.actor.layers[0].weight.detach().clone()
    run(policy, 5)
    assert (policy.agent.actor.layers[0].weight == before).all()
    run(policy, 1)
    assert (policy.agent.actor.layers[0].weight != before).any()


@pytest.mark.parametrize("name", POLICIES)
def test_a_restored_policy_that_observes_the_same_goes_on_the_same(name):
    whole = toy.policy(name, episodes=24)
    document = json.loads(json.dumps(whole.state_document()))
    plans = run(whole, 24)
    # Made under another cost and for more episodes: restoring brings back the shares and the warm-up.
    scaled = toy.budget(14.0, cost=lambda widths: 2 * toy.cost(widths) + 0.1 * (widths[:, 0] > 16))
    resumed = toy.policy_for(scaled, name, episodes=60)
    resumed.restore(document)
    for plan in plans[:15]:
        resumed.observe(np.array(plan), toy.score(np.array(plan)).reward)
    assert run(resumed, 9) == plans[15:]


def test_a_policy_is_not_restored_from_another_seed():
    document = toy.policy("ddpg", episodes=24, seed=1).state_document()
    with pytest.raises(InvalidInput, match="seed 1, not 2"):
        toy.policy("ddpg", episodes=24, seed=2).restore(document)


def test_an_unknown_policy_is_refused_with_the_names_there_are():
    with pytest.raises(InvalidConfig) as caught:
        toy.policy("annealing", episodes=3)
    assert "ddpg-sequential" in caught.value.next_step


# On a landscape whose best plan is none of the seeds, at equal evaluations

EPISODES = 60
SEEDS = range(5)


@cache
def median_loss(name: str) -> float:
    """Of the best plan after EPISODES, over the seeds."""
    losses = []
    for seed in SEEDS:
        plans = toy.play(toy.policy(name, episodes=EPISODES, seed=seed), EPISODES)
        losses.append(1 - max(toy.score(plan).reward for plan in plans))
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
        toy.play(policy, 1, toy.budget(limit))
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
    plans = toy.play(policy, 64)
    last = plans[-7:-1]  # the candidates of the last round are judged as they are
    assert max(budget.cost_of(plan) for plan in last) > 0.93 * budget.limit
    uniform = toy.score(budget.uniform()).reward
    assert max(toy.score(plan).reward for plan in plans[4:]) > uniform


@pytest.mark.parametrize(("name", "why"), [("dp", "reconstruction errors"), ("from-file", "needs a plan")])
def test_a_policy_asks_for_what_it_needs(name: str, why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        make_policy(name, toy.facts(), toy.budget()).propose(toy.budget())


def test_the_critic_works_without_errors() -> None:
    plans = toy.play(make_policy("critic", toy.facts(), toy.budget(), seed=1), 12)
    assert len({tuple(plan) for plan in plans}) == 12


# Dynamic programming


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
    monkeypatch.setattr(policy_module, "MOST_STATES", 4)
    budget, errors = problem(3, interacting=False)
    assert budget.allows(best_additive_plan(budget, errors))


def test_errors_of_another_grid_are_refused() -> None:
    with pytest.raises(InvalidInput, match="error tables"):
        best_additive_plan(toy.budget(), [row[1:] for row in toy.ERRORS])


def test_a_budget_below_every_plan_is_refused() -> None:
    with pytest.raises(UnreachableBudget):
        best_additive_plan(toy.budget(0.1), toy.ERRORS)
