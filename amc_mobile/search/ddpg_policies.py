"""The paper's agent, group after group, and its profile variant, which decides a whole plan and then scales it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from amc_mobile.errors import InvalidInput
from amc_mobile.search.budget import Budget, Floats, Widths
from amc_mobile.search.ddpg import DdpgAgent, DdpgConfig, ReplayBuffer
from amc_mobile.search.features import FEATURES
from amc_mobile.search.policy import Knowledge, Policy

PROFILE_CONFIG = DdpgConfig(warmup_episodes=60, noise_decay=0.98, standardise_rewards=True)
SEQUENTIAL_CONFIG = DdpgConfig()


class DdpgPolicy(Policy):
    def __init__(self, knowledge: Knowledge, config: DdpgConfig) -> None:
        super().__init__(knowledge)
        self.config = replace(config, warmup_episodes=min(config.warmup_episodes, knowledge.episodes // 3))
        self.agent = DdpgAgent(len(FEATURES), self.config, knowledge.seed)
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
                next_step="pass what it was begun with, or `amc-mobile search --run NAME`, or another --workspace",
            )
        self.config = config

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        executed = widths / self.features.full
        self.buffer.add(self.features.episode(widths), executed.astype(np.float32), reward)
        if self.noise is not None:
            self.agent.learn(self.buffer, self.features.groups, rng)


class DdpgSequential(DdpgPolicy):
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


class DdpgProfile(DdpgPolicy):
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
