"""How kernels and whole models are measured.

Every pass opens a fresh session; the order is shuffled anew for each pass, so that drift meets all alike. Kernels stop
when their two lowest passes agree, of those made while anchor and clocks were at their best. Passes made under load
of other programs are made again as soon as the device is left alone.

Where the anchor has drifted, the stretch is thrown away and made again, a bounded number of times; after that its
passes are kept and flagged busy, as are those made under load of other programs.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, TypeVar

from amc_mobile.device.device import Device, Heat, HeatReader, Job, Pass, ResumableDevice, SamplesMs, Timing
from amc_mobile.errors import InvalidConfig
from amc_mobile.latency.measurement import (
    KernelMeasurement,
    KernelRequest,
    ModelMeasurement,
    ModelRequest,
    PairMeasurement,
    Request,
    SustainedMeasurement,
    Window,
    low_ms,
    pass_low_ms,
)
from amc_mobile.latency.table import LatencyTable
from amc_mobile.store import parse_object

READINGS = 3
ANCHOR_MS = 0.1  # the best length of an anchor: long enough to be timed well, and cheap


class Anchor:
    """A kernel that is timed after every block of passes. `lowest_ms`: its lowest reading so far."""

    def __init__(self, job: Job, *, lowest_ms: float) -> None:
        self._job = job
        self.lowest_ms = lowest_ms

    @property
    def key(self) -> str:
        return self._job.key

    def first_jobs(self) -> list[Job]:
        """What to run before the first block, for a level to compare with; nothing later."""
        return [] if math.isfinite(self.lowest_ms) else self.jobs()

    def jobs(self) -> list[Job]:
        """What to run after a block: several readings, since a single one may meet a hiccup."""
        return [self._job] * READINGS

    def see(self, readings: Sequence[SamplesMs]) -> None:
        self.lowest_ms = min([self.lowest_ms, *(pass_low_ms(samples) for samples in readings)])

    def is_steady(self, readings: Sequence[SamplesMs]) -> bool:
        """Whether the lowest of these readings is within ANCHOR_DRIFT of the lowest before."""
        before = self.lowest_ms
        self.see(readings)
        return min(pass_low_ms(samples) for samples in readings) <= before * (1 + ANCHOR_DRIFT)


def best_anchor(measured: Mapping[str, Sequence[Pass]]) -> str | None:
    """The key whose latency is nearest to ANCHOR_MS; None where nothing was measured."""
    distances = {
        key: abs(math.log(low_ms([p.samples_ms for p in passes]) / ANCHOR_MS))
        for key, passes in measured.items()
        if passes
    }
    return min(distances, key=distances.__getitem__, default=None)


# The fewest runs that gave kernels within 1 % and whole models within 2 % on a desktop CPU.
KERNEL_SAMPLES = 4
KERNEL_SAMPLE_MS = 0.25
KERNEL_PASS_S = 1.0  # slow kernels take fewer samples
MODEL_SAMPLE_MS = 0.2  # longer models: a sample is one inference
MODEL_PASS_S = 1.0
AGREEMENT = 0.01  # the two lowest passes of a kernel, relative
WARMUP_RUNS = 4  # the fewest
# Only where the device has rested, as before a batch. Passes follow each other without a rest, so that the clocks stay
# up, and what a fresh session lacks, memory and caches, it has after some runs: the warm-up sees that its runs get no
# shorter. At 0.5 s for each pass of some 300 kernels a profile would take 8 minutes longer.
KERNEL_WARMUP_S = 0.1
MODEL_WARMUP_S = 0.5
BUSY_FACTOR = 3  # times as many passes under load of other programs: one of them will be nearly undisturbed
ANCHOR_DRIFT = 0.05  # relative; an anchor or a clock that is worse by more makes passes count as slow
SEED = 0  # of the order of passes, and of the shares of several phones


@dataclass(frozen=True)
class ProtocolConfig:
    """How many passes are made, and how; the rest are constants of this module."""

    min_passes: int = 3
    max_passes: int = 10
    agreement_us: float = 0.1  # or within AGREEMENT: a kernel of a few microseconds cannot do better
    model_passes: int = 10
    model_samples: int = 20
    cadence_fps: float = 0.0  # runs per second of a whole model, as an app makes them; 0: back to back
    pair_rounds: int = 10
    anchor_every: int = 40  # passes
    anchor_repeats: int = 2  # in a row
    anchor_total_repeats: int = 10  # in all: a busy machine must not take for ever
    cpu_time: bool = False  # benchmarks only: the table and every budget speak of wall time

    def __post_init__(self) -> None:
        for name in ("min_passes", "model_passes", "model_samples", "pair_rounds", "anchor_every"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} = {getattr(self, name)} must be at least 1")
        if self.max_passes < self.min_passes:
            raise InvalidConfig(f"max_passes = {self.max_passes} is below min_passes = {self.min_passes}")
        if not self.cadence_fps >= 0:
            raise InvalidConfig(f"cadence_fps = {self.cadence_fps} must not be negative")

    @property
    def kernel_timing(self) -> Timing:
        return Timing(
            KERNEL_SAMPLES, KERNEL_SAMPLE_MS, WARMUP_RUNS, KERNEL_PASS_S, cpu_time=self.cpu_time,
            warmup_s=KERNEL_WARMUP_S,
        )  # fmt: skip

    @property
    def model_timing(self) -> Timing:
        back_to_back = Timing(
            self.model_samples, MODEL_SAMPLE_MS, WARMUP_RUNS, MODEL_PASS_S, cpu_time=self.cpu_time,
            warmup_s=MODEL_WARMUP_S,
        )  # fmt: skip
        if not self.cadence_fps:
            return back_to_back
        # A second of samples after half a second in which the clocks come down.
        return replace(
            back_to_back,
            samples=max(self.model_samples, math.ceil(self.cadence_fps)),
            warmup_runs=max(WARMUP_RUNS, math.ceil(self.cadence_fps / 2)),
            max_s=2 * MODEL_PASS_S,
            period_ms=1000 / self.cadence_fps,
            warmup_s=0.0,
        )

    def is_kernel_done(self, passes: Sequence[Pass]) -> bool:
        """The stop rule: the two lowest of at least `min_passes` passes agree, or `max_passes` were made.

        Under load of other programs BUSY_FACTOR times as many passes are the least: a slow phase may hold for a few.
        """
        quiet = sum(not p.busy for p in passes)
        fewest = self.min_passes * (1 if quiet >= self.min_passes else BUSY_FACTOR)
        if len(passes) < fewest or len(passes) >= self.max_passes:
            return len(passes) >= self.max_passes
        lows = sorted(pass_low_ms(p.samples_ms) for p in passes)
        return len(lows) < 2 or lows[1] - lows[0] <= max(lows[0] * AGREEMENT, self.agreement_us / 1000)

    def is_model_done(self, passes: Sequence[Pass]) -> bool:
        """`model_passes` on a device left alone, or BUSY_FACTOR times as many in all."""
        quiet = sum(not p.busy for p in passes)
        return quiet >= self.model_passes or len(passes) >= BUSY_FACTOR * self.model_passes


DEFAULT = ProtocolConfig()
QUICK = ProtocolConfig(min_passes=2, max_passes=3, model_passes=4)  # a later profile adds the passes that lack


MAX_COUNT = 1_000_000_000
FORMAT_VERSION = 1  # 1: stretches of indices into keys, passes stored before, the anchor and the repeats


@dataclass(frozen=True)
class StretchPlan:
    """The stretches of one batch, in order, and where the protocol stood when it began.

    `stored`: passes by key that were in the table then; `anchor`: its key, "" for none; `lowest_ms`: its level,
    infinite before the first reading; `in_a_row`, `repeats_left`: of the bounded repeats.
    """

    stretches: tuple[tuple[str, ...], ...]
    stored: Mapping[str, int]
    anchor: str
    lowest_ms: float
    in_a_row: int
    repeats_left: int

    def to_text(self) -> str:
        keys = list(dict.fromkeys(key for stretch in self.stretches for key in stretch))
        numbers = {key: number for number, key in enumerate(keys)}
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "keys": keys,
                "stored": [self.stored[key] for key in keys],
                "stretches": [[numbers[key] for key in stretch] for stretch in self.stretches],
                "anchor": self.anchor,
                "lowest_ms": self.lowest_ms if math.isfinite(self.lowest_ms) else None,
                "in_a_row": self.in_a_row,
                "repeats_left": self.repeats_left,
            }
        )

    @classmethod
    def from_text(cls, text: str) -> StretchPlan | None:
        """None for a text that is no plan: it comes from a phone, where others may write."""
        try:
            document = parse_object(text)
            if document["format_version"] != FORMAT_VERSION:
                return None
            keys = [str(key) for key in document["keys"]]
            lowest = document["lowest_ms"]
            return cls(
                tuple(tuple(keys[_count(number)] for number in stretch) for stretch in document["stretches"]),
                dict(zip(keys, map(_count, document["stored"]), strict=True)),
                str(document["anchor"]),
                math.inf if lowest is None else float(lowest),
                _count(document["in_a_row"]),
                _count(document["repeats_left"]),
            )
        except (ValueError, TypeError, KeyError, IndexError, OverflowError):
            return None

    def fits(self, keys: Collection[str], stored: Mapping[str, int]) -> bool:
        """Whether all of it is among `keys`, and the table still has what it had."""
        known = all(key in keys and stored[key] >= count for key, count in self.stored.items())
        return known and (not self.anchor or self.anchor in keys)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{value!r} is no count")
    return value


class StoredStretches:
    """Which stretches of a plan, as they come again, the table has already: a stretch is stored as a whole."""

    def __init__(self, plan: StretchPlan, stored: Mapping[str, int]) -> None:
        """`stored`: passes by key that are in the table now."""
        self._new = Counter({key: stored[key] - count for key, count in plan.stored.items()})

    def holds(self, stretch: Sequence[str]) -> bool:
        counts = Counter(stretch)
        if any(self._new[key] < count for key, count in counts.items()):
            return False
        self._new -= counts
        return True


SHORTEST_CLOCK_MS = 200.0  # the kernel counts in steps of 10 ms


class DeviceState(NamedTuple):
    """The device during a stretch: the anchor's reading after it, and the mean clock; None: unknown."""

    anchor_ms: float | None
    mhz: float | None


