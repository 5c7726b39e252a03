"""Predictions of plans as sums over their kernels: from a profile's table, or from one of another tool.

Another tool's kernels are matched by operator and shape.

Another tool's table has a handful of widths where a profile has a grid. Kernels of one operator share a roofline:
launch, MACs, bytes, and work on channels that are no multiple of a tile, which is found by leaving points out. What a
place (operator, map, stride) does differently is interpolated between the channels measured there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.latency.calibration import BAND_FLOOR, UNKNOWN_ERROR, Calibration, error_band
from amc_mobile.latency.kernel_fit import (
    NO_STEPS,
    SiteModel,
    SitePoints,
    Steps,
    axis_values,
    basis,
    bilinear,
    choose_steps,
    fit_site,
    have_own_groups,
    left_out_errors,
    points_per_axis,
    site_points,
)
from amc_mobile.latency.measurement import KernelMeasurement
from amc_mobile.latency.probe import widths_around_tiles
from amc_mobile.latency.table_files import CONVOLUTIONS, KernelShape

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.kernel import Expression
    from amc_mobile.kernels.onnx_layout import Border
    from amc_mobile.kernels.template import KernelSite, Template

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
        rows = np.empty(columns.shape, dtype=np.intp)
        for group, column in enumerate(columns):
            np.take(self._positions[group], column, out=rows[group], mode="clip")
        return rows

    def position(self, widths: Widths) -> Indices:
        """As `positions`, for few plans."""
        rows: Indices = self._positions[self._rows[:, None], widths.T.clip(0, self._positions.shape[1] - 1)]
        return rows

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
        cells, looked_up = np.empty(len(widths), dtype=np.intp), np.empty(len(widths))
        total[:] = self._constant
        for table in self._tables:
            np.multiply(positions[table.first], table.stride, out=cells)
            cells += positions[table.second]
            np.take(table.cells, cells, out=looked_up, mode="clip")
            total += looked_up

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


Source = Literal["exact", "aligned", "ceil", "extrapolated"]

EXACT_SIGMA = 0.01  # two passes of a measured kernel agree this well
EXTRAPOLATION = 3.0  # times the sigma between points
MEGABYTE = 1e6


@dataclass(frozen=True)
class Prediction:
    """Of one kernel site at one plan. `sigma`: relative.

    `source`: "exact": this kernel was measured; "aligned": on the grid, between measured points; "ceil": off the grid,
    priced as the next widths above; "extrapolated": beyond the measured widths.
    """

    ms: float
    source: Source
    sigma: float


class Predictor(ABC):
    """What is known of plans by their kernels alone."""

    def __init__(self, sums: PlanSums) -> None:
        self._sums = sums

    def sum_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> ms (N,): the sum over kernels of their lowest p20, before calibration."""
        return self._sums.sums(widths)

    def p50_ms(self, widths: Widths, calibration: Calibration) -> Floats:
        """(N, groups) -> ms (N,), of the whole model."""
        return calibration.p50_ms(
            self.sum_ms(widths),
            self.weight_mb(widths) if calibration.needs_weights else None,
            self.boundary_mb(widths) if calibration.needs_boundary else None,
        )

    def risk_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): what kernels far from everything timed may cost beyond `sum_ms` and the band."""
        return np.zeros(len(widths))

    def weight_mb(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): the weights of the whole model; 0 where they are not known."""
        return np.zeros(len(widths))

    def boundary_mb(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): what kernels cut out convert between layouts and the whole model does not. Where the
        template does not know: what crosses the borders of kernels that multiply."""
        return np.zeros(len(widths))

    @abstractmethod
    def explain(self, widths: Widths) -> dict[int, Prediction]:
        """Site index -> prediction at one plan, shape (groups,)."""

    def site_ms(self, widths: Widths) -> dict[int, float]:
        """Site index -> ms at one plan, shape (groups,)."""
        return {index: prediction.ms for index, prediction in self.explain(widths).items()}


class LatencyPredictor(Predictor):
    """Sums of kernel latencies for plans on the grid. Widths between grid points count as the next one above.

    `lows_ms`: kernel key -> ms. `sampled`: the grids whose points were measured, where plans may take other widths than
    those. `measured_plans`: plans, each (groups,), whose very kernels are taken from `exact_ms` (default: `lows_ms`)
    where it has them. `plain`: measured points are interpolated, without rooflines and steps. `quick`: the sampled
    points are those of a quick profile. Raises MissingLatency naming every kernel of the sampled points that has not
    been measured.
    """

    def __init__(
        self,
        template: Template,
        grids: Sequence[Widths],
        lows_ms: Mapping[str, float],
        *,
        sampled: Sequence[Widths] | None = None,
        measured_plans: Sequence[Widths] = (),
        exact_ms: Mapping[str, float] | None = None,
        plain: bool = False,
        quick: bool = False,
    ) -> None:
        self._grid = Grid(grids)
        self._borders = template.borders
        measured = lows_ms if exact_ms is None else exact_ms
        points = _collect(template, sampled or grids, lows_ms, quick)
        probed = {p.site.index: _around_tiles(p, template, measured) for p in points}
        points = [p.with_probed(probed[p.site.index]) for p in points]
        self.plain = plain
        self.steps: dict[str, Steps] = choose_steps([] if plain else points)
        known = _also_measured(template, measured_plans, measured)
        self.sites: dict[int, SiteModel] = {
            p.site.index: fit_site(
                p,
                self.steps.get(p.site.operator_type, NO_STEPS),
                {**known[p.site.index], **probed[p.site.index]},
                plain=plain,
            )
            for p in points
        }
        amounts = [self.sites[site.index].predict_at for site in template.sites]
        super().__init__(PlanSums(self._grid, template.sites, amounts))

    def explain(self, widths: Widths) -> dict[int, Prediction]:
        asked = np.asarray(widths, dtype=np.int64)[None]
        snapped = self._grid.snapped(asked)
        raised = (snapped != asked)[0]
        predictions = {}
        for index, model in self.sites.items():
            ms = float(model.predict(snapped)[0])
            values = axis_values(model.site, snapped)
            if not model.is_inside(axis_values(model.site, asked))[0]:
                predictions[index] = Prediction(ms, "extrapolated", model.sigma * EXTRAPOLATION)
            elif raised[list(model.site.group_indices)].any():
                # The truth lies between this and what the widths asked for would cost without steps.
                off = abs(1 - float(model.predict(asked)[0]) / ms)
                predictions[index] = Prediction(ms, "ceil", float(np.hypot(model.sigma, off)))
            elif tuple(values[0].tolist()) in model.exact:
                predictions[index] = Prediction(ms, "exact", EXACT_SIGMA)
            else:
                predictions[index] = Prediction(ms, "aligned", model.sigma)
        return predictions

    def weight_mb(self, widths: Widths) -> Floats:
        return self._weights.sums(widths)

    def boundary_mb(self, widths: Widths) -> Floats:
        return self._boundaries.sums(widths)

    @property
    def held_bytes(self) -> int:
        """Of the tables that sums are looked up in."""
        return self._sums.held_bytes

    @cached_property
    def _weights(self) -> PlanSums:
        return self._bytes([[k.weight_bytes for k in m.points.kernels] for m in self.sites.values()])

    @cached_property
    def _boundaries(self) -> PlanSums:
        if self._borders:
            return PlanSums(self._grid, self._borders, [border.spared_mb for border in self._borders])
        sites = self.sites.values()
        return self._bytes([[k.activation_bytes if k.macs else 0 for k in m.points.kernels] for m in sites])

    def _bytes(self, amounts: Sequence[Sequence[int]]) -> PlanSums:
        sites, models = [m.site for m in self.sites.values()], self.sites.values()
        factors = [bilinear(m.points, np.array(a, np.float64) / MEGABYTE) for m, a in zip(models, amounts, strict=True)]
        return PlanSums(self._grid, sites, [partial(_evaluate, coefficients) for coefficients in factors])


def _evaluate(coefficients: Floats, values: Floats) -> Floats:
    return np.asarray(basis(values) @ coefficients)


def _collect(
    template: Template, grids: Sequence[Widths], lows_ms: Mapping[str, float], quick: bool
) -> list[SitePoints]:
    count = points_per_axis(template, grids)
    missing: dict[str, str] = {}
    collected = []
    for site in template.sites:
        widths = site_points(site, template.sizes, grids, count, quick=quick)
        kernels = [template.kernel_at(site.index, row) for row in widths]
        lacking = {k.key: f"{site.name}: {k.label}" for k in kernels if k.key not in lows_ms}
        missing |= lacking
        if not lacking:
            measured = np.array([lows_ms[kernel.key] for kernel in kernels])
            collected.append(SitePoints.collect(site, np.array(widths), kernels, measured))
    if missing:
        raise MissingLatency(sorted(missing.values()))
    return collected


def _around_tiles(
    points: SitePoints, template: Template, exact_ms: Mapping[str, float]
) -> dict[tuple[float, ...], float]:
    """Axis values -> ms, of what the table has of a site around tiles, where the profile has nothing."""
    site, profiled = points.site, {tuple(values) for values in points.values.tolist()}
    around = {}
    for widths in widths_around_tiles(site, template.sizes) if have_own_groups(site) else ():
        values = _values_of(site, widths)
        if values not in profiled and (ms := exact_ms.get(template.kernel_at(site.index, widths).key)) is not None:
            around[values] = ms
    return around


def _also_measured(
    template: Template, plans: Sequence[Widths], exact_ms: Mapping[str, float]
) -> dict[int, dict[tuple[float, ...], float]]:
    """Site index -> axis values -> ms, of the kernels of whole plans."""
    measured: dict[int, dict[tuple[float, ...], float]] = {site.index: {} for site in template.sites}
    for plan in plans:
        for site in template.sites:
            low = exact_ms.get(template.kernel_at(site.index, plan).key)
            if low is not None:
                measured[site.index][_values_of(site, plan)] = low
    return measured


def _values_of(site: KernelSite, widths: Widths) -> tuple[float, ...]:
    return tuple(axis_values(site, np.asarray(widths)[None])[0].tolist())


Channels = NDArray[np.int64]  # (N, 2): in and out
ALIGNED = (1, 16, 32)  # channels that are no multiple of one of these may run slower code
SMOOTHING = 0.05  # of the distance between logarithms of channels, in the weights of a place's residuals
NEARBY = 1.25  # a width counts as measured when the nearest end of the measured range is within this factor


@dataclass(frozen=True)
class TimedShape:
    """One kernel of a table. `network`: the model that it was timed as a part of; empty: unknown."""

    shape: KernelShape
    ms: float
    network: str = ""


class ShapeFit:
    """Predicts kernels from the timed ones; equal shapes count once, as their mean."""

    def __init__(self, rows: Sequence[TimedShape]) -> None:
        self.rows = tuple(rows)
        grouped: dict[KernelShape, list[float]] = {}
        for row in rows:
            grouped.setdefault(row.shape, []).append(row.ms)
        self.known = {shape: float(np.mean(found)) for shape, found in grouped.items()}
        self._rooflines: dict[str, _Roofline] = {}
        self._places: dict[KernelShape, tuple[Channels, Floats]] = {}  # channels and log residuals
        for operator in dict.fromkeys(shape.operator for shape in self.known):
            shapes = [shape for shape in self.known if shape.operator == operator]
            ms = np.array([self.known[shape] for shape in shapes])
            counts = np.array([len(grouped[shape]) for shape in shapes])
            roofline = self._rooflines[operator] = _Roofline(shapes, ms, counts)
            for place in dict.fromkeys(shape.place for shape in shapes):
                here = np.array([i for i, shape in enumerate(shapes) if shape.place == place])
                channels = np.array([shapes[i].channels for i in here], dtype=np.int64)
                self._places[place] = channels, np.log(ms[here] / roofline(place, channels))

    def place_of(self, shape: KernelShape) -> KernelShape | None:
        """The place to predict `shape` from, its window left out where the table does not have it.

        None where the operator was never timed; a place of a known operator need not have been timed itself.
        """
        place = shape.place
        without_window = KernelShape(place.operator, 0, 0, place.out_size, place.stride)
        if place not in self._places and without_window in self._places:
            return without_window
        if place.operator not in self._rooflines:
            return None
        windows = {other.window for other in self._places if other.operator == place.operator}
        return without_window if windows == {0} else place

    def predict(self, place: KernelShape, channels: Channels) -> Floats:
        """(N, 2) -> ms (N,). Timed kernels are what they are."""
        ms = self._rooflines[place.operator](place, channels)
        if place in self._places:
            timed, residuals = self._places[place]
            distances = np.abs(np.log(channels)[:, None] - np.log(timed)[None]).sum(axis=2)
            weights = 1 / (distances + SMOOTHING)
            same = (channels[:, None] == timed[None]).all(axis=2)
            # A kernel that was timed is what it was.
            weights = np.where(same.any(axis=1)[:, None], same, weights)
            ms = ms * np.exp((weights * residuals).sum(axis=1) / weights.sum(axis=1))
        return np.asarray(ms)

    def is_exact(self, place: KernelShape, channels: Channels) -> NDArray[np.bool_]:
        """(N, 2) -> (N,): whether these very kernels were timed."""
        if place not in self._places:
            return np.zeros(len(channels), dtype=bool)
        return np.asarray((channels[:, None] == self._places[place][0][None]).all(axis=2).any(axis=1))

    def is_nearby(self, place: KernelShape, channels: Channels) -> NDArray[np.bool_]:
        """(N, 2) -> (N,): whether the channels are within, or close to, what was timed at that place."""
        if place not in self._places:
            return np.zeros(len(channels), dtype=bool)
        timed = self._places[place][0]
        low, high = timed.min(axis=0) / NEARBY, timed.max(axis=0) * NEARBY
        return np.asarray(((channels >= low) & (channels <= high)).all(axis=1))

    def sigmas(self) -> dict[str, float]:
        """Operator -> relative error to expect of a kernel not timed: each timed one left out in turn."""
        sigmas = {}
        for operator in self._rooflines:
            rows = [row for row in self.rows if row.shape.operator == operator]
            errors = []
            for shape in dict.fromkeys(row.shape for row in rows):
                rest = [row for row in rows if row.shape != shape]
                if any(row.shape.place == shape.place for row in rest):
                    predicted = ShapeFit(rest).predict(shape.place, np.array([shape.channels]))[0]
                    errors.append(float(predicted) / self.known[shape] - 1)
            sigmas[operator] = float(np.sqrt(np.mean(np.square(errors)))) if errors else UNKNOWN_ERROR
        return sigmas

    def calibration(self) -> Calibration:
        """A whole model is the sum of its kernels; the band is how well models left out in turn are predicted.

        Models whose latency lies mostly in kernels unlike the others' do not count.
        """
        left_out = self.left_out()
        absolute = np.array([abs(error) for error, nearby in left_out.values() if nearby >= 0.5])
        if len(absolute) < 2:
            absolute = np.array([UNKNOWN_ERROR])
        return Calibration(
            offset_ms=0.0, scale=1.0, p50_ratio=1.0, band=max(BAND_FLOOR, error_band(absolute, np.ones(len(absolute)))),
            loo_mape=float(absolute.mean()), models=len(left_out),
        )  # fmt: skip

    def left_out(self) -> dict[str, tuple[float, float]]:
        """Network -> relative error of its sum, predicted from the others; the share of its latency in kernels near
        theirs."""
        networks = dict.fromkeys(row.network for row in self.rows if row.network)
        return {network: self._left_out(network) for network in networks}

    def _left_out(self, network: str) -> tuple[float, float]:
        others = ShapeFit([row for row in self.rows if row.network != network])
        mine = [row for row in self.rows if row.network == network]
        total, predicted, nearby = sum(row.ms for row in mine), 0.0, 0.0
        for row in mine:
            place, channels = others.place_of(row.shape), np.array([row.shape.channels])
            if place is None:  # nobody else has that operator: neither right nor wrong
                predicted += row.ms
                continue
            predicted += float(others.predict(place, channels)[0])
            nearby += row.ms * float(others.is_nearby(place, channels)[0])
        return predicted / total - 1, nearby / total


class _Roofline:
    """Latency of one operator at any place and channels: a non-negative sum of what it has to do."""

    def __init__(self, shapes: Sequence[KernelShape], ms: Floats, counts: NDArray[np.int64]) -> None:
        designs = {a: np.concatenate([_work(s.place, np.array([s.channels]), a) for s in shapes]) for a in ALIGNED}
        scales = {a: np.maximum(design.max(axis=0), 1e-9) for a, design in designs.items()}
        terms = {a: designs[a] / scales[a] for a in ALIGNED}
        self._aligned = min(ALIGNED, key=lambda a: (float(left_out_errors(terms[a], ms).mean()), a))
        # A shape that networks have often counts as often.
        weights = np.sqrt(counts.astype(np.float64))
        coefficients, _ = nnls(terms[self._aligned] / ms[:, None] * weights[:, None], weights)
        self._coefficients = coefficients / scales[self._aligned]

    def __call__(self, place: KernelShape, channels: Channels) -> Floats:
        return np.asarray(_work(place, channels, self._aligned) @ self._coefficients)


def _work(place: KernelShape, channels: Channels, aligned: int) -> Floats:
    """(N, 2) -> (N, terms): launch, MACs, bytes, and MACs on channels that are no multiple of `aligned`."""
    inputs, outputs = channels[:, 0].astype(np.float64), channels[:, 1].astype(np.float64)
    pixels = float(place.out_size) ** 2
    if place.operator not in CONVOLUTIONS:
        weights = inputs * outputs if place.operator == "linear" else outputs * pixels
        return np.stack([np.ones(len(channels)), weights], axis=1)
    pairs = outputs if place.operator == "depthwise" else inputs * outputs
    macs = pairs * pixels * max(place.window, 1) ** 2
    terms = [np.ones(len(channels)), macs, outputs * pixels, inputs * pixels * place.stride**2]
    if place.operator != "depthwise":
        terms.append(pairs)
    if aligned > 1:
        terms.append(macs * (outputs % aligned > 0))
        if place.operator == "conv1x1":
            terms.append(macs * (inputs % aligned > 0))
    return np.stack(terms, axis=1)


def timed_shapes(
    measured: Mapping[str, KernelMeasurement], documents: Mapping[str, Mapping[str, Any]]
) -> list[TimedShape]:
    """The kernels whose shapes an imported table has; the median over their passes. `documents`: of the table."""
    shapes = []
    for key, kernel in measured.items():
        document = documents[key]
        if document.get("shape"):
            ms = float(np.median([np.mean(samples) for samples in kernel.samples_ms]))
            shape = KernelShape.from_document(document["shape"])
            shapes.append(TimedShape(shape, ms, str(document.get("network", ""))))
    if not shapes:
        raise InvalidInput(
            "the imported table does not hold the shapes of its kernels",
            next_step="import it again with `amc-mobile table import --csv --shape ...`; see its --help",
        )
    return shapes


class ShapePredictor(Predictor):
    """Sums like those of a profiled table, from a few shapes of each kind.

    Raises MissingLatency naming the kernels whose operator the table has nowhere. One whose operator is known but not
    at that map and stride is estimated by the operator's roofline and counts as extrapolated.
    """

    def __init__(self, template: Template, grids: Sequence[Widths], rows: Sequence[TimedShape]) -> None:
        self._template, self.fit = template, ShapeFit(rows)
        self._sigmas = self.fit.sigmas()
        self._places: dict[int, KernelShape] = {}
        unknown = []
        for site in template.sites:
            kernel = template.kernel_at(site.index, template.sizes)
            place = self.fit.place_of(KernelShape.of(kernel))
            if place is None:
                unknown.append(f"{site.name}: {kernel.label}")
            else:
                self._places[site.index] = place
        if unknown:
            raise MissingLatency(unknown)
        self._channels = {site.index: _channels_of(site, template, grids) for site in template.sites}
        grid = Grid(grids)
        ms, risks = (
            PlanSums(grid, template.sites, [partial(amount, site) for site in template.sites])
            for amount in (self._site_ms, self._site_risk_ms)
        )
        super().__init__(ms)
        self._risks = risks

    @cached_property
    def calibration(self) -> Calibration:
        return self.fit.calibration()

    def risk_ms(self, widths: Widths) -> Floats:
        return self._risks.sums(widths)

    def explain(self, widths: Widths) -> dict[int, Prediction]:
        asked = np.asarray(widths, dtype=np.int64)[None]
        predictions = {}
        for site in self._template.sites:
            place, channels = self._places[site.index], self._channels[site.index](axis_values(site, asked))
            ms, sigma = float(self.fit.predict(place, channels)[0]), self._sigmas[place.operator]
            source: Source = "aligned"
            if self.fit.is_exact(place, channels)[0]:
                source, sigma = "exact", EXACT_SIGMA
            elif not self.fit.is_nearby(place, channels)[0]:
                source, sigma = "extrapolated", sigma * EXTRAPOLATION
            predictions[site.index] = Prediction(ms, source, sigma)
        return predictions

    def _site_ms(self, site: KernelSite, values: Floats) -> Floats:
        return self.fit.predict(self._places[site.index], self._channels[site.index](values))

    def _site_risk_ms(self, site: KernelSite, values: Floats) -> Floats:
        place, channels = self._places[site.index], self._channels[site.index](values)
        far = ~self.fit.is_nearby(place, channels)
        return np.asarray(self.fit.predict(place, channels) * far * EXTRAPOLATION * self._sigmas[place.operator])


def _channels_of(site: KernelSite, template: Template, grids: Sequence[Widths]) -> Callable[[Floats], Channels]:
    """The channels of a site's kernel as a function of its axes, (N, axes) -> (N, 2); both grow linearly."""
    plans = [template.sizes.copy()]
    for group in site.group_indices:
        plan = template.sizes.copy()
        plan[group] = grids[group][0] if grids[group][0] != plan[group] else max(plan[group] - 1, 1)
        plans.append(plan)
    kernels = [template.kernel_at(site.index, plan) for plan in plans]
    values = axis_values(site, np.array(plans, dtype=np.int64))
    design = np.concatenate([np.ones((len(plans), 1)), values], axis=1)
    channels = np.array([KernelShape.of(kernel).channels for kernel in kernels], dtype=np.float64)
    factors = np.linalg.lstsq(design, channels, rcond=None)[0]

    def at(asked: Floats) -> Channels:
        channels_at = np.concatenate([np.ones((len(asked), 1)), asked], axis=1) @ factors
        return np.asarray(np.rint(channels_at), dtype=np.int64)

    return at
