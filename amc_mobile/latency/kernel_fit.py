"""The latency of one kernel site at any widths: a roofline on widths filled up to tiles, times a residual.

Which tile, or whether widths that are no multiple run slower code, differs between operator types and is found by
leaving measured points out. What the roofline leaves is interpolated between the logarithms of the residuals. The plain
form, for devices on which that does no better, interpolates the measured points themselves.

Vector units work on tiles of channels: a kernel costs what the next multiple of the tile costs, or widths that are no
multiple run slower code. On filled widths a + sum b_i x_i + sum c_ij x_i x_j holds launch cost, bytes and MACs, which
are linear and bilinear in the channels.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.kernel import Expression, Kernel
    from amc_mobile.kernels.onnx_layout import Border
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Role = Literal["in", "out", "other"]


@dataclass(frozen=True, order=True)
class Steps:
    """How the latency of an operator type climbs with its channels; 1 means no steps.

    `tile_in`, `tile_out`: channels are filled up to a multiple of these. `aligned`: channels that are no multiple of
    this run slower code. `split`: where the runtime runs other code for few channels, latency climbs otherwise there.
    """

    tile_in: int = 1
    tile_out: int = 1
    aligned: int = 1
    split: bool = False


NO_STEPS = Steps()


@dataclass(frozen=True)
class SitePoints:
    """The measured points of one site. `values`: (points, axes).

    `around_tiles`: points of a probe, axis values -> ms, at widths that a profile never takes.
    """

    site: KernelSite
    values: Floats
    measured_ms: Floats
    kernels: tuple[Kernel, ...]
    channels_per_unit: tuple[float, ...]  # per axis: what one unit of it is worth in channels
    roles: tuple[Role, ...]
    around_tiles: Mapping[tuple[float, ...], float] = field(default_factory=dict)

    @property
    def measured(self) -> dict[tuple[float, ...], float]:
        """Axis values -> ms, of the profile's points."""
        return {tuple(v): float(ms) for v, ms in zip(self.values.tolist(), self.measured_ms, strict=True)}

    @property
    def all_values(self) -> Floats:
        """(all points, axes): the profile's, then the probe's."""
        return np.concatenate(
            [self.values, np.array(list(self.around_tiles)).reshape(len(self.around_tiles), self.values.shape[1])]
        )

    @property
    def all_ms(self) -> Floats:
        return np.concatenate([self.measured_ms, np.array(list(self.around_tiles.values()))])

    def with_probed(self, found: Mapping[tuple[float, ...], float]) -> SitePoints:
        """With those of a probe's points that are within the range of the profile: below it, other code may run."""
        low, high = self.values.min(axis=0), self.values.max(axis=0)
        inside = {key: ms for key, ms in found.items() if ((low <= key) & (key <= high)).all()}
        return replace(self, around_tiles=inside)

    @classmethod
    def collect(cls, site: KernelSite, widths: Widths, kernels: Sequence[Kernel], measured_ms: Floats) -> SitePoints:
        values = axis_values(site, widths)
        read = [_role(values[:, axis], kernels) for axis in range(values.shape[1])]
        scales, roles = tuple(scale for _, scale in read), tuple(role for role, _ in read)
        return cls(site, values, measured_ms, tuple(kernels), scales, roles)

    def filled(self, values: Floats, steps: Steps) -> Floats:
        """(N, axes): every axis raised to the next multiple of its role's tile; not where code for fewer runs."""
        filled = values.copy()
        for axis, (role, scale) in enumerate(zip(self.roles, self.channels_per_unit, strict=True)):
            step = {"in": steps.tile_in, "out": steps.tile_out, "other": 1}[role] / scale
            if step > 1 / scale:
                tiled = values[:, axis] >= (self.site.other_code_from.get(axis, 0) if steps.split else 0)
                filled[tiled, axis] = np.ceil(values[tiled, axis] / step - 1e-9) * step
        return filled

    def terms(self, values: Floats, scale: Floats, steps: Steps) -> Floats:
        """(N, axes) -> (N, terms): the basis of filled and scaled axes, and per axis the work on unaligned channels."""
        filled = self.filled(values, steps) / scale
        columns = [basis(filled)]
        for axis, start in self.site.other_code_from.items() if steps.split else ():  # other slopes below
            below = values[:, axis] < start
            others = np.delete(filled, axis, axis=1).prod(axis=1)
            columns += [(below * others)[:, None], (below * others * filled[:, axis])[:, None]]
        if steps.aligned > 1:
            work = filled.prod(axis=1)
            for axis, (role, per_unit) in enumerate(zip(self.roles, self.channels_per_unit, strict=True)):
                if role != "other":
                    off = np.abs(np.remainder(values[:, axis] * per_unit + 0.5, steps.aligned) - 0.5) > 1e-6
                    columns.append((work * off)[:, None])
        return np.concatenate(columns, axis=1)


