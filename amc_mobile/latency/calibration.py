"""From the sum of kernels to the whole model: a robust fit to whole models measured on the same device.

The table's lowest p20 and the p50 that a user sees are two numbers: a calibration gives both.

A calibration's shape (offset, scale and at most two more terms) is found on the lowest p20 of the models measured
while profiling, which noise hardly moves; its level, the p50 over that, follows the newest models measured, since a
machine that is profiled and one that is searched on hours later differ in little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.latency.measurement import BUSY, NOISY, ModelMeasurement

Floats = NDArray[np.float64]
BAND_FLOOR = 0.02
# A search holds a prediction with the band on top against the budget, so that from here on more than a third of the
# budget is given away, and plans that differ by half look alike: random plans would do as well.
USABLE_BAND = 0.5
COVERAGE = 0.9  # of new plans lie within the band
FEW_FACTOR = 1.5  # of the largest leave-one-out error, where there are too few for a quantile
UNKNOWN_ERROR = 0.1  # where nothing can be left out


@dataclass(frozen=True)
class Term:
    """A correction that had to earn its place: mean relative leave-one-out errors of the table's whole models.

    `kept`: it predicts with it; then `error_with` is the lower one, and what it corrects has the sign that its cause
    allows.
    """

    name: str
    kept: bool
    error_with: float
    error_without: float


@dataclass(frozen=True)
class Calibration:
    """`p50 = (offset + scale x sum + hinge + boundary) x p50_ratio`, each term of the whole model in ms.

    `hinge_ms_per_mb` counts for weights beyond `hinge_mb`. `band`: relative error that a prediction stays within, see
    `error_band`. `terms`: the corrections that were tried.
    """

    offset_ms: float
    scale: float
    p50_ratio: float
    band: float
    loo_mape: float
    models: int
    hinge_mb: float = 0.0
    hinge_ms_per_mb: float = 0.0
    boundary_ms_per_mb: float = 0.0
    terms: tuple[Term, ...] = ()

    @property
    def problem(self) -> str:
        """Why it is not good enough to search with; empty where it is."""
        if self.band <= USABLE_BAND:
            return ""
        return (
            f"predictions of whole models are up to {self.band:.1%} off; above {USABLE_BAND:.0%} they do not tell "
            "which plan is faster"
        )

    @property
    def needs_weights(self) -> bool:
        return self.hinge_ms_per_mb != 0

    @property
    def needs_boundary(self) -> bool:
        return self.boundary_ms_per_mb != 0

    def low_ms(self, sums_ms: Floats, weight_mb: Floats | None = None, boundary_mb: Floats | None = None) -> Floats:
        """The quiet machine's latency, ms (N,). What `needs_weights` and `needs_boundary` say must be given."""
        total = self.offset_ms + self.scale * sums_ms
        if self.needs_weights:
            assert weight_mb is not None
            total = total + self.hinge_ms_per_mb * np.maximum(0.0, weight_mb - self.hinge_mb)
        if self.needs_boundary:
            assert boundary_mb is not None
            total = total + self.boundary_ms_per_mb * boundary_mb
        return np.asarray(total)

    def p50_ms(self, sums_ms: Floats, weight_mb: Floats | None = None, boundary_mb: Floats | None = None) -> Floats:
        """The p50 that a user sees, ms (N,)."""
        return self.low_ms(sums_ms, weight_mb, boundary_mb) * self.p50_ratio

    def to_document(self) -> dict[str, Any]:
        return asdict(self)


def error_band(errors: Floats, weights: Floats) -> float:
    """What the error of a new plan stays within in nine of ten cases, from absolute leave-one-out errors.

    The new error counts as one more, of full weight, above all others (jackknife of Barber et al. 2021): of twelve
    models the largest error decides.
    """
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(weights[order])
    place = int(np.searchsorted(reached, COVERAGE * (reached[-1] + weights.max()) - 1e-9))
    return float(errors[order][place]) if place < len(errors) else FEW_FACTOR * float(errors.max())


