"""Whole models that were measured, and how far each number of theirs can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_mobile.latency.measurement import BUSY, NOISY, ModelMeasurement

Widths = NDArray[np.int64]
UNTRUSTED = 0.2  # weight of a number that other work on the machine may have spoilt
TOLD_DRIFT = 0.05  # relative; a p50 measured twice differs by less than this on a device left alone
DRIFT_REMEDY = "close other programs and let it cool down, then run the step again; if it stays, `amc-mobile profile`"
TRUSTED_SIGMA = 0.02  # relative; a measurement this uncertain counts half


@dataclass(frozen=True)
class ModelPoint:
    """A whole model in the calibration: its plan, lowest p20 and p50 in ms, and the trust in each, 0 to 1."""

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
    def from_search(cls, widths: Sequence[int], row: Mapping[str, float]) -> ModelPoint:
        """`row`: what the search keeps of a plan; the wider its interval, the less it counts."""
        sigma = row["ci_high_ms"] / row["measured_ms"] - 1
        sure = trust(sigma)
        return cls(tuple(int(w) for w in widths), row["low_ms"], row["measured_ms"], sure, sure, searched=True)


@dataclass(frozen=True)
class WholeModel:
    """One whole model that was measured, and the predicted sum of its kernels.

    `boundary_mb`: what its kernels convert between layouts when they are cut out, and the whole does not; 0 where the
    runtime converts nothing.
    `low_weight`, `p50_weight`: trust in either number, 0 to 1. `searched`: measured in a search; those are given in the
    order measured. `busy`: measured beside other programs only, which may have slowed all such models alike.
    """

    sum_ms: float
    low_ms: float
    p50_ms: float
    weight_mb: float = 0.0
    boundary_mb: float = 0.0
    low_weight: float = 1.0
    p50_weight: float = 1.0
    searched: bool = False
    busy: bool = False


def trust(sigma: float) -> float:
    """The weight of a measurement with a relative uncertainty of `sigma`."""
    return 1.0 / (1.0 + (sigma / TRUSTED_SIGMA) ** 2)


def slower(drift: float) -> str:
    """`drift`: how many times as long as before a device takes: 1.25 is "25 % slower", 0.8 "25 % faster"."""
    return f"{100 * (drift - 1):.0f} % slower" if drift > 1 else f"{100 * (1 / drift - 1):.0f} % faster"