def axis_values(site: KernelSite | Border, widths: Widths) -> Floats:
    """(N, axes): the value of each axis of a site at each plan."""
    columns = [axis.evaluate(widths).astype(float) for axis in site.axes]
    return np.stack(columns, axis=1) if columns else np.zeros((len(widths), 0))


def basis(x: Floats) -> Floats:
    """(N, axes) -> (N, terms): 1, every axis, every product of two."""
    pairs = [x[:, i] * x[:, j] for i, j in itertools.combinations(range(x.shape[1]), 2)]
    return np.stack([np.ones(len(x)), *x.T, *pairs], axis=1)


def bilinear(points: SitePoints, amounts: Floats) -> Floats:
    """Coefficients in `basis(values)` of an amount that is bilinear in the axes, as bytes are. `amounts`: (points,)."""
    return np.asarray(np.linalg.lstsq(basis(points.values), amounts, rcond=None)[0])


def have_own_groups(site: KernelSite) -> bool:
    """Whether a site has at most two axes and they can be moved apart, so that its points form a grid."""
    groups = [group for axis in site.axes for group, _ in axis.terms]
    return len(site.axes) <= 2 and len(groups) == len(set(groups))


def _role(values: Floats, kernels: Sequence[Kernel]) -> tuple[Role, float]:
    """Whether an axis counts input or output channels, and how many channels one unit of it is."""
    roles: tuple[Role, Role] = ("out", "in")
    for role in roles:
        channels = np.array([getattr(kernel.main, f"{role}_channels") for kernel in kernels], dtype=np.float64)
        if len(values) > 1 and np.ptp(values) and np.allclose(channels * values[0], values * channels[0]):
            return role, float(channels[0] / values[0])
    return "other", 1.0


MOST_POINTS, FEWEST_POINTS = 5, 3  # per axis, geometric, the minimum and the full width included
MOST_KERNELS = 460  # more than this, and fewer points per axis are taken
SCATTERED_POINTS = 12  # for kernels whose axes cannot be moved apart
QUICK_SCATTERED_POINTS = 6
QUICK_PLANS = (0, 2, 4, 6, 7, 8)  # of `calibration_widths`: full, smallest, half and three random ones


def axis_points(grid: Widths, count: int = MOST_POINTS, *, other_code_from: int = 0) -> Widths:
    """`count` geometrically spaced widths of an ascending grid, its ends included; and the widths on both sides of
    `other_code_from`: measurements on one side say nothing about the other."""
    if len(grid) <= count:
        return grid
    spaced = np.geomspace(grid[0], grid[-1], count)
    near = np.searchsorted(grid, other_code_from)
    both_sides = grid[near - 1 : near + 1] if 0 < near < len(grid) else grid[:0]
    return np.union1d(grid[np.abs(grid[:, None] - spaced).argmin(axis=0)], both_sides)


def points_per_axis(template: Template, grids: Sequence[Widths]) -> int:
    """As many points per axis as keep the number of kernels to measure affordable."""
    for count in range(MOST_POINTS, FEWEST_POINTS, -1):
        if len(_kernel_points(template, grids, count)) <= MOST_KERNELS:
            return count
    return FEWEST_POINTS