Widths = NDArray[np.int64]
UNTRUSTED = 0.2  # weight of a number that other work on the machine may have spoilt
TOLD_DRIFT = 0.05  # relative; a p50 measured twice differs by less than this on a device left alone
DRIFT_REMEDY = "close other programs and let it cool down, then run the step again; if it stays, `amc-mobile profile`"
TRUSTED_SIGMA = 0.02  # relative; a measurement this uncertain counts half


@dataclass(frozen=True)
class ModelPoint:
    """A whole model that was measured: its plan, lowest p20 and p50 in ms, and the trust in each, 0 to 1.

    `searched`: measured in a search; those are given in the order measured. `busy`: measured under load of other
    programs only, which may have slowed all such models alike.
    """

    widths: tuple[int, ...]
    low_ms: float
    p50_ms: float
    low_weight: float = 1.0
    p50_weight: float = 1.0
    searched: bool = False
    busy: bool = False

    @classmethod
    def profiled(cls, widths: Sequence[int] | Widths, measured: ModelMeasurement) -> ModelPoint:
        return cls(
            tuple(int(w) for w in widths),
            measured.low_ms,
            measured.p50_ms,
            low_weight=UNTRUSTED if NOISY in measured.flags else 1.0,
            p50_weight=UNTRUSTED if BUSY in measured.flags else 1.0,
            busy=measured.is_busy,
        )

    @classmethod
    def searched_plan(cls, widths: tuple[int, ...], low_ms: float, p50_ms: float, ci_high_ms: float) -> ModelPoint:
        """A plan measured in a search; the wider its interval, the less it counts."""
        sure = trust(ci_high_ms / p50_ms - 1)
        return cls(widths, low_ms, p50_ms, sure, sure, searched=True)


def trust(sigma: float) -> float:
    """The weight of a measurement with a relative uncertainty of `sigma`."""
    return 1.0 / (1.0 + (sigma / TRUSTED_SIGMA) ** 2)


def slower(drift: float) -> str:
    """`drift`: how many times as long as before a device takes: 1.25 is "25 % slower", 0.8 "25 % faster"."""
    return f"{100 * (drift - 1):.0f} % slower" if drift > 1 else f"{100 * (1 / drift - 1):.0f} % faster"


RIDGE = 0.02  # pull of the scale towards 1 and of the other terms towards 0
HUBER = 1.5  # residuals beyond this many median deviations count less
CONVERTING_BAND_FLOOR = 0.03  # where kernels cut out convert layouts: twelve models vouch for no less
QUICK_BAND_FLOOR = 0.05  # of a quick profile: half of the models, over kernels with wider gaps, vouch for no less
BUSY_ERROR = 0.05  # what a neighbour that was there all the time added at most, in nine of ten cases
HALF_LIFE = 10  # a model measured in a search counts half after this many newer ones
PROFILED_LEVEL_WEIGHT = 2.0  # in the level, all profiled models together count as this many new ones
HINGES_MB = (6.0, 8.0, 10.0)  # weights beyond about this size leave the processor's cache
BOUNDARY, HINGE = "layout conversions", "weights beyond the cache"
TERM_PENALTY = 1.1  # a further term must lower the leave-one-out error by this factor
MIN_MODELS_PER_TERM = 4


