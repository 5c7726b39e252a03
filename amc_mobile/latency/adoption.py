"""Whether an old table still tells the truth: a few of its kernels measured again, and what follows from the ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from amc_mobile.latency.measurement import KernelMeasurement

ANCHORS = 8
TOLERANCE = 0.05  # of one ratio from 1, or of all from their median
LEAST_MS = 0.003  # shorter kernels are told apart from noise too rarely


@dataclass(frozen=True)
class Verdict:
    """`ratio`: the median of new over old; `spread`: the largest relative distance of one ratio from it.

    "accept": all ratios are 1 within the tolerance. "rescale": all are the same within it. "rebuild": neither.
    """

    action: Literal["accept", "rescale", "rebuild"]
    ratio: float
    spread: float
    ratios: Mapping[str, float]  # label -> new / old

    def to_document(self) -> dict[str, Any]:
        return {"action": self.action, "ratio": self.ratio, "spread": self.spread, "ratios": dict(self.ratios)}

    def text(self) -> str:
        lines = [f"  {ratio:6.3f}  {label}" for label, ratio in self.ratios.items()]
        return "\n".join(
            [f"new over old, {len(lines)} anchors: median {self.ratio:.3f}, spread {self.spread:.1%}", *lines]
        )


def judge(ratios: Mapping[str, float]) -> Verdict:
    values = np.array(list(ratios.values()))
    middle = float(np.median(values))
    spread = float(np.abs(values / middle - 1).max())
    if (np.abs(values - 1) <= TOLERANCE).all():
        return Verdict("accept", middle, spread, ratios)
    return Verdict("rescale" if spread <= TOLERANCE else "rebuild", middle, spread, ratios)


def anchors(kernels: Sequence[KernelMeasurement]) -> list[KernelMeasurement]:
    """Up to eight kernels without flags, spread over the range of latencies."""
    steady = [k for k in kernels if not k.flags and k.low_ms >= LEAST_MS] or list(kernels)
    ordered = sorted(steady, key=lambda k: (k.low_ms, k.key))
    picks = np.unique(np.linspace(0, len(ordered) - 1, min(ANCHORS, len(ordered))).round().astype(int))
    return [ordered[pick] for pick in picks]
