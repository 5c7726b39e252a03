"""The latency of one kernel site at any widths: a roofline on widths filled up to tiles, times a residual.

Which tile, or whether widths that are no multiple run slower code, differs between operator types and is found by
leaving measured points out. What the roofline leaves is interpolated between the logarithms of the residuals. The plain
form, for devices on which that does no better, interpolates the measured points themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from amc_mobile.latency.roofline import NO_STEPS, SitePoints, Steps, axis_values, have_own_groups

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.template import KernelSite

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
S = TypeVar("S")

STEPS = (
    *itertools.starmap(Steps, itertools.product((1, 8, 16), (1, 8, 16, 32))),
    *(Steps(1, 1, aligned) for aligned in (4, 8, 16, 32)),  # of 4 and 8 only a probe's points tell
)
OTHER_CODE_GAIN = 0.75  # other code for some widths must lower it so much against filling up to tiles
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
        for known, measured_ms in self.exact.items():
            predicted[(values == known).all(axis=1)] = measured_ms
        return np.asarray(predicted)

    @property
    def largest_error(self) -> float:
        """Relative, of the fit alone at the measured points: how far it may be off at others."""
        known = np.array(list(self.exact)).reshape(len(self.exact), -1)
        fitted = replace(self, exact={}).predict_at(known)
        return float(np.abs(fitted / np.array(list(self.exact.values())) - 1).max())

    def is_inside(self, values: Floats) -> NDArray[np.bool_]:
        """(N, axes) -> (N,): whether all axes are within the measured range."""
        low, high = self.points.values.min(axis=0), self.points.values.max(axis=0)
        return np.asarray(((values >= low) & (values <= high)).all(axis=1))

    def _residual(self, filled: Floats) -> Floats:
        if self.corners is None:
            known = self.points.filled(self.points.values, self.steps) / self.scale
            distances = ((filled[:, None] / self.scale - known[None]) ** 2).sum(-1)
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
                found = _left_out_errors(points, steps)
                errors.setdefault((kind, steps), []).append(found)
                if kind in splitting:
                    split = replace(steps, split=True)
                    if points.site.other_code_from:
                        found = _left_out_errors(points, split)
                    errors.setdefault((kind, split), []).append(found)
    chosen = {points.site.operator_type: NO_STEPS for points in sites}
    for kind in chosen:
        means = {
            steps: _mean_error(np.concatenate(found), np.concatenate(probed[kind]))
            for (k, steps), found in errors.items()
            if k == kind
        }
        if means:
            chosen[kind] = _likeliest(means)
    return chosen


def _mean_error(errors: Floats, probed: NDArray[np.bool_]) -> float:
    """The points of a profile and those of a probe count as much: the first are many, and where they are multiples of
    8 they do not tell filling up to 16 from slower code. A few stray points decide nothing."""
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
    own = {tuple(v): float(ms) for v, ms in zip(points.values.tolist(), points.measured_ms, strict=True)}
    exact = {**also_measured, **own}
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
    own = {tuple(v): float(ms) for v, ms in zip(points.values.tolist(), points.measured_ms, strict=True)}
    sigma = _interpolation_sigma(corners, np.log(grid))
    scale = points.values.max(axis=0) if grid.ndim else np.zeros(0)
    return SiteModel(points, NO_STEPS, None, scale, corners, grid, sigma, {**also_measured, **own})


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
