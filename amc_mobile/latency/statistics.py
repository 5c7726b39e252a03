"""The two statistics of this package, and the interval of the second.

`low_ms`, the lowest 20th percentile over passes, is what the machine does when nothing else runs: noise only adds time,
and a percentile inside a pass keeps one lucky sample from deciding. `p50_ms` is what a user sees. They are never mixed.
"""

from __future__ import annotations

import math
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


def _lows_ms(passes: Passes) -> list[float]:
    """`pass_low_ms` of each pass."""
    if len({len(samples) for samples in passes}) == 1:
        lows: list[float] = np.percentile(passes, LOW_PERCENTILE, axis=1).tolist()
        return lows
    return [pass_low_ms(samples) for samples in passes]


def low_ms(passes: Passes) -> float:
    """The lowest 20th percentile over the passes."""
    return min(_lows_ms(passes))


def lowest_two_agree(passes: Passes, tolerance: float) -> bool:
    """Whether the two lowest passes are within `tolerance` (relative): the quiet machine was seen twice."""
    lows = sorted(_lows_ms(passes))
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


def fewest_within(rounds: int, level: float) -> int | None:
    """How many of `rounds` values must be at or under a limit for their median to be so too; None: all do not suffice.

    The sign test (Conover 1999, Practical Nonparametric Statistics, section 3.4): where the true median is at the limit
    or over it, so many values are at or under it with a probability of at most `level`, whatever their distribution.
    Values must be independent. With ten rounds and more it needs no normal distribution and no resampling, whose
    intervals are too narrow for so few.
    """
    tail, fewest = 0.0, None
    for count in range(rounds, 0, -1):
        tail += math.comb(rounds, count) / 2**rounds
        if tail > level:
            break
        fewest = count
    return fewest


def median_interval(values: Floats) -> tuple[float, float]:
    """95 % interval of the median by the sign test, for any distribution; of few values the lowest and highest."""
    ordered = np.sort(values)
    rank = fewest_within(len(ordered), (1 - CONFIDENCE) / 2) or len(ordered)
    return float(ordered[len(ordered) - rank]), float(ordered[rank - 1])