def site_points(
    site: KernelSite, sizes: Widths, grids: Sequence[Widths], count: int = MOST_POINTS, *, quick: bool = False
) -> list[Widths]:
    """Plans, each shape (groups,), at which to measure one site; groups it does not depend on stay full.

    Axes without common groups are moved apart, the groups of one axis together; else the ends and random widths are
    taken. `quick`: some of the points that are taken otherwise.
    """
    if have_own_groups(site):
        steps = []
        for place, axis in enumerate(site.axes):
            other_code_from = _width_at(axis, site.other_code_from.get(place))
            every = _axis_steps([group for group, _ in axis.terms], grids, count, other_code_from)
            steps.append(_few_steps(every, other_code_from) if quick else every)
        rows = [dict(pair for step in choice for pair in step.items()) for choice in itertools.product(*steps)]
    else:
        rng = np.random.default_rng(site.index)
        rows = [{group: int(grids[group][end]) for group in site.group_indices} for end in (0, -1)]
        rows += [
            {group: int(rng.choice(grids[group])) for group in site.group_indices} for _ in range(SCATTERED_POINTS - 2)
        ]
        rows = rows[:QUICK_SCATTERED_POINTS] if quick else rows
    points = []
    for row in rows:
        widths = sizes.copy()
        for group, width in row.items():
            widths[group] = width
        points.append(widths)
    return points


def kernel_points(template: Template, grids: Sequence[Widths], *, quick: bool = False) -> dict[str, tuple[int, Widths]]:
    """Kernel key -> (site, widths) of every kernel to measure, equal kernels once. `quick`: some of them."""
    return _kernel_points(template, grids, points_per_axis(template, grids), quick=quick)


def _kernel_points(
    template: Template, grids: Sequence[Widths], count: int, *, quick: bool = False
) -> dict[str, tuple[int, Widths]]:
    points: dict[str, tuple[int, Widths]] = {}
    for site in template.sites:
        for widths in site_points(site, template.sizes, grids, count, quick=quick):
            kernel = template.kernel_at(site.index, widths)
            points.setdefault(kernel.key, (site.index, widths))
    return points


def _width_at(axis: Expression, value: int | None) -> int:
    """The width of its group at which an axis reaches `value`; 0 where it has several groups."""
    if value is None or len(axis.terms) > 1:
        return 0
    return math.ceil((value - axis.constant) / axis.terms[0][1])


def _axis_steps(
    groups: Sequence[int], grids: Sequence[Widths], count: int, other_code_from: int
) -> list[dict[int, int]]:
    """The points of one axis: group -> width."""
    chosen = [axis_points(grids[group], count, other_code_from=other_code_from) for group in groups]
    longest = max(len(points) for points in chosen)
    # Groups with fewer widths stay at one of them for several steps.
    picks = [np.linspace(0, len(points) - 1, longest).round().astype(int) for points in chosen]
    return [
        {group: int(points[pick[step]]) for group, points, pick in zip(groups, chosen, picks, strict=True)}
        for step in range(longest)
    ]


