"""What a report says: plain data that the workflows fill and the neighbours of this module render.

A step that has not run leaves its field None or its list empty; every rendering then says so. Whether a budget is met
was decided by the gate (`latency.gate`) and is only shown here. What each key means in report.json: docs/report.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from amc_mobile.channels.structure import KeptGroup
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.calibration import Term
from amc_mobile.latency.gate import OPEN, STATUS_OF, Gate, Status, all_passed


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
    channel_step: int | None = None  # the device runs up to so many channels as fast; None: not known
    nodes: tuple[str, ...] = ()  # of the exported graph that run as this kernel: numbers in .tflite, outputs in .onnx

    @property
    def unused_channels(self) -> int | None:
        """So many more output channels would cost no time, up to the device's next step."""
        if self.channels_after is None or self.channels_before is None or self.channel_step is None:
            return None
        return min(-self.channels_after % self.channel_step, self.channels_before - self.channels_after)

    @property
    def keep_ratio(self) -> float | None:
        if not self.channels_before or self.channels_after is None:
            return None
        return self.channels_after / self.channels_before


@dataclass(frozen=True)
class EpisodePoint:
    """One plan of the search. `predicted`: in the budget's unit; of a latency the p50 by the latency table as it was at
    the end of the search, the band not added."""

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
    images: int | None = None


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


FORMAT_VERSION = 1  # 1: first

