"""Small changes of a plan that spend the budget exactly: what evolution mutates by and the critic's actions are."""

from __future__ import annotations

import numpy as np

from amc_mobile.search.budget import Budget, Widths

MOST_GROUPS = 3  # that one move changes
REACH = 0.12  # of a group's width: the deviation of a change
FILL_PROBABILITY = 0.7  # that a group takes a step that fits; below 1 so that equal moves end in different plans


def moved(budget: Budget, parents: Widths, rng: np.random.Generator) -> Widths:
    """(N, G) plans -> as many, each within the budget: one to three groups move up or down, the rest makes room.

    A moved group changes by at least one step of its grid. Over the limit, groups drawn at random go down; then
    groups in random order take the steps that still fit.
    """
    parents = np.asarray(parents, dtype=np.int64)
    count, groups = parents.shape
    tops = np.array([grid.size - 1 for grid in budget.grids])
    index = np.stack([np.searchsorted(grid, parents[:, g]) for g, grid in enumerate(budget.grids)], axis=1)
    open_groups = np.flatnonzero(tops)
    held = np.zeros((count, groups), dtype=np.int64)
    for row in range(count):
        for group in _drawn(open_groups, rng):
            grid = budget.grids[group]
            change = max(1.0, abs(rng.normal()) * REACH * grid[-1]) * rng.choice([-1, 1])
            place = int(np.abs(grid - (parents[row, group] + change)).argmin())
            if place == index[row, group]:  # the grid is coarser than the change
                place += 1 if change > 0 else -1
            index[row, group] = min(max(place, 0), tops[group])
            held[row, group] = 1
    index = _lowered(budget, index, held, rng)
    return _widths(budget, _filled(budget, index, tops, rng))


def _drawn(groups: Widths, rng: np.random.Generator) -> Widths:
    drawn: Widths = rng.choice(groups, size=min(groups.size, int(rng.integers(1, MOST_GROUPS + 1))), replace=False)
    return drawn


def _lowered(budget: Budget, index: Widths, held: Widths, rng: np.random.Generator) -> Widths:
    """Steps down, one random group at a time, until every plan fits; moved groups only when nothing else is left."""
    while True:
        over = np.flatnonzero(budget.cost(_widths(budget, index)) > budget.limit)
        can = index[over] > 0
        over = over[can.any(axis=1)]
        if not over.size:
            return index
        can = index[over] > 0
        free = can & (held[over] == 0)
        can = np.where(free.any(axis=1)[:, None], free, can)
        index[over, np.where(can, rng.random(can.shape), -1).argmax(axis=1)] -= 1


def _filled(budget: Budget, index: Widths, tops: Widths, rng: np.random.Generator) -> Widths:
    """Takes steps up that fit, in a random order of groups; the last rounds take every one there is."""
    rows = np.arange(len(index))
    for probability in (FILL_PROBABILITY, 1.0):
        orders = rng.permuted(np.tile(np.arange(index.shape[1]), (len(index), 1)), axis=1)
        for group in orders.T:
            open_rows = rows[(index[rows, group] < tops[group]) & (rng.random(len(rows)) < probability)]
            while open_rows.size:
                raised = index[open_rows].copy()
                raised[np.arange(open_rows.size), group[open_rows]] += 1
                fits = budget.cost(_widths(budget, raised)) <= budget.limit
                index[open_rows[fits]] = raised[fits]
                open_rows = open_rows[fits]
                open_rows = open_rows[index[open_rows, group[open_rows]] < tops[group[open_rows]]]
                open_rows = open_rows[rng.random(open_rows.size) < probability]
    return index


def _widths(budget: Budget, index: Widths) -> Widths:
    return np.stack([grid[index[:, g]] for g, grid in enumerate(budget.grids)], axis=1)
