"""The paper's agent, group after group, and its profile variant, which decides a whole plan and then scales it.

One thing differs from the paper's equation 8: the critic's target is the episode's reward itself, without the value of
the next state. There is one reward per episode and no discount, so that is what every state and action of the episode
led to. Bootstrapping adds it up over the groups that are still to come, and the critic's error with it: such an agent
learned on the 9 groups of ResNet-20 and ended below its untrained self on the 27 of ResNet-56 (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.search.budget import CostLimit, Floats, Widths
from amc_mobile.search.policy import FEATURES, Knowledge, Policy

ArrayF32 = npt.NDArray[np.float32]


# As in the paper and its code, where nothing else is said.
HIDDEN = 300  # two layers of this width, in actor and critic
ACTOR_LEARNING_RATE = 1e-4
CRITIC_LEARNING_RATE = 1e-3
BATCH_SIZE = 64
REPLAY_EPISODES = 100  # older episodes are forgotten
FIRST_NOISE = 0.5  # standard deviation of exploration in the first episode after the warm-up ...
LAST_NOISE = 0.02  # ... and, after equal factors from one to the next, in the last


class Actor(nn.Module):
    """Observation (N, features) -> keep ratio (N, 1) in (0, 1)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )
        _start_small(self.layers[-1])

    def forward(self, observation: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(observation))


class Critic(nn.Module):
    """Observation (N, features), keep ratio (N, 1) -> expected reward (N, 1)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.observation = nn.Linear(features, HIDDEN)
        self.action = nn.Linear(1, HIDDEN, bias=False)
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        _start_small(self.layers[-1])

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.layers(self.observation(observation) + self.action(action))
        return value


class Batch(NamedTuple):
    observation: Tensor  # (N, features)
    action: Tensor  # (N, 1)
    reward: Tensor  # (N, 1)


class ReplayBuffer:
    """The steps of the last episodes; every one of them, the first included, can be drawn."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        self.observations: list[ArrayF32] = []  # per episode, (G, features)
        self.actions: list[ArrayF32] = []  # per episode, (G,): the keep ratios that were EXECUTED
        self.rewards: list[float] = []  # per episode

    def add(self, observations: ArrayF32, executed: ArrayF32, reward: float) -> None:
        for stored, new in ((self.observations, observations), (self.actions, executed)):
            stored.append(new)
            del stored[: -self.episodes]
        self.rewards.append(reward)
        del self.rewards[: -self.episodes]

    def steps(self) -> Batch:
        """All of them, in order, each with its episode's reward, standardised over the buffer: the mean that is taken
        away is the paper's baseline."""
        rewards = np.array(self.rewards)
        rewards = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        return Batch(
            torch.from_numpy(np.concatenate(self.observations)),
            torch.from_numpy(np.concatenate(self.actions)[:, None]),
            torch.from_numpy(np.repeat(rewards, self.actions[0].size).astype(np.float32)[:, None]),
        )