def fit(
    models: Sequence[ModelPoint], sums_ms: Floats, weight_mb: Floats, boundary_mb: Floats, *,
    least_band: float = BAND_FLOOR,
) -> Calibration:  # fmt: skip
    """Fits every form that the models can support and keeps the one with the lowest leave-one-out error.

    Of each model (N,): the predicted sum of its kernels, its weights, and what its kernels convert between layouts when
    they are cut out and the whole does not; 0 where the runtime converts nothing.
    """
    data = _Data(models, sums_ms, weight_mb, boundary_mb)
    terms = list[Term]()
    best = _with_boundary(data, 0.0, terms)
    hinged = [_with_boundary(data, hinge_mb, []) for hinge_mb in _hinges(data)]
    if hinged:
        steepest = min(hinged, key=_Fit.score)
        # More weights never make a model faster: a falling hinge has fitted noise.
        rising = [candidate for candidate in hinged if candidate.coefficients[2] >= 0]
        chosen = min(rising, key=_Fit.score, default=best)
        kept = chosen.score() * TERM_PENALTY < best.score()
        terms.append(Term(HINGE, kept, (chosen if rising else steepest).score(), best.score()))
        best = chosen if kept else best
    floor = max(least_band, CONVERTING_BAND_FLOOR if data.boundary_mb.any() else BAND_FLOOR)
    offset, scale, hinge, boundary_slope = best.coefficients
    absolute = np.abs(best.errors)
    return Calibration(
        offset_ms=offset,
        scale=scale,
        p50_ratio=best.level(),
        # Leaving out one of several that are all off by the same does not show it.
        band=max(floor, error_band(absolute, data.error_weights)) + BUSY_ERROR * data.busy_share,
        loo_mape=float(np.average(absolute, weights=data.error_weights)),
        models=len(models),
        hinge_mb=best.hinge_mb,
        hinge_ms_per_mb=hinge,
        boundary_ms_per_mb=boundary_slope,
        terms=tuple(terms),
    )