class Stretch(NamedTuple):
    """`passes`: (key, pass) in the order made; `under_load`: whether other programs ran meanwhile."""

    passes: list[tuple[str, Pass]]
    under_load: bool
    state: DeviceState


def is_busy(device: Device) -> bool:
    """Whether other programs ran when the device was last looked at."""
    neighbours = device.neighbours()
    return neighbours is not None and neighbours.is_busy


def _mean_mhz(timed: Sequence[Pass]) -> float | None:
    clocked = [(p.record.clock_mhz_ms or 0.0, p.record.clock_ms) for p in timed if p.record.clock_ms]
    total_ms = sum(ms for _, ms in clocked)
    return sum(mhz_ms for mhz_ms, _ in clocked) / total_ms if total_ms >= SHORTEST_CLOCK_MS else None


WINDOW_S = 5.0
FEWEST_WINDOWS = 4  # fewer do not show how latency changes
MOST_SAMPLES = 100_000  # of one session, as the runner on phones has it
T = TypeVar("T")
OnResult = Callable[[int, int, str], None]  # done, total, the key that is done


def measure_kernels(
    device: Device,
    requests: Mapping[str, KernelRequest],
    *,
    table: LatencyTable | None = None,
    anchor: KernelRequest | None = None,
    on_result: OnResult | None = None,
    config: ProtocolConfig = DEFAULT,
) -> dict[str, KernelMeasurement]:
    """Measures kernels until each has enough passes. `requests`: by key.

    With a `table`, passes already in it under the device's conditions count, and new ones are stored as they are made:
    after a kill the same call goes on, with what a phone went on to measure meanwhile. `anchor`: a kernel of some
    0.1 ms; where none is given, a request that was measured already, else the middle one. It is held against its
    passes in the table from the first reading on. Raises DeviceError naming the kernel that does not run.
    """
    if table is not None:
        table.add_kernels(request.kernel for request in requests.values())
    run = _Run(
        device, requests, table, config, on_result, timing=config.kernel_timing, is_done=config.is_kernel_done,
        at_least=config.min_passes, most=config.max_passes,
    )  # fmt: skip
    made = run.all_passes(anchor)
    conditions = device.conditions()
    return {
        key: KernelMeasurement(key, request.label, tuple(made[key]), conditions) for key, request in requests.items()
    }


