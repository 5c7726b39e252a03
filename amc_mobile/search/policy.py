"""What every policy has in common: the seeds it starts with, its state, and that it is deterministic.

A proposal depends on the seed, the episode's number, the plans and rewards observed, and the budget's cost at that
moment; nothing else. So a log of plans and rewards, observed again, is all it takes to continue a search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amc_mobile.errors import InvalidInput
from amc_mobile.search.budget import Budget, Floats, Widths
from amc_mobile.search.dynamic_programming import best_additive_plan
from amc_mobile.search.features import Features

POLICIES = (
    "ddpg", "ddpg-sequential", "critic", "evolution", "cma", "netadapt", "random", "uniform", "shallow", "deep", "dp",
    "from-file",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What a policy is told of the problem before its first episode.

    `errors`: per group, for each width of its grid, the relative reconstruction error when it alone is cut to that
    width; with them the plan that dynamic programming finds on their sum is among the seeds. `given`: widths to try
    after the seeds. `episodes`: how long the search will be.
    """

    features: Features
    seed: int = 0
    episodes: int = 300
    errors: tuple[Floats, ...] | None = None
    given: tuple[Widths, ...] = field(default=())

    def to_document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "episodes": self.episodes,
            "cost_shares": [float(share) for share in self.features.cost_shares],
            "errors": None if self.errors is None else [[float(e) for e in row] for row in self.errors],
            "given": [[int(width) for width in plan] for plan in self.given],
        }

    def restored(self, document: Mapping[str, Any]) -> Knowledge:
        """With what was known when the search started. Raises InvalidInput when that had another seed."""
        if document.get("seed") != self.seed:
            raise InvalidInput(
                f"the search was started with seed {document.get('seed')!r}, not {self.seed!r}",
                next_step="pass what it was begun with, or `amc-mobile search --run NAME`, or another --workspace",
            )
        old, errors = self.features, document["errors"]
        shares = np.array(document["cost_shares"], dtype=np.float64)
        return Knowledge(
            Features(old.facts, old.smallest, old.full, shares),
            self.seed,
            int(document["episodes"]),
            None if errors is None else tuple(np.array(row, dtype=np.float64) for row in errors),
            tuple(np.array(plan, dtype=np.int64) for plan in document["given"]),
        )


class Policy(ABC):
    """Proposes one plan per episode: first the seeds, which count as episodes and are the same for every policy."""

    name: str
    episodes_per_round: int | None = None  # a policy that has only so many plans to propose

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.episode = 0  # how many have been observed

    @property
    def features(self) -> Features:
        return self.knowledge.features

    @property
    def seeds(self) -> tuple[str, ...]:
        """Where the first plans come from, in their order."""
        dynamic = ("dp",) if self.knowledge.errors is not None else ()
        return ("uniform", "shallow", "deep", *dynamic, *("given" for _ in self.knowledge.given))

    @property
    def label(self) -> str:
        """Where the next proposal comes from."""
        return self.seeds[self.episode] if self.episode < len(self.seeds) else self.name

    def propose(self, budget: Budget) -> Widths:
        """The next plan, within the budget. Asking again before `observe` gives the same plan."""
        if self.episode < len(self.seeds):
            return self._seed_plan(budget, self.episode)
        return self._propose(budget, np.random.default_rng([self.knowledge.seed, self.episode, 0]))

    def observe(self, widths: Widths, reward: float) -> None:
        """Takes in the plan that was executed in this episode and its reward."""
        self._observe(np.asarray(widths), reward, np.random.default_rng([self.knowledge.seed, self.episode, 1]))
        self.episode += 1

    def state_document(self) -> dict[str, Any]:
        """What a new policy needs, besides the log, to become this one."""
        return {"policy": self.name, **self.knowledge.to_document()}

    def restore(self, document: Mapping[str, Any]) -> None:
        """Becomes the policy that `state_document` was taken from, before its first episode.

        Raises InvalidInput when that was another policy or seed.
        """
        if document.get("policy") != self.name:
            raise InvalidInput(
                f"the search was started with policy {document.get('policy')!r}, not {self.name!r}",
                next_step="pass what it was begun with, or `amc-mobile search --run NAME`, or another --workspace",
            )
        self.knowledge = self.knowledge.restored(document)

    def _seed_plan(self, budget: Budget, number: int) -> Widths:
        source = self.seeds[number]
        if source == "given":
            return budget.fit(self.knowledge.given[number - len(self.seeds)])
        if source == "dp":
            assert self.knowledge.errors is not None
            return best_additive_plan(budget, self.knowledge.errors)
        return {"uniform": budget.uniform, "shallow": budget.shallow, "deep": budget.deep}[source]()

    @abstractmethod
    def _propose(self, budget: Budget, rng: np.random.Generator) -> Widths: ...

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        """Learns from the episode; a policy that does not learn keeps this."""
        del widths, reward, rng


class FixedPolicy(Policy):
    """Proposes one plan, worked out anew under the budget as it is; the other seeds are left out."""

    episodes_per_round = 1

    @property
    def seeds(self) -> tuple[str, ...]:
        return ()


class SearchingPolicy(Policy):
    """Remembers what was tried: plans and rewards in order, and which plans are known."""

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self.tried: list[tuple[int, ...]] = []
        self.rewards: list[float] = []
        self.known: dict[tuple[int, ...], float] = {}  # the latest reward of each plan

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        plan = tuple(int(width) for width in widths)
        self.tried.append(plan)
        self.rewards.append(reward)
        self.known[plan] = reward

    def best(self, count: int, budget: Budget) -> Widths:
        """The best different plans that are within the budget as it is now, (up to `count`, G), best first.

        Where none is, the best of all; the earlier of two equal ones.
        """
        plans = np.array(sorted(self.known, key=lambda plan: -self.known[plan]), dtype=np.int64)
        within: Widths = plans[budget.cost(plans) <= budget.limit]
        return (within if len(within) else plans)[:count]
