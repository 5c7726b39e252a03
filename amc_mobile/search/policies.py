"""What proposes plans: the paper's agent, its profile variant, and the controls they are judged by.

A policy is deterministic: its proposal depends on the seed, the episode's number, the plans and rewards it has
observed, and the budget's cost at that moment; nothing else. So a log of plans and rewards, observed again, is
all it takes to continue a search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.search.budget import Budget, Floats, Widths
from amc_mobile.search.ddpg import DdpgAgent, DdpgConfig, ReplayBuffer
from amc_mobile.search.features import FEATURES, Features, GroupFacts

PROFILE_CONFIG = DdpgConfig(warmup_episodes=60, noise_decay=0.98, standardise_rewards=True)
SEQUENTIAL_CONFIG = DdpgConfig()


class Policy(ABC):
    """Proposes one plan per episode. The first episodes are the hand-made plans, then `extra_plans`."""

    name: str
    episodes_per_round: int | None = None  # a policy that has only so many plans to propose

    def __init__(self, features: Features, *, seed: int, extra_plans: Sequence[Widths] = ()) -> None:
        self.features = features
        self.seed = seed
        self.extra_plans = tuple(extra_plans)
        self.episode = 0  # how many have been observed

    @property
    def label(self) -> str:
        """Where the next proposal comes from."""
        labels = ("uniform", "shallow", "deep", *("given" for _ in self.extra_plans))
        return labels[self.episode] if self.episode < len(labels) else self.name

    def propose(self, budget: Budget) -> Widths:
        """The next plan, within the budget. Asking again before `observe` gives the same plan."""
        if self.episode < 3:
            return (budget.uniform, budget.shallow, budget.deep)[self.episode]()
        if self.episode < 3 + len(self.extra_plans):
            return budget.fit(self.extra_plans[self.episode - 3])
        return self._propose(budget, np.random.default_rng([self.seed, self.episode, 0]))

    def observe(self, widths: Widths, reward: float) -> None:
        """Takes in the plan that was executed in this episode and its reward."""
        self._observe(np.asarray(widths), reward, np.random.default_rng([self.seed, self.episode, 1]))
        self.episode += 1

    def state_document(self) -> dict[str, Any]:
        """What a new policy needs, besides the log, to become this one."""
        return {
            "policy": self.name,
            "seed": self.seed,
            "cost_shares": [float(share) for share in self.features.cost_shares],
            "extra_plans": [[int(width) for width in plan] for plan in self.extra_plans],
        }

    def restore(self, document: Mapping[str, Any]) -> None:
        """Becomes the policy that `state_document` was taken from, before its first episode.

        Raises InvalidInput when that was another policy or seed.
        """
        for key, mine in (("policy", self.name), ("seed", self.seed)):
            if document.get(key) != mine:
                raise InvalidInput(
                    f"the search was started with {key} {document.get(key)!r}, not {mine!r}",
                    next_step="continue with the same settings, or start another run",
                )
        old = self.features
        shares = np.array(document["cost_shares"], dtype=np.float64)
        self.features = Features(old.facts, old.smallest, old.full, shares)
        self.extra_plans = tuple(np.array(plan, dtype=np.int64) for plan in document["extra_plans"])

    @abstractmethod
    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths: ...

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        """Learns from the episode; a policy that does not learn keeps this."""
        del widths, reward, rng


class UniformPolicy(Policy):
    """One keep ratio for all groups: what every search has to beat."""

    name = "uniform"
    episodes_per_round = 1
    label = "uniform"

    def propose(self, budget: Budget) -> Widths:
        return budget.uniform()

    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths:
        return budget.uniform()


class RandomPolicy(Policy):
    """Random keep ratios, scaled to the budget: the control at equal evaluations."""

    name = "random"

    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths:
        return budget.scale(rng.uniform(self.features.min_ratios, 1))


class _DdpgPolicy(Policy):
    def __init__(
        self,
        features: Features,
        config: DdpgConfig,
        *,
        seed: int,
        episodes: int,
        extra_plans: Sequence[Widths] = (),
    ) -> None:
        super().__init__(features, seed=seed, extra_plans=extra_plans)
        self.config = replace(config, warmup_episodes=min(config.warmup_episodes, episodes // 3))
        self.agent = DdpgAgent(len(FEATURES), self.config, seed)
        self.buffer = ReplayBuffer(self.config.replay_episodes)

    @property
    def label(self) -> str:
        label = super().label
        return f"{label} warm-up" if label == self.name and self.noise is None else label

    @property
    def noise(self) -> float | None:
        """The exploration noise of the next episode; None while warming up."""
        trained = self.episode - self.config.warmup_episodes
        return None if trained < 0 else self.config.noise * self.config.noise_decay**trained

    def state_document(self) -> dict[str, Any]:
        return {**super().state_document(), "config": asdict(self.config)}

    def restore(self, document: Mapping[str, Any]) -> None:
        super().restore(document)
        # A search continued with more episodes keeps the warm-up it had; the rest must be the same.
        config = replace(self.config, warmup_episodes=int(document["config"]["warmup_episodes"]))
        if asdict(config) != document["config"]:
            raise InvalidInput(
                f"the search was started with the agent's settings {document['config']}, not {asdict(config)}",
                next_step="continue with the same settings, or start another run",
            )
        self.config = config

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        executed = widths / self.features.full
        self.buffer.add(self.features.episode(widths), executed.astype(np.float32), reward)
        if self.noise is not None:
            self.agent.learn(self.buffer, self.features.groups, rng)


class DdpgSequential(_DdpgPolicy):
    """The paper's agent: group after group, each action clipped to what the budget allows at that moment."""

    name = "ddpg-sequential"

    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths:
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


