import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amc_mobile.errors import UnreachableBudget
from amc_mobile.search.env import PruningEnv
from amc_mobile.search.features import FEATURES, Features
from tests.search import toy


def environment(limit: float = 7.0) -> PruningEnv:
    budget = toy.budget(limit)
    return PruningEnv(budget, Features.of(toy.facts(), budget), toy.score)


def test_the_env_keeps_gymnasiums_contract():
    env = environment()
    check_env(env, skip_render_check=True)  # nothing is rendered
    assert env.observation_space.shape == (11,)


def test_the_reward_comes_with_the_last_group_and_the_plan_is_within_the_budget():
    env = environment()
    env.reset(seed=0)
    for group in range(6):
        _, reward, terminated, truncated, info = env.step(np.array([0.9], dtype=np.float32))
        assert terminated == (group == 5)
        assert not truncated
        assert (reward != 0) == terminated
    assert toy.budget().allows(info["widths"])
    assert reward == toy.score(info["widths"]).reward


def test_the_observation_after_steps_is_the_one_the_features_give_for_the_executed_ratios():
    env = environment()
    first, _ = env.reset(seed=0)
    observations, ratios = [first], []
    for action in (0.1, 0.9, 0.5, 0.3, 0.7, 0.2):
        observation, _, _, _, info = env.step(np.array([action], dtype=np.float32))
        observations.append(observation)
        ratios.append(info["keep_ratio"])
    episode = Features.of(toy.facts(), toy.budget()).episode(info["widths"])
    assert np.array_equal(np.stack(observations), episode)
    assert ratios == list(info["widths"] / toy.FULL)


def test_reduced_and_rest_count_the_same_cost_from_both_sides():
    features = Features.of(toy.facts(), toy.budget())
    smallest = features.episode(toy.budget().smallest())
    reduced, rest = smallest[:, FEATURES.index("reduced")], smallest[:, FEATURES.index("rest")]
    assert reduced[0] == 0
    assert reduced[-1] == pytest.approx(1)
    assert reduced[:-1] + rest[:-1] + features.cost_shares == pytest.approx(np.ones(6), abs=1e-6)


def test_an_env_with_an_unreachable_budget_cannot_be_made():
    with pytest.raises(UnreachableBudget):
        environment(limit=1.2)
