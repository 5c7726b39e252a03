"""What is measured, and the timed runs as plain data: every sample is kept, everything else is derived.

`low_ms`, the lowest 20th percentile over passes, is what the machine does when nothing else runs: noise only adds
time, and a percentile inside a pass keeps one lucky sample from deciding. `p50_ms` is what a user sees. They are
never mixed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amc_mobile.device.conditions import PARTLY, Conditions
from amc_mobile.device.device import NOTHING_KNOWN, Heat, Pass, PassRecord
from amc_mobile.device.phone_state import FALLBACK
from amc_mobile.errors import InvalidInput

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


def p50_interval_ms(passes: Passes) -> tuple[float, float]:
    """95 % bootstrap interval of the median over all samples.

    Passes are resampled first and samples inside them second (Davison and Hinkley 1997, section 3.8): samples of one
    pass share the state of the machine, and an interval from single samples alone would be too narrow.
    """
    rng = np.random.default_rng(0)
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


# What can be wrong with a measurement, and since when it counts.
NOISY = "NOISY"  # the two lowest passes differ by more than NOISY_TOLERANCE: the quiet machine was not seen twice
BUSY = "BUSY"  # other work took time: it was seen, the anchor drifted, or the p50 is far above the lowest p20
FEW_RUNS = "FEW_RUNS"  # too few samples for a 95 % interval
NOISY_TOLERANCE = 0.05
BUSY_RATIO = 1.25
FEW_SAMPLES = 30
FEW_PASSES = 3  # fewer do not show how passes differ

Samples = tuple[tuple[float, ...], ...]  # one tuple of milliseconds per pass, in the order run


class _Timed:
    """What kernels and models share; `passes` and `conditions` are the fields."""

    passes: tuple[Pass, ...]
    conditions: Conditions

    @cached_property
    def samples_ms(self) -> Samples:
        return tuple(each.samples_ms for each in self.passes)

    @cached_property
    def low_ms(self) -> float:
        """The lowest 20th percentile over the passes: the latency of the quiet machine."""
        return low_ms(self.samples_ms)

    @property
    def is_busy(self) -> bool:
        """Whether no pass saw the device left alone."""
        return all(each.busy for each in self.passes)


@dataclass(frozen=True)
class KernelMeasurement(_Timed):
    """Timed runs of one kernel. Raises InvalidInput without passes."""

    key: str
    label: str
    passes: tuple[Pass, ...]
    conditions: Conditions

    def __post_init__(self) -> None:
        if not self.passes:
            raise InvalidInput(f"{self.label}: no pass was measured", next_step="measure again")

    @cached_property
    def flags(self) -> tuple[str, ...]:
        flags = [] if lowest_two_agree(self.samples_ms, NOISY_TOLERANCE) else [NOISY]
        return tuple([*flags, BUSY] if self.is_busy else flags)


@dataclass(frozen=True)
class ModelMeasurement(_Timed):
    """Timed runs of a whole model. A sample is one inference, or a mean of several where one is too short to time."""

    passes: tuple[Pass, ...]
    conditions: Conditions
    warmup_runs: int
    screen: str = ""  # as Device.screen

    def __post_init__(self) -> None:
        if not self.passes:
            raise InvalidInput("no pass of the model was measured", next_step="measure again")

    @cached_property
    def _all_ms(self) -> tuple[float, ...]:
        return tuple(value for samples in self._typical_ms for value in samples)

    @cached_property
    def _typical_ms(self) -> Samples:
        """Samples of the passes on a device left alone, which a user would see; of all where those are too few."""
        quiet = tuple(each.samples_ms for each in self.passes if not each.busy)
        return quiet if len(quiet) >= FEW_PASSES else self.samples_ms

    @cached_property
    def p50_ms(self) -> float:
        return float(np.percentile(self._all_ms, 50))

    @cached_property
    def p90_ms(self) -> float:
        return float(np.percentile(self._all_ms, 90))

    @cached_property
    def _p50_interval(self) -> tuple[float, float]:
        return p50_interval_ms(self._typical_ms)

    @property
    def ci_low_ms(self) -> float:
        """Lower end of the 95 % bootstrap interval of `p50_ms`."""
        return min(self._p50_interval[0], self.p50_ms)

    @property
    def ci_high_ms(self) -> float:
        """Upper end of the 95 % bootstrap interval of `p50_ms`."""
        return max(self._p50_interval[1], self.p50_ms)

    @property
    def p50_ratio(self) -> float:
        """What the user sees over what the quiet machine does, at least 1 but for ties."""
        return self.p50_ms / self.low_ms

    @cached_property
    def flags(self) -> tuple[str, ...]:
        flags = []
        if not lowest_two_agree(self.samples_ms, NOISY_TOLERANCE):
            flags.append(NOISY)
        if self.p50_ratio > BUSY_RATIO or self.is_busy:
            flags.append(BUSY)
        if len(self._all_ms) < FEW_SAMPLES:
            flags.append(FEW_RUNS)
        if self.conditions.accelerator == PARTLY:
            flags.append(FALLBACK)
        return tuple(flags)

    @property
    def load_ms(self) -> float | None:
        """Time until a session is ready, the median over the passes; None: unknown."""
        return _median(each.record.load_ms for each in self.passes)

    @property
    def first_ms(self) -> float | None:
        """The first inference of a session: the median over the passes."""
        return _median(each.record.first_ms for each in self.passes)

    @property
    def peak_rss_kb(self) -> int | None:
        """The most memory that any pass took, the runtime's own included."""
        return max((kb for each in self.passes if (kb := each.record.peak_rss_kb) is not None), default=None)

    @property
    def switches_per_sample(self) -> float | None:
        """Involuntary context switches, the mean over all samples: above 0, something took the core away."""
        counted = [
            (each.record.switches, len(each.samples_ms)) for each in self.passes if each.record.switches is not None
        ]
        return sum(n for n, _ in counted) / sum(samples for _, samples in counted) if counted else None

    @property
    def mean_mhz(self) -> float | None:
        """The clock of the cores in use, the mean over the time of all passes."""
        return self._by_clock_time("clock_mhz_ms")

    @property
    def top_clock_share(self) -> float | None:
        """The share of that time at the highest clock."""
        return self._by_clock_time("clock_top_ms")

    def _by_clock_time(self, name: str) -> float | None:
        clocked = [(getattr(each.record, name), each.record.clock_ms) for each in self.passes if each.record.clock_ms]
        return sum(value or 0.0 for value, _ in clocked) / sum(ms for _, ms in clocked) if clocked else None

    def to_document(self) -> dict[str, Any]:
        """The derived numbers are for readers; `from_document` takes samples, records and conditions alone."""
        return {
            "p50_ms": self.p50_ms,
            "ci_low_ms": self.ci_low_ms,
            "ci_high_ms": self.ci_high_ms,
            "p90_ms": self.p90_ms,
            "low_ms": self.low_ms,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "peak_rss_kb": self.peak_rss_kb,
            "switches_per_sample": self.switches_per_sample,
            "mean_mhz": self.mean_mhz,
            "top_clock_share": self.top_clock_share,
            "screen": self.screen or None,
            "runs": len(self._all_ms),
            "warmup_runs": self.warmup_runs,
            "flags": list(self.flags),
            "conditions": self.conditions.to_document(),
            "samples_ms": [list(samples) for samples in self.samples_ms],
            "busy": [each.busy for each in self.passes],
            "records": [asdict(each.record) for each in self.passes],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ModelMeasurement:
        """Raises InvalidInput when the document is not a measurement."""
        try:
            samples: Sequence[Sequence[float]] = document["samples_ms"]
            documents = document.get("records")  # measurements of older versions have none
            records = [_record(each) for each in documents] if documents else [NOTHING_KNOWN] * len(samples)
            rows = zip(samples, document["busy"], records, strict=True)
            passes = tuple(Pass(tuple(s), bool(busy), record) for s, busy, record in rows)
            conditions, warmup_runs = Conditions.from_document(document["conditions"]), int(document["warmup_runs"])
            return cls(passes, conditions, warmup_runs, str(document.get("screen") or ""))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"not a measurement of a model: {error!r}") from error


