"""Evolution: the best plan so far, changed a little; the control that learning has to beat."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from amc_mobile.errors import MissingDependency
from amc_mobile.search.budget import CostLimit, Floats, Widths
from amc_mobile.search.policy import Knowledge, Policy, SearchingPolicy, moved

if TYPE_CHECKING:
    from collections.abc import Mapping

ATTEMPTS = 8  # moves drawn at once, for one that has not been tried
POPULATION = 12
FIRST_DEVIATION = 0.35  # of CMA-ES, in the logarithm of keep ratios


class EvolutionPolicy(SearchingPolicy):
    """One parent, one child: the child becomes the parent when it is at least as good."""

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
