"""The policies by name: agents, searches and the hand-made plans they are judged by."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amc_mobile.errors import InvalidConfig, MissingDependency
from amc_mobile.search.budget import CostLimit, Floats, Widths
from amc_mobile.search.critic import CriticPolicy
from amc_mobile.search.ddpg import DdpgProfile, DdpgSequential
from amc_mobile.search.policy import (
    POLICIES,
    Features,
    FixedPolicy,
    GroupFacts,
    Knowledge,
    Policy,
    SearchingPolicy,
    moved,
)

ATTEMPTS = 8  # moves drawn at once, for one that has not been tried
POPULATION = 12
FIRST_DEVIATION = 0.35  # of CMA-ES, in the logarithm of keep ratios


class NetAdaptPolicy(SearchingPolicy):
    """In each round every group alone is cut until the cost has fallen by one step; the best cut stays.

    The published method judges candidates that are still over the budget. Here each is judged at the budget, the
    candidate scaled down by one factor, so that every evaluation is of a plan that could be used. The steps are as
    many as the episodes allow; when the budget is reached, or no group can be cut further, it proposes the best plan.
    """

    name = "netadapt"

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self._scores: list[float] = []  # of the candidates, round after round, one for each group

    @property
    def rounds(self) -> int:
        return max(1, (self.knowledge.episodes - len(self.seeds)) // self.features.groups)

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        base = self._base(budget)
        finished, group = divmod(len(self._scores), self.features.groups)
        if finished >= self.rounds or budget.allows(base):
            return budget.fit(self.best(1, budget)[0])
        return budget.scale(_cut(budget, base, group, self._step(budget)) / budget.full)

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        super()._observe(widths, reward, rng)
        if self.episode >= len(self.seeds):
            self._scores.append(reward)

    def _step(self, budget: CostLimit) -> float:
        return max(budget.cost_of(budget.full) - budget.limit, 0.0) / self.rounds

    def _base(self, budget: CostLimit) -> Widths:
        """The plan after the finished rounds, under the cost as it is now."""
        plan, groups, step = budget.full, self.features.groups, self._step(budget)
        for first in range(0, min(len(self._scores) // groups, self.rounds) * groups, groups):
            if budget.allows(plan):
                break
            cuts = [_cut(budget, plan, group, step) for group in range(groups)]
            useful = [group for group in range(groups) if cuts[group][group] < plan[group]]
            if not useful:
                break
            plan = cuts[max(useful, key=lambda group: (self._scores[first + group], -group))]
        return plan


def _cut(budget: CostLimit, plan: Widths, group: int, step: float) -> Widths:
    """`plan` with one group at its largest width that saves `step`, or at its minimum."""
    grid = budget.grids[group]
    plans = np.repeat(plan[None], grid.size, axis=0)
    plans[:, group] = grid
    enough = np.flatnonzero((budget.cost(plans) <= budget.cost_of(plan) - step) & (grid < plan[group]))
    result: Widths = plans[enough[-1] if enough.size else 0]
    return result


class EvolutionPolicy(SearchingPolicy):
    """One parent, one child: the child becomes the parent when it is at least as good; the control of learning."""

    name = "evolution"

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self._parent: tuple[float, tuple[int, ...]] | None = None

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        super()._observe(widths, reward, rng)
        if self._parent is None or reward >= self._parent[0]:
            self._parent = (reward, self.tried[-1])

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        assert self._parent is not None  # the seeds come first
        parent = np.array(self._parent[1], dtype=np.int64)
        children = moved(budget, np.repeat(parent[None], ATTEMPTS, axis=0), rng)
        unseen = [child for child in children if tuple(child.tolist()) not in self.known]
        return budget.fit(unseen[0] if unseen else children[0])


class CmaPolicy(Policy):
    """CMA-ES (Hansen 2016) on the logarithm of keep ratios, scaled to the budget. Raises MissingDependency."""

    name = "cma"

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self._strategy = _strategy(knowledge)
        self._asked: list[Floats] = []
        self._rewards: list[float] = []

    def restore(self, document: Mapping[str, Any]) -> None:
        super().restore(document)
        self._strategy = _strategy(self.knowledge)

    def _point(self) -> Floats:
        if not self._asked:
            self._asked = list(self._strategy.ask())
        return self._asked[len(self._rewards)]

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        return budget.scale(np.exp(self._point()))

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        if self.episode < len(self.seeds):
            return
        self._point()
        self._rewards.append(reward)
        if len(self._rewards) == len(self._asked):
            self._strategy.tell(self._asked, [-value for value in self._rewards])
            self._asked, self._rewards = [], []


def _strategy(knowledge: Knowledge) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that matplotlib is missing
        try:
            import cma
        except ImportError as error:
            raise MissingDependency("cma", "") from error
    rng = np.random.default_rng([knowledge.seed, 2])
    options = {
        "popsize": POPULATION,
        "verbose": -9,
        "verb_log": 0,
        "seed": np.nan,  # numpy's global generator is left alone
        "randn": lambda *shape: rng.standard_normal(shape),
    }
    return cma.CMAEvolutionStrategy(np.zeros(knowledge.features.groups), FIRST_DEVIATION, options)


class UniformPolicy(FixedPolicy):
    """One keep ratio for all groups: what every search has to beat."""

    name = "uniform"


class ShallowPolicy(FixedPolicy):
    """The shallow groups pruned most (a hand-made policy of the paper)."""

    name = "shallow"


class DeepPolicy(FixedPolicy):
    """The deep groups pruned most (a hand-made policy of the paper)."""

    name = "deep"


class DynamicProgrammingPolicy(FixedPolicy):
    """The smallest sum of relative reconstruction errors; no evaluation decides anything."""

    name = "dp"


class GivenPolicy(FixedPolicy):
    """The plans it is given, each brought within the budget."""

    name = "from-file"

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        if not knowledge.given:
            raise InvalidConfig("the policy from-file needs a plan", next_step="name its file: from-file:PATH")
        self.episodes_per_round = len(knowledge.given)

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        given = self.knowledge.given
        return budget.fit(given[self.episode % len(given)])


class RandomPolicy(Policy):
    """Random keep ratios, scaled to the budget: the control at equal evaluations."""

    name = "random"

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        return budget.scale(rng.uniform(self.features.min_ratios, 1))


REGISTRY: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        DdpgProfile, DdpgSequential, CriticPolicy, EvolutionPolicy, CmaPolicy, NetAdaptPolicy, RandomPolicy,
        UniformPolicy, ShallowPolicy, DeepPolicy, DynamicProgrammingPolicy, GivenPolicy,
    )
}  # fmt: skip
SPREAD_OVER_EPISODES = (NetAdaptPolicy.name,)  # whose steps are laid out over all episodes: not to be extended


def make_policy(
    name: str,
    facts: Sequence[GroupFacts],
    budget: CostLimit,
    *,
    seed: int = 0,
    episodes: int = 300,
    errors: Sequence[Floats] | None = None,
    given: Sequence[Widths] = (),
) -> Policy:
    """The policy `name` for a search of `episodes` episodes.

    `errors` and `given`: as in Knowledge. Raises InvalidConfig for an unknown name.
    """
    if name not in REGISTRY:
        raise InvalidConfig(f"no search policy {name!r}", next_step=f"use one of: {', '.join(POLICIES)}")
    tables = None if errors is None else tuple(np.asarray(row, dtype=np.float64) for row in errors)
    known = Knowledge(Features.of(facts, budget), seed, episodes, tables, tuple(np.asarray(plan) for plan in given))
    return REGISTRY[name](known)