class DdpgProfile(_DdpgPolicy):
    """Proposes the ratios of the whole episode; one common factor then scales them to the exact budget.

    What it stores and learns from is the executed plan, so the factor is part of the environment.
    """

    name = "ddpg"

    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths:
        noise = self.noise
        if noise is None:
            return budget.scale(rng.uniform(self.features.min_ratios, 1))
        ratios: list[float] = []
        for lowest in self.features.min_ratios:
            action = self.agent.act(self.features.observation(ratios), noise, rng)
            ratios.append(max(action, float(lowest)))
        return budget.scale(ratios)


def choose(budget: Budget, decided: Sequence[int], keep_ratio: float) -> int:
    """The allowed width of the next group that is nearest to `keep_ratio`."""
    allowed: Floats = budget.allowed(decided).astype(np.float64)
    wanted = keep_ratio * float(budget.grids[len(decided)][-1])
    return int(allowed[np.argmin(np.abs(allowed - wanted))])


POLICIES = ("ddpg", "ddpg-sequential", "random", "uniform")


def make_policy(
    name: str,
    facts: Sequence[GroupFacts],
    budget: Budget,
    *,
    seed: int = 0,
    episodes: int = 300,
    extra_plans: Sequence[Widths] = (),
    config: DdpgConfig | None = None,
) -> Policy:
    """The policy `name` for a search of `episodes` episodes.

    `extra_plans`: widths to try after the hand-made plans. `config`: for the agents, instead of PROFILE_CONFIG or
    SEQUENTIAL_CONFIG; its warm-up is cut to a third of the episodes. Raises InvalidConfig for an unknown name.
    """
    features = Features.of(facts, budget)
    if name == "ddpg":
        profile = config or PROFILE_CONFIG
        return DdpgProfile(features, profile, seed=seed, episodes=episodes, extra_plans=extra_plans)
    if name == "ddpg-sequential":
        sequential = config or SEQUENTIAL_CONFIG
        return DdpgSequential(features, sequential, seed=seed, episodes=episodes, extra_plans=extra_plans)
    if name == "random":
        return RandomPolicy(features, seed=seed, extra_plans=extra_plans)
    if name == "uniform":
        return UniformPolicy(features, seed=seed)
    raise InvalidConfig(f"no search policy {name!r}", next_step=f"use one of: {', '.join(POLICIES)}")