def _record(document: Mapping[str, Any]) -> PassRecord:
    """Raises ValueError for what is no number of a pass."""
    for name, value in document.items():
        if value is not None and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise ValueError(f"{name} = {str(value)[:40]}")
    return PassRecord(**document)


def _median(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.median(numbers)) if numbers else None


@dataclass(frozen=True)
class Window:
    """A few seconds of a sustained measurement. `ended_s`: seconds from its beginning."""

    ended_s: float
    samples_ms: tuple[float, ...]
    heat: Heat

    @cached_property
    def p50_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 50))

    @cached_property
    def p90_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 90))


@dataclass(frozen=True)
class SustainedMeasurement:
    """One model run without a pause, in windows: how its latency changes as the device heats up.

    `busy`: other programs took time too, which slows it as heat does.
    """

    windows: tuple[Window, ...]
    conditions: Conditions
    busy: bool = False

    @cached_property
    def samples_ms(self) -> tuple[float, ...]:
        return tuple(value for window in self.windows for value in window.samples_ms)

    @property
    def p50_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 50))

    @property
    def p90_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 90))

    @property
    def slowdowns(self) -> tuple[float, ...]:
        """Per window, its p50 over that of the fastest window: 1.2 is 20 % slower."""
        fastest_ms = min(window.p50_ms for window in self.windows)
        return tuple(window.p50_ms / fastest_ms for window in self.windows)

    @property
    def seconds(self) -> float:
        return self.windows[-1].ended_s

    def to_document(self) -> dict[str, Any]:
        """The samples are left out: there may be some 10,000 a minute."""
        return {
            "p50_ms": self.p50_ms,
            "p90_ms": self.p90_ms,
            "runs": len(self.samples_ms),
            "seconds": self.seconds,
            "slowdown_at_end": self.slowdowns[-1],
            "flags": [BUSY] if self.busy else [],
            "windows": [
                {
                    "ended_s": window.ended_s,
                    "runs": len(window.samples_ms),
                    "p50_ms": window.p50_ms,
                    "p90_ms": window.p90_ms,
                    "slowdown": slowdown,
                    **asdict(window.heat),
                }
                for window, slowdown in zip(self.windows, self.slowdowns, strict=True)
            ],
            "conditions": self.conditions.to_document(),
        }