def measure_models(
    device: Device,
    requests: Mapping[str, ModelRequest],
    *,
    table: LatencyTable | None = None,
    anchor: KernelRequest | None = None,
    on_result: OnResult | None = None,
    config: ProtocolConfig = DEFAULT,
) -> dict[str, ModelMeasurement]:
    """Measures several whole models, their passes interleaved in shuffled order. Resumes from `table` as kernels do."""
    if table is not None:
        table.add_models(requests.values())
    run = _Run(
        device, requests, table, config, on_result, timing=config.model_timing, is_done=config.is_model_done,
        at_least=config.model_passes,
    )  # fmt: skip
    made = run.all_passes(anchor)
    conditions = device.conditions()
    return {key: ModelMeasurement(tuple(made[key]), conditions, WARMUP_RUNS) for key in requests}


def measure_model(device: Device, model: bytes, config: ProtocolConfig = DEFAULT) -> ModelMeasurement:
    """Measures one whole model. Raises DeviceError when it does not run."""
    job = Job("model", "the model", lambda: model, config.model_timing)

    with device.session():
        made, quiet = _until_steady(device, config, lambda: list(device.passes([job] * config.model_passes)))
    passes = tuple(replace(p, busy=not quiet) for p in made)
    return ModelMeasurement(passes, device.conditions(), config.model_timing.warmup_runs, device.screen())


