"""What stands behind a report's result: each layer, each episode and epoch, and what was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amc_mobile.latency.calibration import Term


@dataclass(frozen=True)
class LayerRow:
    """One kernel of the exported network, in order of execution; ms as in the latency table (timed alone)."""

    name: str
    kernel_before: str = ""
    kernel_after: str = ""
    channels_before: int | None = None  # outputs
    channels_after: int | None = None
    ms_before: float | None = None
    ms_after: float | None = None
    macs_before: int | None = None
    macs_after: int | None = None

    @property
    def keep_ratio(self) -> float | None:
        if not self.channels_before or self.channels_after is None:
            return None
        return self.channels_after / self.channels_before


@dataclass(frozen=True)
class EpisodePoint:
    """One plan of the search. `predicted` is in the budget's unit."""

    episode: int
    reward: float | None
    predicted: float | None
    measured_ms: float | None = None  # the original's p50 over the measured speed-up
    policy: str = ""
    is_best: bool = False  # its plan is the one that was chosen


@dataclass(frozen=True)
class EpochAccuracy:
    """Accuracy in [0, 1] after one epoch of fine-tuning, on images that training did not see; epoch 0: before it."""

    epoch: int
    top1: float


@dataclass(frozen=True)
class PredictionPoint:
    """One whole network, predicted and measured on the same scale."""

    predicted_ms: float
    measured_ms: float
    kind: Literal["calibration", "search", "final"] = "calibration"


@dataclass(frozen=True)
class Predictions:
    """How far the latency table can be trusted."""

    points: tuple[PredictionPoint, ...] = ()
    band: float | None = None  # relative half width within which 90 % of measurements should fall
    loo_error: float | None = None  # mean relative error, each calibration model left out in turn
    terms: tuple[Term, ...] = ()  # corrections that were tried on these models
    drift: float | None = None  # how many times as long as at the profile the original takes, as last seen
    quick: bool = False  # from a quick profile, which measures a part of the kernels and models


@dataclass(frozen=True)
class KeptGroup:
    """Channels that the search could not touch, and why."""

    name: str
    channels: int
    reason: str
