"""The learned critic: a Gaussian process over whole plans chooses among small changes of the best plans seen.

State: the four best plans, as their groups' relative reconstruction errors. Action: a residual change of one of them,
the budget repaired exactly. Policy: of 64 sampled actions the one with the highest mean + beta x deviation. Critic: a
Gaussian process fitted to every plan tried (one step, no discount), its kernel chosen by marginal likelihood.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from amc_mobile.search.budget import CostLimit, Floats, Widths
from amc_mobile.search.policy import Knowledge, SearchingPolicy, moved

PARENTS = 4  # the best plans that actions start from
ACTIONS = 64  # sampled per episode
BETAS = (0.0, 0.5, 1.0, 2.0)  # taken in turn: from trusting the critic to exploring
KERNEL_EVERY = 10  # episodes after which the kernel is chosen again
LENGTHS, LINEAR_SHARES, NOISES = (1.0, 2.0, 4.0), (0.3, 1.0, 3.0), (0.003, 0.01, 0.03)
SMALLEST_LOSS = 1e-6


class CriticPolicy(SearchingPolicy):
    name = "critic"

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self._kernel: tuple[int, tuple[float, float, float]] | None = None  # for how many plans, and its parameters

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        children = self._actions(budget, rng)
        if not len(children):
            return budget.scale(rng.uniform(self.features.min_ratios, 1))
        plans = np.array(list(self.known), dtype=np.int64)
        seen = self._seen(budget, plans)
        inputs, mean, deviation = _standardised(seen)
        process = GaussianProcess(inputs, _target(self.known.values()), self._parameters(seen))
        value, spread = process.predict((self._seen(budget, children) - mean) / deviation)
        return budget.fit(children[int(np.argmax(value + BETAS[self.episode % len(BETAS)] * spread))])

    def _actions(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        """Plans within the budget that have not been tried, (N, G)."""
        parents = self.best(PARENTS, budget)
        # The best plan most often: a parent's rank is the whole part of an exponential draw.
        ranks = np.minimum(rng.exponential(size=ACTIONS).astype(np.int64), len(parents) - 1)
        drawn = moved(budget, parents[ranks], rng)
        unseen = {tuple(plan.tolist()): None for plan in drawn if tuple(plan.tolist()) not in self.known}
        return np.array(list(unseen), dtype=np.int64).reshape(-1, drawn.shape[1])

    def _seen(self, budget: CostLimit, plans: Widths) -> Floats:
        """(N, G): what the critic sees of plans: each group's error, or its keep ratio where errors are not known."""
        errors = self.knowledge.errors
        if errors is None:
            return plans / budget.full
        columns = [np.interp(plans[:, g], grid, errors[g]) for g, grid in enumerate(budget.grids)]
        return np.stack(columns, axis=1)

    def _parameters(self, seen: Floats) -> tuple[float, float, float]:
        """Of the kernel: l, c and noise; chosen at every tenth plan by those before it, so that a search that goes on
        in another process chooses the same."""
        count = len(seen) if len(seen) < KERNEL_EVERY else len(seen) // KERNEL_EVERY * KERNEL_EVERY
        if self._kernel is None or self._kernel[0] != count:
            first = dict(zip(reversed(self.tried), reversed(self.rewards), strict=True))  # each plan's first reward
            inputs, _, _ = _standardised(seen[:count])
            target = _target([first[plan] for plan in list(self.known)[:count]])
            grid = itertools.product(LENGTHS, LINEAR_SHARES, NOISES)
            self._kernel = (count, max(grid, key=lambda p: GaussianProcess(inputs, target, p).log_likelihood))
        return self._kernel[1]


class GaussianProcess:
    """Exact regression with the kernel exp(-d^2 / (2 l^2 N)) + c x.x' / N and noise; targets are standardised."""

    def __init__(self, inputs: Floats, target: Floats, parameters: tuple[float, float, float]) -> None:
        """`inputs`: (plans, N) standardised; `parameters`: l, c and the noise's variance."""
        self._length, self._linear, noise = parameters
        self._inputs = torch.from_numpy(inputs)
        self._mean, self._deviation = float(target.mean()), float(target.std()) or 1.0
        wanted = torch.from_numpy((target - self._mean) / self._deviation)
        covariance = self._covariance(self._inputs, self._inputs)
        covariance.diagonal().add_(noise)
        self._factor = torch.linalg.cholesky(covariance)
        self._weights = torch.cholesky_solve(wanted[:, None], self._factor)[:, 0]
        self.log_likelihood = float(
            -0.5 * wanted @ self._weights
            - self._factor.diagonal().log().sum()
            - 0.5 * len(wanted) * math.log(2 * math.pi)
        )

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation, in the target's units, (n,) each."""
        points = torch.from_numpy(inputs)
        across = self._covariance(self._inputs, points)
        own = 1 + self._linear * points.square().mean(dim=1)
        explained = torch.linalg.solve_triangular(self._factor, across, upper=False).square().sum(dim=0)
        spread = (own - explained).clamp_min(0).sqrt()
        mean = across.T @ self._weights
        return (mean * self._deviation + self._mean).numpy(), (spread * self._deviation).numpy()

    def _covariance(self, a: Tensor, b: Tensor) -> Tensor:
        size = a.shape[1]
        inner = a @ b.T / size
        squares = a.square().mean(dim=1)[:, None] + b.square().mean(dim=1) - 2 * inner
        return torch.exp(-squares.clamp_min(0) / (2 * self._length**2)) + self._linear * inner


def _target(rewards: Iterable[float]) -> Floats:
    """What is regressed on: the reward's distance to 1 on a logarithmic scale."""
    return np.asarray(-np.log(np.maximum(1 - np.array(list(rewards)), SMALLEST_LOSS)))


def _standardised(columns: Floats) -> tuple[Floats, Floats, Floats]:
    """The columns, their means and deviations; a column that does not vary is left at zero."""
    mean, deviation = columns.mean(axis=0), columns.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    return (columns - mean) / deviation, mean, deviation
