"""Sums over kernel sites for many plans: look-ups in dense tables, a million plans a second on one core."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amc_mobile.latency.roofline import axis_values

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.expression import Expression
    from amc_mobile.kernels.onnx_layout import Border
    from amc_mobile.kernels.template import KernelSite

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Amount = Callable[[Floats], Floats]  # the values of a site's axes, (N, axes) -> (N,)

BLOCK = 4096  # plans at once: the working arrays stay in the processor's cache
SINGLE_PLANS = 16  # below this many, few large operations beat many small ones
MAX_CELLS = 300_000  # of one table


class Grid:
    """The widths that plans may have, per group ascending. Widths between two count as the next one above."""

    def __init__(self, widths: Sequence[Widths]) -> None:
        self.widths = tuple(np.asarray(grid, dtype=np.int64) for grid in widths)
        longest = max(int(grid[-1]) for grid in self.widths) + 1
        everything = np.arange(longest)
        found = [np.searchsorted(grid, everything).clip(0, len(grid) - 1) for grid in self.widths]
        self._positions = np.stack(found).astype(np.intp)  # (groups, longest)
        self._rows = np.arange(len(self.widths), dtype=np.intp)

    def positions(self, widths: Widths) -> Indices:
        """(N, groups) -> (groups, N): the position of each width in its grid."""
        columns = np.ascontiguousarray(widths.T)
        found = np.empty(columns.shape, dtype=np.intp)
        for group, column in enumerate(columns):
            np.take(self._positions[group], column, out=found[group], mode="clip")
        return found

    def position(self, widths: Widths) -> Indices:
        """As `positions`, for few plans."""
        found: Indices = self._positions[self._rows[:, None], widths.T.clip(0, self._positions.shape[1] - 1)]
        return found

    def snapped(self, widths: Widths) -> Widths:
        """(N, groups): every width raised to its grid, or lowered to the grid's end."""
        positions = self.position(widths)
        return np.stack([grid[row] for grid, row in zip(self.widths, positions, strict=True)], axis=1)