def measure_sustained(
    device: Device,
    model: bytes,
    seconds: float,
    *,
    on_window: Callable[[float], None] | None = None,
    config: ProtocolConfig = DEFAULT,
) -> SustainedMeasurement:
    """Runs one model for `seconds` without letting the device cool, in windows of at most WINDOW_S.

    Each window is a session of its own: loading the model between two takes some milliseconds. `on_window`: given the
    seconds so far. Raises DeviceError when the model does not run.
    """
    count = max(FEWEST_WINDOWS, math.ceil(seconds / WINDOW_S))
    timing = replace(config.model_timing, samples=MOST_SAMPLES, warmup_runs=WARMUP_RUNS, max_s=seconds / count)
    job = Job("model", "the model", lambda: model, timing)
    windows: list[Window] = []
    with device.session():
        began = time.monotonic()
        for timed in device.passes([job] * count):
            heat = device.heat() if isinstance(device, HeatReader) else Heat()
            record = timed.record
            if record.clock_ms and record.clock_mhz_ms is not None:
                heat = replace(heat, clock_mhz=record.clock_mhz_ms / record.clock_ms)  # the mean of the whole window
            windows.append(Window(time.monotonic() - began, timed.samples_ms, heat))
            if on_window:
                on_window(windows[-1].ended_s)
        device.is_steady()  # looks for other programs; being hot is no fault here
        busy = is_busy(device)
    return SustainedMeasurement(tuple(windows), device.conditions(), busy)


def measure_pair(device: Device, before: bytes, after: bytes, config: ProtocolConfig = DEFAULT) -> PairMeasurement:
    """Times two models in alternating blocks, before-after-after-before, in fresh sessions per round."""
    jobs = [
        Job("before", "the original model", lambda: before, config.model_timing),
        Job("after", "the pruned model", lambda: after, config.model_timing),
    ]
    with device.session():
        rounds, quiet = _until_steady(
            device, config, lambda: list(device.alternate(jobs[0], jobs[1], config.pair_rounds))
        )
    conditions = device.conditions()
    first, second = (
        ModelMeasurement(
            tuple(replace(p[which], busy=not quiet) for p in rounds),
            conditions,
            WARMUP_RUNS,
            device.screen(),
        )
        for which in (0, 1)
    )
    return PairMeasurement.of(first, second)


def _until_steady(device: Device, config: ProtocolConfig, attempt: Callable[[], T]) -> tuple[T, bool]:
    """The first attempt during which the device stayed steady, else the last; and whether it was quiet meanwhile."""
    for _ in range(config.anchor_repeats + 1):
        made = attempt()
        if device.is_steady():
            return made, not is_busy(device)
        device.settle()
    return made, False


