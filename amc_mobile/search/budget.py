"""The budget: which widths a cost limit still allows, exact on the grid of widths that can really be chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from amc_mobile.errors import InvalidInput, UnreachableBudget

Widths = npt.NDArray[np.int64]  # kept channels per channel group, (G,) or (N, G)
Floats = npt.NDArray[np.float64]
Cost = Callable[[Widths], Floats]  # (N, G) -> (N,)
Unit = Literal["ms", "macs", "parameters"]

PLANS_PER_BATCH = 32  # candidates costed at once while bisecting: two or three calls find the factor
SMALLEST_RATIO = 1e-6  # a ratio of zero would never leave the minimum, whatever the common factor
SHALLOWEST_RATIO = 0.4  # where the `shallow` and `deep` profiles start; scaled to the budget afterwards


@dataclass(frozen=True, eq=False)
class CostLimit:
    """A limit on `cost`, and the ascending widths each group may take (the last one: not pruned).

    `cost` is asked anew each time and nothing is kept of its answers, so it may change between calls (a
    calibration that is fitted again). It should grow with the widths; where it does not quite (measured
    latencies), plans stay under the limit all the same, but another step might still have fitted.
    """

    cost: Cost
    limit: float
    grids: tuple[Widths, ...]
    unit: Unit
    label: str = ""  # for messages, as the user put it
    parts: tuple[CostLimit, ...] = ()  # of one made by `joined`
    _padded: Widths = field(init=False, repr=False)  # (G, K): the grids, the last width repeated
    _tops: Widths = field(init=False, repr=False)  # (G,): index of the last width

    def __post_init__(self) -> None:
        grids = tuple(np.asarray(grid, dtype=np.int64) for grid in self.grids)
        for position, grid in enumerate(grids):
            if grid.ndim != 1 or not grid.size or grid[0] < 1 or np.any(np.diff(grid) <= 0):
                raise InvalidInput(f"the widths of channel group {position} must be ascending and positive: {grid}")
        if not grids:
            raise InvalidInput("no channel group can be pruned", next_step="see the kept groups and their reasons")
        if not self.limit > 0:
            raise InvalidInput(f"the budget must be above 0 {self.unit}, not {self.limit:g}")
        longest = max(grid.size for grid in grids)
        padded = np.stack([np.pad(grid, (0, longest - grid.size), mode="edge") for grid in grids])
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "_padded", padded)
        object.__setattr__(self, "_tops", np.array([grid.size - 1 for grid in grids], dtype=np.int64))

    def with_limit(self, limit: float) -> CostLimit:
        return replace(self, limit=limit)

    @property
    def full(self) -> Widths:
        return self._padded[:, -1].copy()

    def smallest(self) -> Widths:
        """Every group at its minimum."""
        return self._padded[:, 0].copy()

    def cost_of(self, widths: Widths) -> float:
        """The cost of one plan; what "over the limit" is judged by."""
        return float(self.cost(np.asarray(widths, dtype=np.int64)[None])[0])

    def allows(self, widths: Widths) -> bool:
        return self.cost_of(widths) <= self.limit

    def check(self) -> None:
        """Raises UnreachableBudget, with the smallest cost, when even the smallest plan is over the limit.

        Of several budgets it names the first that no plan can meet.
        """
        for budget in (*self.parts, self):
            smallest = budget.cost_of(self.smallest())
            if not smallest <= budget.limit:
                wanted = format_cost(budget.limit, budget.unit) + (f" ({budget.label})" if budget.label else "")
                raise UnreachableBudget(wanted, format_cost(smallest, budget.unit))

    def allowed(self, decided: Sequence[int]) -> Widths:
        """Widths the next group may take when the first `len(decided)` groups are fixed; never empty.

        Upper wall: with the groups still undecided at their minimum the plan fits. Lower wall: with those at
        full width it would not, so that no budget must be left over (AMC's Algorithm 1, both sides exact).
        """
        position = len(decided)
        grid = self.grids[position]
        plans = np.repeat(self.smallest()[None], grid.size, axis=0)
        plans[:, :position] = np.asarray(decided, dtype=np.int64)
        plans[:, position] = grid
        fits = self.cost(plans) <= self.limit
        if not fits.any():
            return grid[:1]  # a cost that is not monotone: `fit` corrects the finished plan
        plans[:, position + 1 :] = self.full[position + 1 :]
        uses_all = self.cost(plans) >= self.limit
        high = int(np.flatnonzero(fits)[-1])
        low = min(int(np.argmax(uses_all)), high) if uses_all.any() else high
        kept: Widths = grid[low : high + 1][fits[low : high + 1]]
        return kept

    def scale(self, ratios: npt.ArrayLike) -> Widths:
        """The largest plan within the limit whose keep ratios are one common factor times `ratios`, (G,).

        Ratios are cut off at each group's minimum and at 1, and widths rounded down to the grid; what is left
        of the budget then goes to single groups, in the order in which a growing factor would reach them.
        Raises UnreachableBudget.
        """
        self.check()
        wanted = np.maximum(np.nan_to_num(np.asarray(ratios, dtype=np.float64)), SMALLEST_RATIO) * self.full
        factors = self._padded[:, 1:] / wanted[:, None]  # (G, K-1): the factor at which each step is reached
        order = np.argsort(factors, axis=None, kind="stable")
        group, step = np.divmod(order, factors.shape[1])
        real = step < self._tops[group]
        group, step = group[real], step[real]  # every step of every group, in the order a growing factor takes them
        index = np.zeros_like(self._tops)
        open_groups = np.ones(index.size, dtype=bool)
        while open_groups.any():
            climbed = self._climb(index, group[open_groups[group] & (step >= index[group])])
            steps = climbed + np.eye(index.size, dtype=np.int64)  # one plan for each group raised once more
            fits = open_groups & (climbed < self._tops)
            fits[fits] = self.cost(self.widths_at(steps[fits])) <= self.limit if fits.any() else False
            if fits.any() and np.array_equal(climbed, index):
                # Costs rounded differently in another batch: take a step that is known to fit, to move on.
                climbed = steps[np.flatnonzero(fits)[0]]
            index, open_groups = climbed, fits
        return self._verified(index, factors)

    def fit(self, widths: npt.ArrayLike) -> Widths:
        """`widths` rounded down to the grid, or when that is over the limit the plan scaled to it."""
        wanted = np.asarray(widths, dtype=np.float64)
        index = np.array([max(np.searchsorted(g, w, "right") - 1, 0) for g, w in zip(self.grids, wanted, strict=True)])
        plan = self.widths_at(index)
        return plan if self.allows(plan) else self.scale(wanted / self.full)

    def uniform(self) -> Widths:
        """All groups at the same keep ratio."""
        return self.scale(np.ones(len(self.grids)))

    def shallow(self) -> Widths:
        """The shallow groups pruned most (a hand-made policy of the paper)."""
        return self.scale(np.linspace(SHALLOWEST_RATIO, 1, len(self.grids)))

    def deep(self) -> Widths:
        """The deep groups pruned most (a hand-made policy of the paper)."""
        return self.scale(np.linspace(1, SHALLOWEST_RATIO, len(self.grids)))

    def widths_at(self, index: Widths) -> Widths:
        """(..., G): the widths at these positions of the grids."""
        widths: Widths = self._padded[np.arange(self._tops.size), index]
        return widths

    def index_of(self, widths: Widths) -> Widths:
        """(..., G): the positions of widths in the grids."""
        columns = [np.searchsorted(grid, widths[..., group]) for group, grid in enumerate(self.grids)]
        return np.stack(columns, axis=-1).astype(np.int64)

    @property
    def tops(self) -> Widths:
        """(G,): the positions of the last widths."""
        return self._tops.copy()

    def _climb(self, index: Widths, groups: npt.NDArray[np.int64]) -> Widths:
        """From `index`, which fits, takes the steps (the group of each, in order) as far as the plan still fits."""
        fits_at, over_at = 0, groups.size + 1  # in steps taken; the first fits, the second is over or past the end
        found = index
        while over_at - fits_at > 1:
            taken = np.unique(np.linspace(fits_at + 1, over_at - 1, PLANS_PER_BATCH).astype(np.int64))
            # The steps of each group between two neighbouring candidates, summed up along the candidates.
            between = np.searchsorted(taken, np.arange(fits_at + 1, taken[-1] + 1))
            cells = between * index.size + groups[fits_at : taken[-1]]
            counts = np.bincount(cells, minlength=taken.size * index.size).reshape(taken.size, index.size)
            candidates = found + np.cumsum(counts, axis=0)
            fitting = np.flatnonzero(self.cost(self.widths_at(candidates)) <= self.limit)
            if not fitting.size:
                over_at = int(taken[0])
                continue
            last = int(fitting[-1])
            fits_at, found = int(taken[last]), candidates[last]
            over_at = int(taken[last + 1]) if last + 1 < taken.size else over_at
        return found

    def _verified(self, index: Widths, factors: Floats) -> Widths:
        """Steps down, in the reverse order of `factors`, until `cost_of` itself says that the plan fits.

        Costed alone, a plan may differ from the same plan in a batch by the last bit.
        """
        index = index.copy()
        while not self.allows(plan := self.widths_at(index)):
            reached = np.where(index > 0, factors[np.arange(index.size), index - 1], -np.inf)
            if not np.isfinite(reached).any():
                self.check()
                return self.smallest()
            index[np.argmax(reached)] -= 1
        return plan


def joined(budgets: Sequence[CostLimit]) -> CostLimit:
    """One budget that a plan meets exactly when it meets them all; they must have the same grids.

    The cost is in the unit of the first: what a plan costs there, or more where another budget is nearer to its
    limit. Raises InvalidInput.
    """
    first, *others = budgets
    for other in others:
        if [list(grid) for grid in other.grids] != [list(grid) for grid in first.grids]:
            raise InvalidInput("budgets over different widths cannot be met together")

    def cost(widths: Widths) -> Floats:
        highest = np.asarray(first.cost(widths), dtype=np.float64)
        for other in others:
            costs = np.asarray(other.cost(widths), dtype=np.float64)
            highest = np.maximum(highest, rescaled(costs, other.limit, first.limit))
        return highest

    return replace(first, cost=cost, label="all budgets together", parts=tuple(budgets))


def rescaled(costs: Floats, limit: float, other_limit: float) -> Floats:
    """Costs held against `limit` as costs held against `other_limit`, over it exactly when they were."""
    scaled = costs / limit * other_limit
    # Rounding must not carry a cost across the limit, in either direction.
    above, below = np.maximum(scaled, np.nextafter(other_limit, np.inf)), np.minimum(scaled, other_limit)
    return np.where(costs > limit, above, below)


def format_cost(cost: float, unit: Unit) -> str:
    """`cost` with its unit, to be read: 12.3 ms, 284.9 M MACs, 2.41 M parameters."""
    if unit == "ms":
        return f"{cost:.4g} ms"
    return f"{cost / 1e6:.4g} M {'MACs' if unit == 'macs' else 'parameters'}"