@dataclass(frozen=True)
class PairMeasurement:
    """Two models timed in alternating blocks, so that drift meets both alike.

    `speedups`: per round, the median of `before` over the median of `after`.
    """

    before: ModelMeasurement
    after: ModelMeasurement
    speedups: tuple[float, ...]

    @classmethod
    def of(cls, before: ModelMeasurement, after: ModelMeasurement) -> PairMeasurement:
        rounds = zip(before.samples_ms, after.samples_ms, strict=True)
        return cls(before, after, tuple(float(np.median(first) / np.median(second)) for first, second in rounds))

    @classmethod
    def joined(cls, pairs: Sequence[PairMeasurement]) -> PairMeasurement:
        """One measurement of all rounds; `pairs` are of the same two models."""
        befores = tuple(each for pair in pairs for each in pair.before.passes)
        afters = tuple(each for pair in pairs for each in pair.after.passes)
        speedups = tuple(speedup for pair in pairs for speedup in pair.speedups)
        last = pairs[-1]
        return cls(replace(last.before, passes=befores), replace(last.after, passes=afters), speedups)

    @cached_property
    def counted(self) -> tuple[int, ...]:
        """The rounds on a device left alone, which a user would see; all where those are too few."""
        rounds = range(len(self.speedups))
        quiet = tuple(i for i in rounds if not (self.before.passes[i].busy or self.after.passes[i].busy))
        return quiet if len(quiet) >= FEW_PASSES else tuple(rounds)

    @cached_property
    def counted_speedups(self) -> Floats:
        return np.array([self.speedups[i] for i in self.counted])

    @property
    def speedup(self) -> float:
        """How many times faster `after` is: the median over the counted rounds."""
        return float(np.median(self.counted_speedups))

    @cached_property
    def speedup_interval(self) -> tuple[float, float]:
        """95 % interval of `speedup` over the rounds, by the sign test."""
        return median_interval(self.counted_speedups)

    @property
    def quiet_speedup(self) -> float:
        """Of the quiet machine: what other programs took from either model is left out."""
        return self.before.low_ms / self.after.low_ms

    @property
    def flags(self) -> tuple[str, ...]:
        """Of either model: a disturbed original makes the speed-up as unsure as a disturbed pruned network."""
        return tuple(dict.fromkeys([*self.before.flags, *self.after.flags]))

    def to_document(self) -> dict[str, Any]:
        low, high = self.speedup_interval
        return {
            "speedup": self.speedup,
            "speedup_ci_low": low,
            "speedup_ci_high": high,
            "rounds": len(self.speedups),
            "flags": list(self.flags),
            "before": self.before.to_document(),
            "after": self.after.to_document(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> PairMeasurement:
        """Raises InvalidInput when the document is not a pair."""
        try:
            return cls.of(*(ModelMeasurement.from_document(document[side]) for side in ("before", "after")))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"not a measurement of two models: {error!r}") from error


class KernelInfo(Protocol):
    """What a latency table needs to know of a kernel."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str: ...
    def to_document(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class KernelRequest:
    """A kernel to measure. `model` builds the runnable one-kernel model."""

    kernel: KernelInfo
    model: Callable[[], bytes]

    @property
    def key(self) -> str:
        return self.kernel.key

    @property
    def label(self) -> str:
        return self.kernel.label


@dataclass(frozen=True)
class ModelRequest:
    """A whole model to measure: a template at the widths of a plan.

    `template` names network, weights and runtime, so that equal widths of two networks stay apart.
    """

    template: str
    widths: tuple[int, ...]
    model: Callable[[], bytes]

    @property
    def key(self) -> str:
        return model_key(self.template, self.widths)

    @property
    def label(self) -> str:
        return f"the whole model at {' '.join(map(str, self.widths))} channels"


Request = KernelRequest | ModelRequest  # `model` is called once per pass


def model_key(template: str, widths: Sequence[int]) -> str:
    """SHA-256 of the template's name and the widths."""
    document = json.dumps([template, [int(width) for width in widths]])
    return hashlib.sha256(document.encode()).hexdigest()
