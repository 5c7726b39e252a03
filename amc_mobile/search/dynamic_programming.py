"""The plan with the smallest sum of per-group errors under a budget, without a single evaluation.

A budget's cost is not a sum over groups: neighbouring widths multiply. So costs are taken to be additive around a
plan, dynamic programming finds the best plan of that approximation, and the next round starts there; what is over the
true limit is scaled back, and single exchanges under the true cost finish the work. Where the cost is additive the
first round is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc_mobile.errors import InvalidInput
from amc_mobile.search.budget import Budget, Floats, Widths

ROUNDS = 4
MOST_STATES = 1000  # partial plans kept per group; with fewer there are, the result is exact
MOST_EXCHANGES = 200

Index = npt.NDArray[np.int64]


def best_additive_plan(budget: Budget, errors: Sequence[Floats]) -> Widths:
    """Widths (G,) within the budget. `errors`: per group, the error of each width of its grid.

    Raises UnreachableBudget; InvalidInput when the tables do not fit the grids.
    """
    if [len(row) for row in errors] != [len(grid) for grid in budget.grids]:
        raise InvalidInput("the error tables do not fit the widths that may be chosen")
    budget.check()
    tables = [np.asarray(row, dtype=np.float64) for row in errors]
    best: Index | None = None
    for start in (budget.uniform(), budget.shallow(), budget.deep()):
        index = _index_of(budget, start)
        for _ in range(ROUNDS):
            found = _round(budget, tables, index)
            if best is None or _error(tables, found) < _error(tables, best):
                best = found
            if np.array_equal(found, index):
                break
            index = found
    assert best is not None
    return _widths(budget, _exchanged(budget, tables, best))


def _round(budget: Budget, tables: Sequence[Floats], index: Index) -> Index:
    """The best plan when costs are additive around `index`, brought within the true budget."""
    base = budget.cost_of(_widths(budget, index))
    changes = []
    for group, grid in enumerate(budget.grids):
        plans = np.repeat(_widths(budget, index)[None], grid.size, axis=0)
        plans[:, group] = grid
        changes.append(budget.cost(plans) - base)
    chosen = _knapsack(changes, tables, budget.limit - base)
    if chosen is None:
        return index
    wanted = _widths(budget, chosen)
    # Full width everywhere else must not be needed to scale: ratios of the plan found are kept.
    return _index_of(budget, wanted if budget.allows(wanted) else budget.scale(wanted / budget.full))


def _knapsack(costs: Sequence[Floats], errors: Sequence[Floats], room: float) -> Index | None:
    """One entry per group with the smallest sum of errors and a sum of costs of at most `room`; None if none fits."""
    cheapest = np.array([row.min() for row in costs])
    after = np.append(np.cumsum(cheapest[::-1])[::-1][1:], 0.0)  # what the groups still to come cost at least
    spent, missed = np.zeros(1), np.zeros(1)
    history: list[tuple[Index, Index]] = []
    for group, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        total = (spent[:, None] + cost).ravel()
        loss = (missed[:, None] + error).ravel()
        kept = np.flatnonzero(total + after[group] <= room + 1e-9 * abs(room))
        if not kept.size:
            return None
        kept = kept[_undominated(total[kept], loss[kept])]
        spent, missed = total[kept], loss[kept]
        history.append((kept // len(cost), kept % len(cost)))
    state = int(missed.argmin())
    chosen = []
    for parents, entries in reversed(history):
        chosen.append(int(entries[state]))
        state = int(parents[state])
    return np.array(chosen[::-1], dtype=np.int64)


def _undominated(total: Floats, loss: Floats) -> Index:
    """Positions of states that no other beats in cost and error, thinned to MOST_STATES over the range of costs."""
    order = np.lexsort((loss, total))
    best = np.minimum.accumulate(loss[order])
    front: Index = order[np.append(True, best[1:] < best[:-1])]
    if len(front) > MOST_STATES:
        low, high = total[front[0]], total[front[-1]]
        bucket = ((total[front] - low) / (high - low) * (MOST_STATES - 1)).astype(np.int64)
        # Along the front errors fall: the last of a bucket is its best. The cheapest one must stay.
        last = np.append(bucket[1:] != bucket[:-1], True)
        last[0] = True
        front = front[last]
    return front


def _exchanged(budget: Budget, tables: Sequence[Floats], index: Index) -> Index:
    """Raises single groups, or raises one and lowers another, while the sum of errors falls within the budget."""
    groups = len(tables)
    tops = np.array([len(row) - 1 for row in tables])
    for _ in range(MOST_EXCHANGES):
        steps = [np.eye(groups, dtype=np.int64)[g] for g in range(groups)]
        moves = np.array(steps + [a - b for i, a in enumerate(steps) for j, b in enumerate(steps) if i != j])
        tried = index + moves
        tried = tried[((tried >= 0) & (tried <= tops)).all(axis=1)]
        gains = _errors(tables, index[None])[0] - _errors(tables, tried)
        better = np.flatnonzero(gains > 1e-12)
        better = better[np.argsort(-gains[better], kind="stable")]
        for part in np.array_split(better, max(1, -(-len(better) // 64))):
            fits = np.flatnonzero(budget.cost(_widths(budget, tried[part])) <= budget.limit) if len(part) else part
            if fits.size and budget.allows(_widths(budget, tried[part[fits[0]]])):
                index = tried[part[fits[0]]]
                break
        else:
            return index
    return index


def _widths(budget: Budget, index: Index) -> Widths:
    return np.stack([grid[index[..., g]] for g, grid in enumerate(budget.grids)], axis=-1)


def _index_of(budget: Budget, widths: Widths) -> Index:
    return np.array([np.searchsorted(grid, w) for grid, w in zip(budget.grids, widths, strict=True)], dtype=np.int64)


def _errors(tables: Sequence[Floats], index: Index) -> Floats:
    total: Floats = np.sum([row[index[:, g]] for g, row in enumerate(tables)], axis=0)
    return total


def _error(tables: Sequence[Floats], index: Index) -> float:
    return float(_errors(tables, index[None])[0])
