"""How well the latency table foretold whole models."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from amc_mobile.latency.calibration import COVERAGE
from amc_mobile.report.details import Predictions


@dataclass(frozen=True)
class PredictionQuality:
    """Relative errors are (measured - predicted) / predicted, so that the band is the same on both sides."""

    models: int
    kinds: tuple[tuple[str, int], ...]
    mean_error: float  # absolute
    bias: float
    rank_correlation: float | None  # Spearman; None below three models or without spread
    covered: float | None  # share of the models inside the band

    @property
    def breaks_promise(self) -> bool:
        """Whether more models are outside the band than a band of COVERAGE leaves out, by more than one."""
        outside = 0.0 if self.covered is None else (1 - self.covered) * self.models
        return outside > (1 - COVERAGE) * self.models + 1


def prediction_quality(predictions: Predictions) -> PredictionQuality | None:
    """None without points."""
    points = predictions.points
    if not points:
        return None
    predicted = np.array([point.predicted_ms for point in points])
    measured = np.array([point.measured_ms for point in points])
    errors = measured / predicted - 1
    covered = None if predictions.band is None else float(np.mean(np.abs(errors) <= predictions.band))
    return PredictionQuality(
        models=len(points),
        kinds=tuple(Counter(point.kind for point in points).items()),
        mean_error=float(np.mean(np.abs(errors))),
        bias=float(np.mean(errors)),
        rank_correlation=_spearman(predicted, measured),
        covered=covered,
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    if len(a) < 3 or not ranks_a.std() or not ranks_b.std():
        return None
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])
