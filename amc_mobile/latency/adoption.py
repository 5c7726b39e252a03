"""Whether an old table still tells the truth: a few of its kernels measured again, and what follows from the ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from amc_mobile.latency.measurement import KernelMeasurement

ANCHORS = 8
TOLERANCE = 0.05  # of one ratio from 1, or of all from their median
LEAST_MS = 0.02  # shorter kernels are told apart from noise too rarely


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


def anchors(kernels: Sequence[KernelMeasurement], types: Mapping[str, str]) -> list[KernelMeasurement]:
    """Up to eight kernels without flags and long enough to tell, spread over their types and latencies.

    `types`: kernel key -> operator type. Where fewer than eight are long enough, the longest.
    """
    steady = sorted([k for k in kernels if not k.flags] or kernels, key=lambda k: (-k.low_ms, k.key))
    long_enough = [k for k in steady if k.low_ms >= LEAST_MS]
    by_type: dict[str, list[KernelMeasurement]] = {}
    for kernel in long_enough if len(long_enough) >= ANCHORS else steady[:ANCHORS]:
        by_type.setdefault(types[kernel.key], []).append(kernel)
    shares = dict.fromkeys(by_type, 0)
    for _ in range(ANCHORS):  # one to each type in turn, the one with the longest kernel first
        unused = [kind for kind, found in by_type.items() if shares[kind] < len(found)]
        if unused:
            shares[min(unused, key=lambda kind: shares[kind])] += 1
    return [found[i] for kind, found in by_type.items() for i in _spread(len(found), shares[kind])]


def _spread(count: int, picks: int) -> list[int]:
    """`picks` positions of `count`, the first and the last among them."""
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, picks)}) if picks else []
