"""From the sum of kernels to the whole model, and how far that can be trusted.

The table's lowest p20 and the p50 that a user sees are two numbers: a calibration tells both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BAND_FLOOR = 0.02
# A search holds a prediction with the band on top against the budget, so that from here on more than a third of the
# budget is given away, and plans that differ by half cannot be told apart: random plans would do as well.
USABLE_BAND = 0.5
COVERAGE = 0.9  # of new plans lie within the band
FEW_FACTOR = 1.5  # of the largest leave-one-out error, where there are too few of them to tell the band
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
        """What speaks against searching with it; empty where it is of use."""
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