Scalar = str | int | float | bool | None
Unit = Literal["ms", "macs", "parameters"]
TOP1 = "top-1"
Z_95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Latency:
    """Timed runs of one whole file under the report's conditions."""

    p50_ms: float
    p90_ms: float
    ci_low_ms: float  # 95 % interval of the p50
    ci_high_ms: float
    runs: int | None = None  # timed, warm-up left out
    passes: int | None = None  # fresh processes or sessions
    load_ms: float | None = None  # until a session is ready, median
    first_ms: float | None = None  # the first inference of a session, median
    peak_rss_kb: int | None = None  # the most memory, the runtime's own included
    mean_mhz: float | None = None  # clock of the cores in use
    top_clock_share: float | None = None  # of the time, at the highest clock
    switches_per_sample: float | None = None  # involuntary context switches
    screen: str | None = None  # in Android's words

    def __post_init__(self) -> None:
        for name in ("p50_ms", "p90_ms", "ci_low_ms", "ci_high_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"{name} is {value!r}", next_step="measure again")


@dataclass(frozen=True)
class PassRow:
    """The timed runs of one session, in the order run."""

    file: Literal["original", "pruned"]
    samples_ms: tuple[float, ...]
    is_busy: bool = False  # made under load of other programs
    load_ms: float | None = None
    first_ms: float | None = None
    peak_rss_kb: int | None = None
    mean_mhz: float | None = None
    switches: int | None = None  # involuntary context switches


@dataclass(frozen=True)
class Ratio:
    """Original over pruned p50 from interleaved runs, with its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` (Wilson 1927)."""
    z2 = Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in [0, 1] on `images` images of `split`; for other tasks than classification what `metric` names."""

    top1: float
    images: int | None = None
    split: str = "test"
    metric: str = TOP1

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval; None without the number of images, and for what is no share of them."""
        if not self.images or self.metric != TOP1:
            return None
        return wilson_interval(self.top1, self.images)

    def change_from(self, before: Accuracy) -> tuple[float, float] | None:
        """95 % interval of the change, by Newcombe's method 10 (1998, Statistics in Medicine 17, 873-890).

        It takes the two for independent; on the same images they are not, and the true interval is narrower.
        """
        if self.interval is None or before.interval is None:
            return None
        (low, high), (low_before, high_before) = self.interval, before.interval
        change = self.top1 - before.top1
        return (
            change - math.hypot(self.top1 - low, high_before - before.top1),
            change + math.hypot(high - self.top1, before.top1 - low_before),
        )


@dataclass(frozen=True)
class ModelColumn:
    """One column of original against pruned."""

    latency: Latency | None = None
    predicted_ms: float | None = None  # p50 by the calibrated latency table
    macs: int | None = None
    parameters: int | None = None
    file_bytes: int | None = None  # of the file that was measured
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class AskedBudget:
    """What was asked for. `limit` is in `unit`: ms of p50, MACs for one image, or parameters.

    A share of the original is another number of ms whenever the original is measured. `limit` is that of the gate, and
    every ms of a report is on the scale of the original as the gate measured it; `searched_limit` is what the search
    had, where that differs.
    """

    unit: Unit
    limit: float
    asked: str = ""  # as the user put it, e.g. "--latency-ratio 0.5"
    gate: Gate = OPEN
    searched_limit: float | None = None

    @property
    def search_scale(self) -> float:
        """What the ms of the search are multiplied by in a report: how much longer the original took at the gate."""
        return 1.0 if self.searched_limit is None else self.limit / self.searched_limit


@dataclass(frozen=True)
class FurtherBudget:
    """One more budget that the same plan must meet. `device`: of a latency; empty for counts."""

    asked: str
    unit: Unit
    limit: float
    device: str = ""
    predicted: float | None = None  # in `unit`; of counts the count itself
    gate: Gate = OPEN

    @property
    def status(self) -> Status:
        return STATUS_OF[self.gate.passed]


@dataclass(frozen=True)
class ParityRow:
    """An exported file against torch on the same images."""

    max_abs: float  # largest difference of a logit
    top1_agreement: float  # in [0, 1], of images or, in a detector, of anchors
    samples: int


@dataclass(frozen=True)
class Stage:
    """The accuracy after one step, in the order of the steps: original, pruned, refitted, fine-tuned, tflite, onnx."""

    name: str
    accuracy: Accuracy | None = None
    parity: ParityRow | None = None  # of exported files
    note: str = ""


@dataclass(frozen=True)
class FileRow:
    """One file that the run wrote."""

    path: str
    sha256: str
    file_bytes: int | None = None
    runtime: str = ""  # that `latency` was measured with
    latency: Latency | None = None
    precision: str = "float32"
    sqnr_db: float | None = None  # of a quantised file's logits against torch, on test images
    not_delegated: tuple[str, ...] | None = None  # operators that XNNPACK left to LiteRT's own kernels
    is_outdated: bool = False  # written before the present weights of the network
    problem: str = ""  # what quantising it costs too much of


@dataclass(frozen=True)
class DataFacts:
    """Where the images came from and how many each part got; the parts are disjoint."""

    source: str
    sizes: Mapping[str, int] = field(default_factory=dict)  # train, calibration, reward, test


@dataclass(frozen=True)
class ReportVerdict:
    """Of all budgets and --max-loss together; `cost` and `limit` are those of the first one's gate."""

    status: Status
    cost: float | None
    limit: float | None
    budget_used: float | None = None  # measured p50, or the count, over the limit


@dataclass(frozen=True)
class Report:
    """Everything one run has to show."""

    model: str
    run: str = ""
    created: str = ""  # ISO 8601
    program_version: str = ""
    budget: AskedBudget | None = None
    original: ModelColumn = ModelColumn()
    pruned: ModelColumn | None = None  # None before a search
    speedup: Ratio | None = None
    stages: tuple[Stage, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    episodes: tuple[EpisodePoint, ...] = ()
    finetuning: tuple[EpochAccuracy, ...] = ()
    predictions: Predictions = field(default_factory=Predictions)
    conditions: Mapping[str, Scalar] = field(default_factory=dict)  # as the measurements carry them
    flags: tuple[str, ...] = ()  # what may make the measurements less sure, e.g. NOISY
    data: DataFacts | None = None
    kept_groups: tuple[KeptGroup, ...] = ()
    files: tuple[FileRow, ...] = ()
    settings: Mapping[str, Scalar] = field(default_factory=dict)  # resolved values of every flag
    offline: bool = False  # searched with a table alone, without its device
    further_budgets: tuple[FurtherBudget, ...] = ()
    accuracy_kept: bool | None = None  # on the reward images, as --max-loss asks; None: it was not asked for
    passes: tuple[PassRow, ...] = ()  # of original and pruned file, in the order run
    commands: tuple[str, ...] = ()  # that make the run again
    hashes: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of what went in

    @property
    def metric(self) -> str:
        """The name of every accuracy here."""
        return self.original.accuracy.metric if self.original.accuracy else TOP1

    @property
    def verdict(self) -> ReportVerdict:
        """All budgets must be passed, and the accuracy kept; cost and limit are those of the first budget."""
        if self.budget is None or self.pruned is None:
            return ReportVerdict("NO PLAN", None, self.budget.limit if self.budget else None)
        own, further = self.budget.gate, [budget.gate for budget in self.further_budgets]
        passed = all_passed((gate.passed for gate in (own, *further)), accuracy_kept=self.accuracy_kept)
        is_open = passed is None and own.passed is None and not self.offline
        latency = self.pruned.latency
        used = {
            "ms": latency.p50_ms if latency else None, "macs": self.pruned.macs, "parameters": self.pruned.parameters,
        }[self.budget.unit]  # fmt: skip
        return ReportVerdict(
            "NOT MEASURED" if is_open else STATUS_OF[passed],
            own.cost,
            self.budget.limit,
            used / self.budget.limit if used is not None else None,
        )