def _few_steps(steps: list[dict[int, int]], other_code_from: int) -> list[dict[int, int]]:
    """The ends of an axis, its middle where it has more than three points, and both sides of `other_code_from`."""
    kept = {0, len(steps) - 1} | ({len(steps) // 2} if len(steps) > FEWEST_POINTS else set())
    if other_code_from:  # an axis of one group
        above = bisect_left([next(iter(step.values())) for step in steps], other_code_from)
        kept |= {above - 1, above} & set(range(len(steps)))
    return [steps[at] for at in sorted(kept)]


def can_be_quick(sizes: Widths, grids: Sequence[Widths]) -> bool:
    """Whether a quick profile measures fewer whole models: not of a network with few plans, which is soon profiled."""
    plans = [tuple(plan.tolist()) for plan in calibration_widths(sizes, grids)]
    return {plans[number] for number in QUICK_PLANS} != set(plans)


def calibration_widths(sizes: Widths, grids: Sequence[Widths]) -> list[Widths]:
    """Twelve plans for the whole-model calibration: full, near full, smallest, uniform and random ones."""
    rng = np.random.default_rng(0)

    def near(ratios: NDArray[np.float64]) -> Widths:
        return np.array([g[np.abs(g - w).argmin()] for g, w in zip(grids, sizes * ratios, strict=True)], dtype=np.int64)

    ones = np.ones(len(sizes))
    plans = [sizes.copy(), near(rng.uniform(0.85, 1, len(sizes))), near(0 * ones)]
    plans += [near(ratio * ones) for ratio in (0.75, 0.5, 0.35)]
    plans += [near(np.clip(rng.uniform(0.25, 1) + rng.uniform(-0.2, 0.2, len(sizes)), 0, 1)) for _ in range(6)]
    return plans


S = TypeVar("S")

STEPS = (
    *itertools.starmap(Steps, itertools.product((1, 8, 16), (1, 8, 16, 32))),
    *(Steps(1, 1, aligned) for aligned in (4, 8, 16, 32)),  # only a probe has points that show 4 and 8
)
OTHER_CODE_GAIN = 0.75  # the error with other code for some widths must be below this share of that with tiles
FEWEST_PROBED = 4  # points around two tiles
KERNEL_NOISE = 0.01  # relative; what predicts within it cannot be improved
STEPS_GAIN = 0.9  # steps must lower the left-out error at least to this share of the error without
MERGED_SPREAD = 0.05  # relative; measured points further apart than this do not cost the same, whatever the tile
UNKNOWN_SIGMA = 0.05  # of interpolation where no point can be left out
LEAST_SIGMA = 0.005


@dataclass(frozen=True)
class SiteModel:
    """What `fit_site` found. `sigma`: relative error to expect between measured points.

    `coefficients`: of the roofline's terms; None: the plain form. `exact`: axis values -> ms of kernels that were
    measured themselves.
    """

    points: SitePoints
    steps: Steps
    coefficients: Floats | None
    scale: Floats  # (axes,)
    corners: tuple[Floats, ...] | None  # per axis ascending, where the points form a grid; None: scattered
    residuals: Floats  # logarithms over the grid of corners, else (points,); in the plain form ms
    sigma: float
    exact: Mapping[tuple[float, ...], float]

    @property
    def site(self) -> KernelSite:
        return self.points.site

    def predict(self, widths: Widths) -> Floats:
        """(N, groups) -> ms (N,)."""
        return self.predict_at(axis_values(self.site, widths))

    def predict_at(self, values: Floats) -> Floats:
        """(N, axes) -> ms (N,)."""
        residual = self._residual(self.points.filled(values, self.steps))
        if self.coefficients is None:
            predicted = residual.copy()
        else:
            predicted = self.points.terms(values, self.scale, self.steps) @ self.coefficients * np.exp(residual)
        for values_measured, measured_ms in self.exact.items():
            predicted[(values == values_measured).all(axis=1)] = measured_ms
        return np.asarray(predicted)

    @property
    def largest_error(self) -> float:
        """Relative, of the fit alone at the measured points: how far it may be off at others."""
        measured = np.array(list(self.exact)).reshape(len(self.exact), -1)
        fitted = replace(self, exact={}).predict_at(measured)
        return float(np.abs(fitted / np.array(list(self.exact.values())) - 1).max())

    def is_inside(self, values: Floats) -> NDArray[np.bool_]:
        """(N, axes) -> (N,): whether all axes are within the measured range."""
        low, high = self.points.values.min(axis=0), self.points.values.max(axis=0)
        return np.asarray(((values >= low) & (values <= high)).all(axis=1))

    def _residual(self, filled: Floats) -> Floats:
        if self.corners is None:
            centres = self.points.filled(self.points.values, self.steps) / self.scale
            distances = ((filled[:, None] / self.scale - centres[None]) ** 2).sum(-1)
            weights = 1.0 / (distances + 1e-9) ** 2
            return np.asarray((weights * self.residuals).sum(1) / weights.sum(1))
        residual = np.broadcast_to(self.residuals, (len(filled), *self.residuals.shape))
        for axis, corners in enumerate(self.corners):
            low, share = _between(corners, filled[:, axis])
            rows = np.arange(len(filled))
            high = np.minimum(low + 1, len(corners) - 1)
            share = share.reshape(-1, *[1] * (residual.ndim - 2))
            residual = residual[rows, low] * (1 - share) + residual[rows, high] * share
        return np.asarray(residual)


def choose_steps(sites: Sequence[SitePoints]) -> dict[str, Steps]:
    """Operator type -> steps. None unless some predict left-out points clearly better."""
    errors: dict[tuple[str, Steps], list[Floats]] = {}
    probed: dict[str, list[NDArray[np.bool_]]] = {}
    splitting = {points.site.operator_type for points in sites if points.site.other_code_from}
    for points in {tuple(k.key for k in p.kernels): p for p in sites}.values():  # equal layers once
        kind = points.site.operator_type
        if points.values.shape[1] and len(points.values) > 2:
            probed.setdefault(kind, []).append(np.arange(len(points.all_ms)) >= len(points.measured_ms))
            for steps in STEPS:
                left_out = _left_out_errors(points, steps)
                errors.setdefault((kind, steps), []).append(left_out)
                if kind in splitting:
                    split = replace(steps, split=True)
                    if points.site.other_code_from:
                        left_out = _left_out_errors(points, split)
                    errors.setdefault((kind, split), []).append(left_out)
    chosen = {points.site.operator_type: NO_STEPS for points in sites}
    for kind in chosen:
        means = {
            steps: _mean_error(np.concatenate(left_out), np.concatenate(probed[kind]))
            for (k, steps), left_out in errors.items()
            if k == kind
        }
        if means:
            chosen[kind] = _likeliest(means)
    return chosen


def _mean_error(errors: Floats, probed: NDArray[np.bool_]) -> float:
    """The points of a profile and those of a probe count as much: the first are many, and where they are multiples of
    8 they cannot separate filling up to 16 from slower code. A few stray points decide nothing."""
    if probed.sum() < FEWEST_PROBED:
        return float(errors.mean())
    return float(errors[probed].mean() + errors[~probed].mean()) / 2


def _likeliest(errors: Mapping[Steps, float]) -> Steps:
    """As `clearly_best`; other code for widths that are no multiple must be clearly better than filling them up."""
    best = clearly_best(errors, NO_STEPS)
    filling = clearly_best({steps: error for steps, error in errors.items() if steps.aligned == 1}, NO_STEPS)
    return filling if errors[filling] <= max(KERNEL_NOISE, errors[best] / OTHER_CODE_GAIN) else best


def clearly_best(errors: Mapping[S, float], simplest: S) -> S:
    """The candidate with the lowest error; `simplest` unless that is clearly lower. Of equals, the smallest."""
    best = min(errors, key=lambda tried: (errors[tried], tried))
    return best if errors[best] < STEPS_GAIN * errors[simplest] else simplest


def fit_site(
    points: SitePoints, steps: Steps, also_measured: Mapping[tuple[float, ...], float], *, plain: bool = False
) -> SiteModel:
    """Fits one site to its points, each counting by its relative error. `also_measured` is taken as it is.

    `plain`: interpolates linearly between the points, where they form a grid.
    """
    if plain and have_own_groups(points.site):
        return _interpolated(points, also_measured)
    bare = replace(steps, tile_in=1, tile_out=1)  # merges nothing
    weaker = (steps, replace(steps, tile_in=1), replace(steps, tile_out=1))
    steps = next((tried for tried in weaker if _merged_spread(points, tried) <= MERGED_SPREAD), bare)
    exact = {**also_measured, **points.measured}
    filled = points.filled(points.values, steps)
    scale = filled.max(axis=0) if filled.shape[1] else np.zeros(0)
    every = points.terms(points.all_values, scale, steps)
    coefficients, _ = nnls(every / points.all_ms[:, None], np.ones(len(every)))
    design = every[: len(points.values)]
    residuals = np.log(points.measured_ms / (design @ coefficients))
    if not have_own_groups(points.site):
        return SiteModel(points, steps, coefficients, scale, None, residuals, UNKNOWN_SIGMA, exact)
    corners = tuple(np.unique(filled[:, axis]) for axis in range(filled.shape[1]))
    where = tuple(np.searchsorted(corner, filled[:, axis]) for axis, corner in enumerate(corners))
    shape = tuple(len(corner) for corner in corners)
    total, count = np.zeros(shape), np.zeros(shape)
    # Points that the tile makes one, share their mean.
    np.add.at(total, where, residuals if shape else residuals.mean())
    np.add.at(count, where, 1)
    if not count.all():
        return SiteModel(points, steps, coefficients, scale, None, residuals, UNKNOWN_SIGMA, exact)
    grid = total / count
    return SiteModel(points, steps, coefficients, scale, corners, grid, _interpolation_sigma(corners, grid), exact)


def _interpolated(points: SitePoints, also_measured: Mapping[tuple[float, ...], float]) -> SiteModel:
    corners = tuple(np.unique(points.values[:, axis]) for axis in range(points.values.shape[1]))
    grid = np.zeros(tuple(len(corner) for corner in corners))
    where = tuple(np.searchsorted(corner, points.values[:, axis]) for axis, corner in enumerate(corners))
    grid[where] = points.measured_ms if grid.ndim else points.measured_ms.mean()
    sigma = _interpolation_sigma(corners, np.log(grid))
    scale = points.values.max(axis=0) if grid.ndim else np.zeros(0)
    return SiteModel(points, NO_STEPS, None, scale, corners, grid, sigma, {**also_measured, **points.measured})


def _merged_spread(points: SitePoints, steps: Steps) -> float:
    """How far apart measured points are that the tiles take for one: of a layer with few channels, code for few
    channels may run. Largest relative distance from their mean."""
    _, place = np.unique(points.filled(points.all_values, steps), axis=0, return_inverse=True)
    place = place.reshape(-1)
    means = np.bincount(place, points.all_ms) / np.bincount(place)
    return float(np.abs(points.all_ms / means[place] - 1).max())


def _left_out_errors(points: SitePoints, steps: Steps) -> Floats:
    """(points,): relative errors of the roofline at each point, fitted without it."""
    scale = points.filled(points.values, steps).max(axis=0)
    return left_out_errors(points.terms(points.all_values, scale, steps), points.all_ms)


def left_out_errors(terms: Floats, measured_ms: Floats) -> Floats:
    """(points, terms), (points,) -> (points,): relative errors at each point of what is fitted without it (closed form
    of least squares)."""
    design = terms / measured_ms[:, None]
    inverse = np.linalg.pinv(design, rcond=1e-9)
    leverage = np.einsum("ij,ji->i", design, inverse).clip(0, 0.95)
    residuals = design @ (inverse @ np.ones(len(design))) - 1
    return np.asarray(np.abs(residuals) / (1 - leverage))


def _interpolation_sigma(corners: Sequence[Floats], residuals: Floats) -> float:
    """From leaving out each inner line of the grid. Half of it: without the line, the steps are twice as wide."""
    errors = []
    for axis, corner in enumerate(corners):
        lines = np.moveaxis(residuals, axis, 0)
        for at in range(1, len(corner) - 1):
            share = (corner[at] - corner[at - 1]) / (corner[at + 1] - corner[at - 1])
            errors.append((lines[at - 1] * (1 - share) + lines[at + 1] * share - lines[at]).ravel())
    if not errors:
        return LEAST_SIGMA if not corners else UNKNOWN_SIGMA
    return max(LEAST_SIGMA, float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) / 2)


def _between(corners: Floats, values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The corner at or below each value, and the share of the way to the next; clamped to the ends."""
    low = np.searchsorted(corners, values, side="right").clip(1, max(1, len(corners) - 1)) - 1
    if len(corners) < 2:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
    share = ((values - corners[low]) / (corners[low + 1] - corners[low])).clip(0, 1)
    return low.astype(np.int64), share
