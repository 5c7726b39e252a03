import numpy as np
import pytest
import torch

from amc_mobile.search import ddpg
from amc_mobile.search.ddpg import DdpgAgent, DdpgProfile, DdpgSequential, ReplayBuffer, truncated_normal
from tests.search import toy


def filled_buffer(episodes: int = 2) -> ReplayBuffer:
    buffer = ReplayBuffer(episodes=3)
    for episode in range(episodes):
        observations = np.arange(4 * 2, dtype=np.float32).reshape(4, 2) + 100 * episode
        buffer.add(observations, np.array([0.1, 0.2, 0.3], dtype=np.float32) + episode, reward=float(episode))
    return buffer


def test_every_transition_carries_the_final_reward_and_only_the_last_ends_the_episode():
    batch = filled_buffer().transitions(standardise=False)
    assert batch.reward.flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.continues.flatten().tolist() == [1, 1, 0, 1, 1, 0]


def test_the_first_step_of_every_episode_is_among_the_transitions():
    batch = filled_buffer().transitions(standardise=False)
    assert batch.observation[0].tolist() == [0, 1]
    assert batch.observation[3].tolist() == [100, 101]
    assert torch.equal(batch.next_observation[0], batch.observation[1])


def test_the_first_step_is_trained_on(monkeypatch):
    """A buffer of one-step episodes holds nothing else; the critic must come to value it."""
    buffer = ReplayBuffer(episodes=10)
    for episode in range(10):
        action = np.array([episode / 9], dtype=np.float32)
        buffer.add(np.zeros((2, 3), dtype=np.float32), action, reward=float(action[0]))
    monkeypatch.setattr(ddpg, "CRITIC_LEARNING_RATE", 3e-2)
    agent = DdpgAgent(3, seed=0)
    agent.learn(buffer.transitions(standardise=False), 80, np.random.default_rng(0))
    with torch.no_grad():
        low, high = agent.critic(torch.zeros(2, 3), torch.tensor([[0.0], [1.0]]))
    assert high - low > 0.5


def test_the_buffer_forgets_the_oldest_episodes():
    batch = filled_buffer(episodes=5).transitions(standardise=False)
    assert batch.reward.flatten().tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_rewards_are_standardised_over_the_buffer():
    rewards = filled_buffer(3).transitions(standardise=True).reward
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-6)
    assert float(rewards.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_the_baseline_moves_by_half_towards_each_batch_mean():
    agent = DdpgAgent(2, seed=0)
    batch = filled_buffer().transitions(standardise=False)
    agent.update(batch._replace(reward=torch.full_like(batch.reward, 2.0)))
    agent.update(batch._replace(reward=torch.full_like(batch.reward, 4.0)))
    assert agent._baseline == pytest.approx(3.0)


def test_targets_follow_the_trained_networks_by_tau(monkeypatch):
    monkeypatch.setattr(ddpg, "TAU", 0.25)
    agent = DdpgAgent(2, seed=0)
    before = [p.clone() for p in agent.target_actor.parameters()]
    agent.update(filled_buffer().transitions(standardise=False))
    for old, slow, fast in zip(before, agent.target_actor.parameters(), agent.actor.parameters(), strict=True):
        assert torch.allclose(slow, old + 0.25 * (fast - old), atol=1e-7)


def test_noise_is_truncated_to_the_unit_interval_and_centred_on_the_mean():
    rng = np.random.default_rng(0)
    drawn = np.array([truncated_normal(0.5, 0.5, rng) for _ in range(4000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    # Not clipped: no heap of draws at the ends.
    assert ((drawn == 0) | (drawn == 1)).sum() == 0
    assert truncated_normal(0.3, 0.0, rng) == 0.3


@pytest.mark.parametrize("name", ["ddpg", "ddpg-sequential"])
def test_the_executed_ratios_are_stored_not_the_proposed_ones(name):
    policy = toy.policy(name, episodes=30)
    assert isinstance(policy, DdpgProfile | DdpgSequential)
    plans = toy.play(policy, 20)
    assert np.array_equal(policy.buffer.actions, (np.array(plans) / toy.FULL).astype(np.float32))


def test_agents_with_the_same_seed_start_equal_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, third = (DdpgAgent(4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weights = [agent.actor.layers[0].weight for agent in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
