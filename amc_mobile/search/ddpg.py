"""The paper's agent, group after group, and its profile variant, which decides a whole plan and then scales it."""

from __future__ import annotations

import copy
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
DISCOUNT = 1.0  # an episode is one pass over the groups, so none
TAU = 0.01  # target networks move by tau towards the trained ones at each update
BATCH_SIZE = 64
REPLAY_EPISODES = 100  # older episodes are forgotten
NOISE = 0.5  # standard deviation of the first episode after the warm-up
BASELINE_DECAY = 0.5  # of the moving average, over updates, that is subtracted from rewards


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
    next_observation: Tensor
    continues: Tensor  # (N, 1): 1 where the episode goes on, 0 at its last step


class ReplayBuffer:
    """The transitions of the last episodes; every one of them, the first step included, can be drawn."""

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        self.observations: list[ArrayF32] = []  # per episode, (G + 1, features)
        self.actions: list[ArrayF32] = []  # per episode, (G,): the keep ratios that were EXECUTED
        self.rewards: list[float] = []  # per episode: the final reward stands on each of its transitions

    def add(self, observations: ArrayF32, executed: ArrayF32, reward: float) -> None:
        for stored, new in ((self.observations, observations), (self.actions, executed)):
            stored.append(new)
            del stored[: -self.episodes]
        self.rewards.append(reward)
        del self.rewards[: -self.episodes]

    def transitions(self, *, standardise: bool) -> Batch:
        """All of them, in order; rewards standardised over the buffer if wanted."""
        steps = self.actions[0].size
        rewards = np.array(self.rewards)
        if standardise:
            rewards = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        continues = np.ones((len(rewards), steps), dtype=np.float32)
        continues[:, -1] = 0
        return Batch(
            torch.from_numpy(np.concatenate([o[:-1] for o in self.observations])),
            torch.from_numpy(np.concatenate(self.actions)[:, None]),
            torch.from_numpy(np.repeat(rewards, steps).astype(np.float32)[:, None]),
            torch.from_numpy(np.concatenate([o[1:] for o in self.observations])),
            torch.from_numpy(continues.reshape(-1, 1)),
        )


class DdpgAgent:
    """Actor and critic, their targets and the moving baseline. Deterministic given `seed` and what it is given."""

    def __init__(self, features: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Actor(features)
            self.critic = Critic(features)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self._actor_optimiser = torch.optim.Adam(self.actor.parameters(), ACTOR_LEARNING_RATE, fused=True)
        self._critic_optimiser = torch.optim.Adam(self.critic.parameters(), CRITIC_LEARNING_RATE, fused=True)
        self._trained_actor = list(self.actor.parameters())
        self._trained_critic = list(self.critic.parameters())
        self._slow_actor = list(self.target_actor.parameters())
        self._slow_critic = list(self.target_critic.parameters())
        self._baseline: float | None = None

    def act(self, observation: ArrayF32, noise: float, rng: np.random.Generator) -> float:
        """The actor's keep ratio plus exploration: a normal of deviation `noise`, truncated to [0, 1]."""
        with torch.no_grad():
            mean = float(self.actor(torch.from_numpy(observation)[None]))
        return truncated_normal(mean, noise, rng)

    def learn(self, transitions: Batch, updates: int, rng: np.random.Generator) -> None:
        """Does `updates` updates, each on a batch drawn from `transitions`."""
        for _ in range(updates):
            drawn = torch.from_numpy(rng.integers(len(transitions.action), size=BATCH_SIZE))
            self.update(Batch(*(column[drawn] for column in transitions)))

    def update(self, batch: Batch) -> None:
        """One step of critic and actor: equations 7 and 8 of the paper, with its moving baseline."""
        mean = float(batch.reward.mean())
        previous = mean if self._baseline is None else self._baseline
        self._baseline = BASELINE_DECAY * previous + (1 - BASELINE_DECAY) * mean
        with torch.no_grad():
            next_value = self.target_critic(batch.next_observation, self.target_actor(batch.next_observation))
            target = batch.reward - self._baseline + DISCOUNT * batch.continues * next_value
        critic_loss = functional.mse_loss(self.critic(batch.observation, batch.action), target)
        _step(self._critic_optimiser, critic_loss, self._trained_critic)
        actor_loss = -self.critic(batch.observation, self.actor(batch.observation)).mean()
        _step(self._actor_optimiser, actor_loss, self._trained_actor)
        _follow(self._slow_actor, self._trained_actor, TAU)
        _follow(self._slow_critic, self._trained_critic, TAU)


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


@torch.no_grad()
def _follow(target: list[nn.Parameter], trained: list[nn.Parameter], tau: float) -> None:
    for slow, fast in zip(target, trained, strict=True):
        slow.lerp_(fast, tau)


def _start_small(layer: nn.Module) -> None:
    """Small last weights: the first actions are near 0.5 and the first values near 0 (Lillicrap et al., section 7)."""
    assert isinstance(layer, nn.Linear)
    nn.init.uniform_(layer.weight, -3e-3, 3e-3)
    nn.init.zeros_(layer.bias)


class DdpgPolicy(Policy):
    """`full_warmup_episodes`: random ones before the first update, at most a third of all. `noise_decay`: factor of the
    noise from one episode to the next. `standardises_rewards`: over the replay buffer, before the baseline."""

    full_warmup_episodes: int
    noise_decay: float
    standardises_rewards: bool

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
        return None if trained < 0 else NOISE * self.noise_decay**trained

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
            transitions = self.buffer.transitions(standardise=self.standardises_rewards)
            self.agent.learn(transitions, self.features.groups, rng)


class DdpgSequential(DdpgPolicy):
    """The paper's agent: group after group, each action clipped to what the budget allows at that moment."""

    name = "ddpg-sequential"
    full_warmup_episodes = 100
    noise_decay = 0.95
    standardises_rewards = False

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
    noise_decay = 0.98
    standardises_rewards = True

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
