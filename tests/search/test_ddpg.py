import numpy as np
import pytest
import torch

from amc_mobile.search import ddpg
from amc_mobile.search.ddpg import DdpgAgent, DdpgProfile, DdpgSequential, ReplayBuffer, truncated_normal
from tests.search import toy


def filled_buffer(episodes: int = 2) -> ReplayBuffer:
    buffer = ReplayBuffer(episodes=3)
    for episode in range(episodes):
        observations = np.arange(3 * 2, dtype=np.float32).reshape(3, 2) + 100 * episode
        buffer.add(observations, np.array([0.1, 0.2, 0.3], dtype=np.float32) + episode, reward=float(episode))
    return buffer


def test_every_step_the_first_included_carries_the_reward_of_its_episode_standardised():
    steps = filled_buffer(episodes=3).steps()
    assert steps.observation[[0, 3]].tolist() == [[0, 1], [100, 101]]
    rewards = steps.reward.flatten()
    assert rewards.tolist() == pytest.approx([-1.2247] * 3 + [0] * 3 + [1.2247] * 3, abs=1e-4)


def test_the_first_step_is_trained_on(monkeypatch):
    """A buffer of one-step episodes holds nothing else; the critic must come to value it."""
    buffer = ReplayBuffer(episodes=10)
    for episode in range(10):
        action = np.array([episode / 9], dtype=np.float32)
        buffer.add(np.zeros((1, 3), dtype=np.float32), action, reward=float(action[0]))
    monkeypatch.setattr(ddpg, "CRITIC_LEARNING_RATE", 3e-2)
    agent = DdpgAgent(3, seed=0)
    agent.learn(buffer.steps(), 80, np.random.default_rng(0))
    with torch.no_grad():
        low, high = agent.critic(torch.zeros(2, 3), torch.tensor([[0.0], [1.0]]))
    assert high - low > 0.5


def test_the_buffer_forgets_the_oldest_episodes():
    assert filled_buffer(episodes=5).steps().observation[:, 0].tolist() == [200, 202, 204, 300, 302, 304, 400, 402, 404]


@pytest.mark.parametrize("name", ["ddpg", "ddpg-sequential"])
def test_the_noise_falls_over_the_whole_search(name):
    policy = toy.policy(name, episodes=30)
    noises = []
    for _ in range(30):
        noises.append(policy.noise)
        toy.play(policy, 1)
    assert noises[:10] == [None] * 10
    assert noises[10] == ddpg.FIRST_NOISE
    assert noises[-1] == pytest.approx(ddpg.LAST_NOISE)
    assert policy.noise == ddpg.LAST_NOISE  # also of a search that is extended


@pytest.mark.parametrize("name", ["ddpg", "ddpg-sequential"])
def test_an_agent_that_learns_ends_above_itself_without_updates(name, monkeypatch):
    monkeypatch.setattr(ddpg, "HIDDEN", 300)  # the real size: small ones learn less
    monkeypatch.setattr(ddpg, "BATCH_SIZE", 64)

    def last_rewards() -> float:
        policy = toy.policy(name, episodes=300)
        plans = toy.play(policy, 300)
        return float(np.mean([toy.score(plan).reward for plan in plans[-20:]]))

    learned = last_rewards()
    monkeypatch.setattr(DdpgAgent, "learn", lambda *_: None)
    assert learned > last_rewards() + 0.03


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
