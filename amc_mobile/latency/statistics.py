"""The two statistics of this package, and the interval of the second.

`low_ms`, the lowest 20th percentile over passes, is what the machine does when nothing else runs: noise only adds time,
and a percentile inside a pass keeps one lucky sample from deciding. `p50_ms` is what a user sees. They are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOW_PERCENTILE = 20.0
RESAMPLES = 1000
CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Passes = Sequence[Sequence[float]]


def pass_low_ms(samples_ms: Sequence[float]) -> float:
    """The 20th percentile of one pass."""
    return float(np.percentile(samples_ms, LOW_PERCENTILE))


def low_ms(passes: Passes) -> float:
    """The lowest 20th percentile over the passes."""
    return min(pass_low_ms(samples) for samples in passes)


def lowest_two_agree(passes: Passes, tolerance: float) -> bool:
    """Whether the two lowest passes are within `tolerance` (relative): the quiet machine was seen twice."""
    lows = sorted(pass_low_ms(samples) for samples in passes)
    return len(lows) >= 2 and lows[1] <= lows[0] * (1 + tolerance)


def interval(statistics: Floats) -> tuple[float, float]:
    """The central 95 % of bootstrap statistics."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(statistics, [tail, 100 - tail])
    return float(low), float(high)


def p50_interval_ms(passes: Passes, *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median over all samples.

    Passes are resampled first and samples inside them second (Davison and Hinkley 1997, section 3.8): samples of one
    pass share the state of the machine, and an interval from single samples alone would be too narrow.
    """
    rng = np.random.default_rng(seed)
    count, longest = len(passes), max(len(samples) for samples in passes)
    if all(len(samples) == longest for samples in passes):
        values = np.asarray(passes, dtype=np.float64)
        chosen = rng.integers(0, count, (RESAMPLES, count))
        inside = rng.integers(0, longest, (RESAMPLES, count, longest))
        return interval(np.median(values[chosen[:, :, None], inside].reshape(RESAMPLES, -1), axis=1))
    arrays = [np.asarray(samples, dtype=np.float64) for samples in passes]
    medians = np.empty(RESAMPLES)
    for r in range(RESAMPLES):
        drawn = [arrays[p] for p in rng.integers(0, count, count)]
        medians[r] = np.median(np.concatenate([rng.choice(a, len(a)) for a in drawn]))
    return interval(medians)