class DdpgAgent:
    """Actor and critic. Deterministic given `seed` and what it is given."""

    def __init__(self, features: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Actor(features)
            self.critic = Critic(features)
        self._actor_optimiser = torch.optim.Adam(self.actor.parameters(), ACTOR_LEARNING_RATE, fused=True)
        self._critic_optimiser = torch.optim.Adam(self.critic.parameters(), CRITIC_LEARNING_RATE, fused=True)
        self._trained_actor = list(self.actor.parameters())
        self._trained_critic = list(self.critic.parameters())

    def act(self, observation: ArrayF32, noise: float, rng: np.random.Generator) -> float:
        """The actor's keep ratio plus exploration: a normal of deviation `noise`, truncated to [0, 1]."""
        with torch.no_grad():
            mean = float(self.actor(torch.from_numpy(observation)[None]))
        return truncated_normal(mean, noise, rng)

    def learn(self, steps: Batch, updates: int, rng: np.random.Generator) -> None:
        """Does `updates` updates, each on a batch drawn from `steps`."""
        for _ in range(updates):
            drawn = torch.from_numpy(rng.integers(len(steps.action), size=BATCH_SIZE))
            self.update(Batch(*(column[drawn] for column in steps)))

    def update(self, batch: Batch) -> None:
        """One step of the critic towards the rewards, and of the actor along the critic's gradient."""
        critic_loss = functional.mse_loss(self.critic(batch.observation, batch.action), batch.reward)
        _step(self._critic_optimiser, critic_loss, self._trained_critic)
        actor_loss = -self.critic(batch.observation, self.actor(batch.observation)).mean()
        _step(self._actor_optimiser, actor_loss, self._trained_actor)


def truncated_normal(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """One draw in [0, 1], by the inverse of the distribution function."""
    if deviation < 1e-6:
        return min(max(mean, 0.0), 1.0)
    low, high = ndtr((0 - mean) / deviation), ndtr((1 - mean) / deviation)
    drawn = mean + deviation * float(ndtri(rng.uniform(low, high)))
    return float(min(max(drawn, 0.0), 1.0))


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, trained: list[nn.Parameter]) -> None:
    optimiser.zero_grad()
    # `inputs`: the actor's loss passes through the critic, whose gradients nobody needs then.
    loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
    optimiser.step()


def _start_small(layer: nn.Module) -> None:
    """Small last weights: the first actions are near 0.5 and the first values near 0 (Lillicrap et al., section 7)."""
    assert isinstance(layer, nn.Linear)
    nn.init.uniform_(layer.weight, -3e-3, 3e-3)
    nn.init.zeros_(layer.bias)


class DdpgPolicy(Policy):
    """`full_warmup_episodes`: random ones before the first update, at most a third of all."""

    full_warmup_episodes: int

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self.warmup_episodes = min(self.full_warmup_episodes, knowledge.episodes // 3)
        self.agent = DdpgAgent(len(FEATURES), knowledge.seed)
        self.buffer = ReplayBuffer(REPLAY_EPISODES)

    @property
    def label(self) -> str:
        label = super().label
        return f"{label} warm-up" if label == self.name and self.noise is None else label

    @property
    def noise(self) -> float | None:
        """The exploration noise of the next episode; None while warming up."""
        trained = self.episode - self.warmup_episodes
        if trained < 0:
            return None
        last = max(self.knowledge.episodes - self.warmup_episodes - 1, 1)
        return float(FIRST_NOISE * (LAST_NOISE / FIRST_NOISE) ** min(trained / last, 1.0))

    def state_document(self) -> dict[str, Any]:
        return {**super().state_document(), "config": {"warmup_episodes": self.warmup_episodes}}

    def restore(self, document: Mapping[str, Any]) -> None:
        super().restore(document)
        # A search continued with more episodes keeps the warm-up it had.
        self.warmup_episodes = int(document["config"]["warmup_episodes"])

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        executed = widths / self.features.full
        self.buffer.add(self.features.episode(widths), executed.astype(np.float32), reward)
        if self.noise is not None:
            self.agent.learn(self.buffer.steps(), self.features.groups, rng)


class DdpgSequential(DdpgPolicy):
    """The paper's agent: group after group, each action clipped to what the budget allows at that moment."""

    name = "ddpg-sequential"
    full_warmup_episodes = 100

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        decided: list[int] = []
        for _ in range(self.features.groups):
            ratios = np.array(decided) / self.features.full[: len(decided)]
            noise = self.noise
            if noise is None:
                action = rng.uniform(0, 1)
            else:
                action = self.agent.act(self.features.observation(ratios), noise, rng)
            decided.append(choose(budget, decided, action))
        return budget.fit(decided)


class DdpgProfile(DdpgPolicy):
    """Proposes the ratios of the whole episode; one common factor then scales them to the exact budget.

    What it stores and learns from is the executed plan, so the factor is part of the environment.
    """

    name = "ddpg"
    full_warmup_episodes = 60

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        noise = self.noise
        if noise is None:
            return budget.scale(rng.uniform(self.features.min_ratios, 1))
        ratios: list[float] = []
        for lowest in self.features.min_ratios:
            action = self.agent.act(self.features.observation(ratios), noise, rng)
            ratios.append(max(action, float(lowest)))
        return budget.scale(ratios)


def choose(budget: CostLimit, decided: Sequence[int], keep_ratio: float) -> int:
    """The allowed width of the next group that is nearest to `keep_ratio`."""
    allowed: Floats = budget.allowed(decided).astype(np.float64)
    wanted = keep_ratio * float(budget.grids[len(decided)][-1])
    return int(allowed[np.argmin(np.abs(allowed - wanted))])