class _Axis:
    """An index made of several groups: (value of the axis - its lowest) / step."""

    def __init__(self, expression: Expression, grid: Grid) -> None:
        lowest = [int(widths[0]) for widths in grid.widths]
        steps = [int(factor * step) for group, factor in expression.terms for step in np.diff(grid.widths[group])]
        step = math.gcd(*steps) if steps else 1
        # Each group adds its own share, so that the index is a sum of look-ups.
        self.shares = [
            (group, (factor * (grid.widths[group] - lowest[group]) // step).astype(np.intp))
            for group, factor in expression.terms
        ]
        count = 1 + sum(int(share[-1]) for _, share in self.shares)
        self.values = expression.at(lowest) + step * np.arange(count)


class _Table(NamedTuple):
    """Cell `positions[first] * stride + positions[second]` of `cells`."""

    first: int
    second: int
    stride: int
    cells: Floats


class PlanSums:
    """The sum of one amount over all sites, for any plan on the grid.

    Sites of the same one or two groups share a table. Sites of more groups are tabled by their axes where they have at
    most two, else computed.
    """

    def __init__(self, grid: Grid, sites: Sequence[KernelSite | Border], amounts: Sequence[Amount]) -> None:
        self._grid = grid
        self._constant = 0.0
        self._axes: dict[Expression, _Axis] = {}
        self._computed: list[tuple[KernelSite | Border, Amount]] = []
        found: dict[tuple[int, ...], Floats] = {}
        for site, amount in zip(sites, amounts, strict=True):
            columns = self._columns(site)
            if columns is None:
                self._computed.append((site, amount))
                continue
            table = self._table(site, amount, columns)
            found[columns] = found[columns] + table if columns in found else table
        self._constant = float(found.pop((), np.zeros(())))
        self._tables = [
            _Table(
                columns[0], columns[-1], table.shape[1] if table.ndim == 2 else 0, np.ascontiguousarray(table).ravel()
            )
            for columns, table in _folded(found).items()
        ]
        self._first = np.array([table.first for table in self._tables], dtype=np.intp)
        self._second = np.array([table.second for table in self._tables], dtype=np.intp)
        self._strides = np.array([table.stride for table in self._tables], dtype=np.intp)[:, None]
        ends = np.cumsum([table.cells.size for table in self._tables], dtype=np.intp)
        self._offsets = np.concatenate([[0], ends]).astype(np.intp)[: len(self._tables), None]
        self._cells = np.concatenate([table.cells for table in self._tables]) if self._tables else np.zeros(0)

    @property
    def held_bytes(self) -> int:
        return int(self._cells.nbytes) + sum(table.cells.nbytes for table in self._tables)

    def sums(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,)."""
        if len(widths) < SINGLE_PLANS:
            total = self._few(widths)
        else:
            total = np.empty(len(widths))
            for start in range(0, len(widths), BLOCK):
                self._block(widths[start : start + BLOCK], total[start : start + BLOCK])
        if self._computed:
            snapped = self._grid.snapped(widths)
            for site, amount in self._computed:
                total = total + amount(axis_values(site, snapped))
        return total

    def _few(self, widths: Widths) -> Floats:
        positions = self._with_axes(self._grid.position(widths))
        cells = positions[self._first] * self._strides + positions[self._second] + self._offsets
        return np.asarray(self._cells[cells].sum(axis=0) + self._constant)

    def _block(self, widths: Widths, total: Floats) -> None:
        positions = self._with_axes(self._grid.positions(widths))
        cells, found = np.empty(len(widths), dtype=np.intp), np.empty(len(widths))
        total[:] = self._constant
        for table in self._tables:
            np.multiply(positions[table.first], table.stride, out=cells)
            cells += positions[table.second]
            np.take(table.cells, cells, out=found, mode="clip")
            total += found

    def _with_axes(self, positions: Indices) -> Indices:
        if not self._axes:
            return positions
        rows = [sum(share[positions[group]] for group, share in axis.shares) for axis in self._axes.values()]
        return np.concatenate([positions, np.array(rows, dtype=np.intp)])

    def _columns(self, site: KernelSite | Border) -> tuple[int, ...] | None:
        """The one or two rows of `positions` that decide a site; () for none, None where two are not enough."""
        if len(site.group_indices) <= 2:
            return site.group_indices
        if len(site.axes) > 2:
            return None
        made = {axis: self._axes.get(axis) or _Axis(axis, self._grid) for axis in site.axes}
        if math.prod(len(axis.values) for axis in made.values()) > MAX_CELLS:
            return None
        self._axes |= made
        ids = list(self._axes)
        return tuple(len(self._grid.widths) + ids.index(axis) for axis in site.axes)

    def _table(self, site: KernelSite | Border, amount: Amount, columns: tuple[int, ...]) -> Floats:
        """The amount at every cell, one dimension per column."""
        groups = len(self._grid.widths)
        if any(column >= groups for column in columns):
            axes = [self._axes[axis].values for axis in site.axes]
            values = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
            return amount(values.astype(np.float64)).reshape([len(axis) for axis in axes])
        choices = [self._grid.widths[column] for column in columns]
        widths = np.tile([grid[-1] for grid in self._grid.widths], (math.prod(map(len, choices)), 1))
        for column, mesh in zip(columns, np.meshgrid(*choices, indexing="ij") if choices else [], strict=True):
            widths[:, column] = mesh.ravel()
        return amount(axis_values(site, widths)).reshape([len(choice) for choice in choices])


def _folded(tables: dict[tuple[int, ...], Floats]) -> dict[tuple[int, ...], Floats]:
    """Tables of one column added into one of two columns that has it, where there is one: fewer look-ups."""
    kept: dict[tuple[int, ...], Floats] = {columns: table for columns, table in tables.items() if len(columns) == 2}
    pairs = list(kept)
    for columns, table in tables.items():
        if len(columns) == 1:
            host = next((pair for pair in pairs if columns[0] in pair), None)
            if host is None:
                kept[columns] = table
            else:
                kept[host] = kept[host] + (table[:, None] if host[0] == columns[0] else table)
    return kept