def weighted_quantile(values: Floats, weights: Floats, quantile: float) -> float:
    """The lowest value with `quantile` of the weight at or below it; the middle of two where both fit.

    Nothing is interpolated towards the next value: a wild one must not pull, however little it weighs.
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    ends = np.searchsorted(reached, [quantile - 1e-9, quantile + 1e-9]).clip(0, len(values) - 1)
    return float(values[order][ends].mean())


class _Data:
    """The models as arrays, with the weights that age and trust give them."""

    def __init__(self, models: Sequence[ModelPoint], sums_ms: Floats, weight_mb: Floats, boundary_mb: Floats) -> None:
        self.sum, self.weight_mb, self.boundary_mb = sums_ms, weight_mb, boundary_mb
        self.low = np.array([m.low_ms for m in models])
        self.p50 = np.array([m.p50_ms for m in models])
        self.searched = np.array([m.searched for m in models])
        low_trust = np.maximum([m.low_weight for m in models], 1e-6)
        p50_trust = np.maximum([m.p50_weight for m in models], 1e-6)
        newer = np.where(self.searched, self.searched.sum() - np.cumsum(self.searched), 0)
        fresh = 0.5 ** (newer / HALF_LIFE)
        self.shape_weights = low_trust * fresh
        profiled = ~self.searched
        self.level_weights = p50_trust * fresh
        if profiled.any():
            self.level_weights[profiled] *= PROFILED_LEVEL_WEIGHT / p50_trust[profiled].sum()
        # A profiled model's p50 was timed alone and its lowest p20 is sure; one measured in a search is timed against
        # the original, and its p50 is what the budget is held against.
        self.error_weights = np.where(self.searched, p50_trust, low_trust) * fresh
        self.busy_share = float(np.average([m.busy for m in models], weights=self.error_weights))

    def __len__(self) -> int:
        return len(self.sum)


class _Fit:
    """One form of the fit, its leave-one-out errors included."""

    def __init__(self, data: _Data, hinge_mb: float, boundary: bool) -> None:
        self._data, self.hinge_mb = data, hinge_mb
        columns = [np.ones(len(data)), data.sum]
        columns.append(np.maximum(0.0, data.weight_mb - hinge_mb) if hinge_mb > 0 else np.zeros(len(data)))
        columns.append(data.boundary_mb if boundary else np.zeros(len(data)))
        self._columns = np.stack(columns, axis=1)
        everything = np.ones(len(data), dtype=bool)
        self._lows = data.low / np.where(data.searched, self._drift(), 1.0)
        solved = self._solve(everything)
        offset, scale, slope, boundary_slope = (float(value) for value in solved)
        self.coefficients = (offset, scale, slope, boundary_slope)
        self._shape = self._columns @ solved
        self.errors = self._left_out_errors()

    def score(self) -> float:
        return float(np.average(np.abs(self.errors), weights=self._data.error_weights))

    def level(self) -> float:
        return self._level(np.ones(len(self._data), dtype=bool), self._shape)

    def _level(self, used: NDArray[np.bool_], shape: Floats) -> float:
        data = self._data
        return weighted_quantile((data.p50 / shape)[used], data.level_weights[used], 0.5)

    def _drift(self) -> float:
        """How much slower the models of the search ran than a fit to the profiled ones says; 1 until a few agree."""
        data = self._data
        profiled = ~data.searched
        if not data.searched.any() or profiled.sum() < 2:
            return 1.0
        self._lows = data.low
        ratios = (data.low / (self._columns @ self._solve(profiled)))[data.searched]
        weights = data.shape_weights[data.searched]
        return weighted_quantile(np.append(ratios, 1.0), np.append(weights, PROFILED_LEVEL_WEIGHT), 0.5)

    def _left_out_errors(self) -> Floats:
        data = self._data
        errors = np.full(len(data), UNKNOWN_ERROR)
        for left_out in range(len(data)):
            rest = np.arange(len(data)) != left_out
            if rest.sum() < 2:
                continue
            shape = self._columns @ self._solve(rest)
            if data.searched[left_out]:
                errors[left_out] = shape[left_out] * self._level(rest, shape) / data.p50[left_out] - 1
            else:
                errors[left_out] = shape[left_out] / data.low[left_out] - 1
        return errors

    def _solve(self, used: NDArray[np.bool_]) -> Floats:
        """Coefficients (4,) by iteratively reweighted least squares on relative errors, drawn to (0, 1, 0, 0).

        Unknowns are scaled to the mean latency, so that the ridge means the same for all.
        """
        columns, y, trusted = self._columns[used], self._lows[used], self._data.shape_weights[used]
        unit = float(np.average(y, weights=trusted))
        sizes = np.maximum(np.abs(columns).max(axis=0), 1e-12)
        units = np.array([unit, 1.0, *(unit / sizes[2:])])
        design, target = columns * units / y[:, None], 1 - columns[:, 1] / y
        weights = trusted
        solved = np.zeros(4)
        for _ in range(8):
            weighted = design * weights[:, None]
            solved = np.linalg.solve(design.T @ weighted + RIDGE * np.eye(4), weighted.T @ target)
            residuals = np.abs(design @ solved - target)
            limit = HUBER * max(weighted_quantile(residuals, trusted, 0.5), 1e-4)
            weights = trusted * np.minimum(1.0, limit / np.maximum(residuals, 1e-12))
        return np.asarray(solved * units + np.array([0.0, 1.0, 0.0, 0.0]))


def _with_boundary(data: _Data, hinge_mb: float, terms: list[Term]) -> _Fit:
    """The fit with the boundary term, or without where that explains nothing: what is spared makes no model slower.

    What was tried is added to `terms`.
    """
    plain = _Fit(data, hinge_mb, False)
    if not data.boundary_mb.any() or _terms(data) < 1 + (hinge_mb > 0):
        return plain
    with_boundary = _Fit(data, hinge_mb, True)
    kept = with_boundary.coefficients[3] < 0 and with_boundary.score() < plain.score()
    terms.append(Term(BOUNDARY, kept, with_boundary.score(), plain.score()))
    return with_boundary if kept else plain


def _terms(data: _Data) -> int:
    """How many terms the models can support besides offset and scale."""
    return len(data) // MIN_MODELS_PER_TERM - 1


def _hinges(data: _Data) -> list[float]:
    return [hinge for hinge in HINGES_MB if _terms(data) >= 1 and (data.weight_mb > hinge).sum() >= 2]
