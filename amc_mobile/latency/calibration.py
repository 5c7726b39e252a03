"""From the sum of kernels to the whole model: an affine fit to whole models measured on the same device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RIDGE = 0.02  # pull of the scale towards 1 and of the offset towards 0
HUBER = 1.5  # residuals beyond this many median deviations count less
BAND_FLOOR = 0.02
BAND_FACTOR = 1.5  # of the 90 % quantile of leave-one-out errors: covered 88-97 % of held-out plans


@dataclass(frozen=True)
class Calibration:
    """`p50 = (offset + scale x sum of kernels) x p50_ratio`.

    The table speaks of a quiet machine (lowest p20), a budget of the p50 that a user sees: `p50_ratio` is their ratio
    on the whole models measured. `band`: relative error that a prediction stays within, from leave-one-out errors.
    """

    offset_ms: float
    scale: float
    p50_ratio: float
    band: float
    loo_mape: float
    models: int

    def p50_ms(self, sums_ms: Floats) -> Floats:
        return np.asarray((self.offset_ms + self.scale * sums_ms) * self.p50_ratio)

    def to_document(self) -> dict[str, Any]:
        return asdict(self)


def fit(sums_ms: Floats, lows_ms: Floats, p50s_ms: Floats) -> Calibration:
    """`sums_ms`: predicted sums; `lows_ms`, `p50s_ms`: lowest p20 and p50 measured of the same whole models."""
    offset, scale = _robust_affine(sums_ms, lows_ms)
    errors = []
    for left_out in range(len(sums_ms)):
        rest = np.arange(len(sums_ms)) != left_out
        if rest.sum() >= 2:
            o, s = _robust_affine(sums_ms[rest], lows_ms[rest])
            errors.append((o + s * sums_ms[left_out]) / lows_ms[left_out] - 1)
    absolute = np.abs(errors) if errors else np.array([0.1])
    return Calibration(
        offset_ms=offset,
        scale=scale,
        p50_ratio=float(np.median(p50s_ms / lows_ms)),
        band=max(BAND_FLOOR, BAND_FACTOR * float(np.quantile(absolute, 0.9))),
        loo_mape=float(absolute.mean()),
        models=len(sums_ms),
    )


def _robust_affine(x: Floats, y: Floats) -> tuple[float, float]:
    """(offset, scale) of y by iteratively reweighted least squares on relative errors, with a ridge prior (0, 1)."""
    weights = np.ones(len(x))
    offset, scale = 0.0, 1.0
    unit = float(np.mean(y))
    for _ in range(10):
        # Unknowns: offset / unit and scale - 1, so that the ridge means the same for both.
        design = np.stack([unit / y, x / y], axis=1) * weights[:, None] ** 0.5
        target = (1 - x / y) * weights**0.5
        a, b = np.linalg.solve(design.T @ design + RIDGE * np.eye(2), design.T @ target)
        offset, scale = float(a * unit), float(1 + b)
        residuals = np.abs((offset + scale * x) / y - 1)
        limit = HUBER * max(float(np.median(residuals)), 1e-4)
        weights = np.minimum(1.0, limit / np.maximum(residuals, 1e-12))
    return offset, scale
