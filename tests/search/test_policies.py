import json

import numpy as np
import pytest

from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.search.ddpg import DdpgProfile
from amc_mobile.search.policies import make_policy
from amc_mobile.search.policy import POLICIES, best_additive_plan
from tests.search import toy

FIXED = ("uniform", "shallow", "deep", "dp", "from-file")


def run(policy, episodes: int) -> list[list[int]]:
    plans = []
    for _ in range(episodes):
        widths = policy.propose(toy.budget())
        policy.observe(widths, toy.score(widths).reward)
        plans.append(widths.tolist())
    return plans


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


def test_the_noise_decays_from_one_half_after_the_warm_up():
    policy = toy.policy("ddpg", episodes=15)
    assert isinstance(policy, DdpgProfile)
    run(policy, 4)
    assert policy.noise is None
    run(policy, 1)
    assert policy.noise == 0.5
    run(policy, 1)
    assert policy.noise == pytest.approx(0.5 * 0.98)


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