class _Run:
    """One call of the protocol over many requests, which are made in stretches: a pass per key, then the anchor's.

    `requests`: by key. `is_done`: of the passes of a key that count; `at_least`: no key is done with fewer. `most`:
    with fewer than this, passes made while the device was slow do not count; 0: they always do. With a `table`, a
    device that can goes on after a kill.
    """

    def __init__(
        self, device: Device, requests: Mapping[str, Request], table: LatencyTable | None, config: ProtocolConfig,
        on_result: OnResult | None, *, timing: Timing, is_done: Callable[[Sequence[Pass]], bool], at_least: int,
        most: int = 0,
    ) -> None:  # fmt: skip
        self._device, self._requests, self._table, self._config = device, requests, table, config
        self._on_result, self._timing, self._is_done, self._at_least = on_result, timing, is_done, at_least
        self._most = most
        self._conditions = device.conditions()
        self._passes: dict[str, list[Pass]] = {key: [] for key in requests}
        if table is not None:
            self._passes |= {key: list(made) for key, made in table.passes(self._conditions, requests).items()}
        # By key: how many of its first passes do not count if they are busy.
        self._outdated = dict.fromkeys(requests, 0)
        self._outdatings_left = self._repeats_left = config.anchor_total_repeats
        self._in_a_row = 0
        self._states: dict[str, list[DeviceState | None]] = {
            key: [None] * len(made) for key, made in self._passes.items()
        }
        self._anchor: Anchor | None = None
        self._highest_mhz = 0.0
        self._has_busy = any(p.busy for made in self._passes.values() for p in made)

    def all_passes(self, anchor_request: Request | None) -> dict[str, list[Pass]]:
        """Passes by key."""
        passes = self._passes
        if not self._has_busy and all(map(self._is_done, passes.values())):
            return passes
        order, length = random.Random(SEED), self._config.anchor_every
        with self._device.session():
            self._outdate()
            todo = self._unfinished_keys()
            plan = self._unfinished_plan(anchor_request)
            if plan is not None:  # whose count of repeats goes on
                self._in_a_row, self._repeats_left = plan.in_a_row, plan.repeats_left
            self._anchor = self._choose_anchor(anchor_request, todo, plan)
            waiting: list[Sequence[str]] = list(plan.stretches) if plan else []
            old = StoredStretches(plan, {key: len(made) for key, made in passes.items()}) if plan else None
            while todo:
                if not waiting:
                    # Rounds that every key needs in any case can be given to the device at once.
                    rounds = max(1, self._at_least - max(len(self._counted(key)) for key in todo))
                    queue = [key for _ in range(rounds) for key in order.sample(todo, len(todo))]
                    waiting = [queue[start : start + length] for start in range(0, len(queue), length)]
                left = set(todo)
                for stretch in self._make(waiting):
                    self._has_busy |= stretch.under_load
                    if not (old and old.holds([key for key, _ in stretch.passes])):
                        self._keep(stretch, left)
                waiting, old = [], None
                self._outdate()
                todo = self._unfinished_keys()
        return passes

    def _unfinished_keys(self) -> list[str]:
        return [key for key in self._passes if not self._is_done(self._counted(key))]

    def _keep(self, stretch: Stretch, left: set[str]) -> None:
        """Stores a stretch, and reports the keys of `left` that are done with it."""
        if self._table is not None:
            self._table.add_passes(self._conditions, stretch.passes, warmup_runs=self._timing.warmup_runs)
        self._highest_mhz = max(self._highest_mhz, stretch.state.mhz or 0.0)
        for key, p in stretch.passes:
            self._passes[key].append(p)
            self._states[key].append(stretch.state)
            if key in left and self._is_done(self._counted(key)):
                left.discard(key)
                if self._on_result:
                    self._on_result(len(self._passes) - len(left), len(self._passes), key)

    def _make(self, stretches: Sequence[Sequence[str]]) -> Iterator[Stretch]:
        """Makes a pass per key. A stretch that is made again comes after those made along with it."""
        waiting = list(stretches)
        while waiting:
            count = max(1, self._device.jobs_per_batch // self._config.anchor_every)
            batch, waiting = waiting[:count], waiting[count:]
            again = []
            for keys, timed, steady, state in self._batch(batch):
                self._in_a_row = 0 if steady else self._in_a_row + 1
                if steady or self._in_a_row > self._config.anchor_repeats or self._repeats_left == 0:
                    under_load = is_busy(self._device)
                    passes = [replace(p, busy=under_load or not steady) for p in timed]
                    yield Stretch(list(zip(keys, passes, strict=True)), under_load, state)
                else:
                    self._repeats_left -= 1
                    again.append(keys)
            if again:
                self._device.settle()
                waiting = again + waiting

    def _batch(
        self, stretches: Sequence[Sequence[str]]
    ) -> Iterator[tuple[Sequence[str], list[Pass], bool, DeviceState]]:
        """For each stretch as it comes: keys, what was timed, whether the device stayed the same, and its state."""
        anchor = self._anchor
        first = anchor.first_jobs() if anchor else []
        last = anchor.jobs() if anchor else []
        jobs = list(first)
        for keys in stretches:
            requests = [self._requests[key] for key in keys]
            jobs += [Job(request.key, request.label, request.model, self._timing) for request in requests] + last
        with closing(self._start(jobs, stretches)) as made:
            if anchor is not None:
                anchor.see([p.samples_ms for p in islice(made, len(first))])
            for position, keys in enumerate(stretches):
                timed = list(islice(made, len(keys)))
                readings = list(islice(made, len(last)))
                steady = anchor.is_steady([p.samples_ms for p in readings]) if anchor else True
                # Heat shows in the anchor as well; the device itself is asked when it has nothing to do.
                if position == len(stretches) - 1:
                    steady = steady and self._device.is_steady()
                anchor_ms = min((pass_low_ms(p.samples_ms) for p in readings), default=None)
                yield keys, timed, steady, DeviceState(anchor_ms, _mean_mhz([*timed, *readings]))

    def _start(self, jobs: Sequence[Job], stretches: Sequence[Sequence[str]]) -> Generator[Pass, None, None]:
        if self._table is None or not isinstance(self._device, ResumableDevice):
            return self._device.passes(jobs)
        anchor = self._anchor
        plan = StretchPlan(
            tuple(tuple(keys) for keys in stretches),
            {key: len(self._passes[key]) for keys in stretches for key in keys},
            anchor.key if anchor else "",
            anchor.lowest_ms if anchor else math.inf,
            self._in_a_row,
            self._repeats_left,
        )
        return self._device.passes(jobs, plan=plan.to_text())

    def _counted(self, key: str) -> list[Pass]:
        """The passes that count towards being done."""
        outdated = self._outdated[key]
        made = list(zip(self._passes[key], self._states[key], strict=True))
        kept = [(p, state) for number, (p, state) in enumerate(made) if number >= outdated or not p.busy]
        if len(kept) < self._most:
            kept = [(p, state) for p, state in kept if p.busy or not self._was_slow(state)]
        return [p for p, _ in kept]

    def _was_slow(self, state: DeviceState | None) -> bool:
        """Whether anchor or clocks have done better at another time: passes may agree on a slow device."""
        if state is None:
            return False
        lowest_ms = self._anchor.lowest_ms if self._anchor else math.inf
        is_behind = state.anchor_ms is not None and state.anchor_ms > lowest_ms * (1 + ANCHOR_DRIFT)
        return is_behind or (state.mhz is not None and state.mhz < self._highest_mhz * (1 - ANCHOR_DRIFT))

    def _outdate(self) -> None:
        """Passes made under load do not count any more once the device is left alone."""
        neighbours = self._device.neighbours()
        if self._has_busy and neighbours is not None and not neighbours.is_busy and self._outdatings_left > 0:
            self._outdated = {key: len(made) for key, made in self._passes.items()}
            self._has_busy = False
            self._outdatings_left -= 1

    def _unfinished_plan(self, anchor: Request | None) -> StretchPlan | None:
        """What a killed process left on the device, where it is a part of the present work."""
        if self._table is None or not isinstance(self._device, ResumableDevice):
            return None
        plan = StretchPlan.from_text(self._device.unfinished())
        counts = {key: len(made) for key, made in self._passes.items()}
        if plan is None or not plan.fits({*counts, anchor.key} if anchor else counts, counts):
            return None
        return plan if anchor is None or anchor.key == plan.anchor else None

    def _choose_anchor(self, request: Request | None, todo: Sequence[str], plan: StretchPlan | None) -> Anchor | None:
        if plan is not None and not plan.anchor:
            return None
        if plan is None and len(todo) < 2 and request is None:
            return None
        if request is None:
            quiet = {key: [p for p in made if not p.busy] for key, made in self._passes.items()}
            proven = {key: made for key, made in quiet.items() if len(made) >= self._config.min_passes}
            request = self._requests[plan.anchor if plan else best_anchor(proven) or todo[len(todo) // 2]]
        passes: Sequence[Pass] = self._passes.get(request.key, ())
        if not passes and self._table is not None:
            passes = self._table.passes(self._conditions, [request.key]).get(request.key, ())
        # More samples than a kernel's pass takes: one reading judges a whole stretch.
        timing = replace(self._config.kernel_timing, samples=8)
        lowest_ms = plan.lowest_ms if plan else min((pass_low_ms(p.samples_ms) for p in passes), default=math.inf)
        job = Job(request.key, "the anchor", request.model, timing)
        return Anchor(job, lowest_ms=lowest_ms)
