"""What a device does for a measurement: passes, each in a fresh session, and a look at the load of other programs.

Another program that is there from the first reading on slows every pass alike, so no anchor shows it; the kernel's
counts of processor time do.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import AmcMobileError, DeviceError, InvalidConfig, InvalidInput

# Judgement: a core that was left alone took 0.07. A neighbour that took half of the core measured on slowed full
# networks by 3 to 11 %, one on another core MobileNet-V2 by up to 8 %; networks of half the width by 1 % at most.
BUSY_CORES = 0.25
WINDOW_S = 0.5  # the kernel counts in hundredths of a second
POLL_S = 1.0
MAX_CORES = 1024
_COUNTS = re.compile(r"cpu(\d{1,4})((?: +\d{1,18}){4,12}) *", re.ASCII)
OnNeighbours = Callable[["Neighbours", float], None]  # and the seconds waited for them so far
_IDLE, _IOWAIT, _GUEST = 3, 4, 8  # what guests run is a part of what users run


@dataclass(frozen=True)
class Neighbours:
    """What other programs take of a processor: `cores` of 1.0 is one core all the time. `program`: the greediest of
    them; empty where that is unknown."""

    cores: float
    program: str = ""

    @property
    def is_busy(self) -> bool:
        return self.cores > BUSY_CORES

    def to_document(self) -> dict[str, Any]:
        return {"cores": round(self.cores, 2), "program": self.program or None}

    def text(self) -> str:
        greediest = f", most of it {self.program}" if self.program else ""
        return f"other programs take {self.cores:.2f} processor cores{greediest}"


@dataclass(frozen=True)
class CpuTimes:
    """Ticks by core. `busy`: all in which a core did not wait; what a hypervisor stole is among them."""

    busy: Mapping[int, int]
    total: Mapping[int, int]

    def neighbours_since(self, before: CpuTimes, own_ticks: float = 0.0) -> Neighbours | None:
        """Load of programs other than the one with `own_ticks`; None where no time passed or the counts went back."""
        cores = self.total.keys() & before.total.keys()  # others were switched off or on meanwhile
        passed = {core: self.total[core] - before.total[core] for core in cores}
        if not cores or max(passed.values()) <= 0:
            return None
        # A core that sleeps deeply may not have counted on.
        elapsed = statistics.median(ticks for ticks in passed.values() if ticks > 0)
        busy = sum(min(max(0, self.busy[core] - before.busy[core]), elapsed) for core in cores)
        return Neighbours(max(0.0, busy - own_ticks) / elapsed)


def parse_cpu_times(text: str) -> CpuTimes | None:
    """Lines `cpuN ...` of /proc/stat; None where they are missing, doubled or impossible."""
    counts: dict[int, list[int]] = {}
    for line in text.splitlines():
        if match := _COUNTS.fullmatch(line):
            core = int(match[1])
            if core >= MAX_CORES or core in counts:
                return None
            counts[core] = [int(word) for word in match[2].split()][:_GUEST]
    if not counts:
        return None
    total = {core: sum(counts) for core, counts in counts.items()}
    return CpuTimes({c: total[c] - sum(counts[c][_IDLE : _IOWAIT + 1]) for c in counts}, total)


# What a phone prints for `parse_neighbours`. LOOK_BACK is for the shell that has started a runner after SAVE_TIMES,
# waited for it, and then run SAVE_OWN: its own counts then hold the runner's. In any other shell it prints nothing.
LOOK = f"grep '^cpu[0-9]' /proc/stat; sleep {WINDOW_S}; echo then; grep '^cpu[0-9]' /proc/stat"
SAVE_TIMES = "grep '^cpu[0-9]' /proc/stat >cpu_times 2>/dev/null"
SAVE_OWN = "read -r own </proc/self/stat"
LOOK_BACK = """[ -n "$own" ] && cat cpu_times && echo then && grep '^cpu[0-9]' /proc/stat && echo own && echo "$own" """


def parse_neighbours(text: str) -> Neighbours | None:
    """The output of LOOK or LOOK_BACK; None where it has no counts: kernels may hide them."""
    before, then, rest = text.replace("\r\n", "\n").partition("\nthen\n")
    after, own, process = rest.partition("\nown\n")
    times = parse_cpu_times(before), parse_cpu_times(after)
    if not then or times[0] is None or times[1] is None:
        return None
    # After the name, which may hold anything: user and system time of the process, and of those that it waited for.
    words = process.rpartition(")")[2].split()[11:15]
    if own and not (len(words) == 4 and all(re.fullmatch(r"\d{1,18}", word, re.ASCII) for word in words)):
        return None
    return times[1].neighbours_since(times[0], sum(map(int, words)))


class Neighbourhood:
    """The neighbours of a device while it is measured.

    `look`: what others take now, over about WINDOW_S; None where unknown. `patience_s`: how long to wait for their
    end, in all sessions together. `on_wait`: called with the neighbours and the seconds waited so far.
    """

    def __init__(
        self,
        look: Callable[[], Neighbours | None],
        patience_s: float,
        on_wait: OnNeighbours | None = None,
    ) -> None:
        self.now: Neighbours | None = None  # when last looked
        self.most: Neighbours | None = None  # while measuring
        self._look = look
        self._patience_s = patience_s
        self._waited_s = 0.0
        self._on_wait = on_wait
        self._is_accepted = False

    @property
    def is_steady(self) -> bool:
        """Whether no other program came while measuring; one that was waited for in vain is part of the device."""
        return self.now is None or not self.now.is_busy or self._is_accepted

    def see(self, now: Neighbours | None) -> None:
        """Takes note of a look at the device, made while or just before measuring."""
        if now is not None and now.is_busy and not now.program and self.now is not None:
            now = replace(now, program=self.now.program)  # a look back has the amount, not the program
        self.now = now
        self._is_accepted = self._is_accepted and now is not None and now.is_busy
        if now is not None and (self.most is None or now.cores > self.most.cores):
            self.most = now

    def look(self) -> None:
        self.see(self._look())

    def wait(self) -> None:
        """Waits until no other program runs; at the end of the patience, measuring goes on all the same."""
        began = time.monotonic()
        while True:
            now = self._look()
            waited = self._waited_s + time.monotonic() - began
            if now is None or not now.is_busy or waited >= self._patience_s:
                break
            if self._on_wait:
                self._on_wait(now, waited)
            time.sleep(min(POLL_S, self._patience_s - waited))
        self._waited_s = waited
        self._is_accepted = True
        self.see(now)


GAIN = 0.02  # a run that is shorter by less than this is as long as before
MOST_PERIOD_MS = 10_000.0
REST_S = 0.25  # after this time without a run the clocks may have come down; loading a model takes less
SamplesMs = tuple[float, ...]  # milliseconds per inference, in the order run; warm-up runs are left out


@dataclass(frozen=True)
class PassRecord:
    """What a device reports of a pass besides the samples; None: nothing.

    `load_ms`: until the session was ready; `first_ms`: its first inference; `peak_rss_kb`: the most memory that the
    process held meanwhile, the runtime's own included; `switches`: involuntary context switches of all threads while
    samples were taken. The clusters of the cores in use worked for `clock_ms` in all, of which `clock_top_ms` at their
    highest clock; `clock_mhz_ms` is the sum of time times clock. The kernel counts in steps of 10 ms.
    """

    load_ms: float | None = None
    first_ms: float | None = None
    peak_rss_kb: int | None = None
    switches: int | None = None
    clock_ms: float | None = None
    clock_mhz_ms: float | None = None
    clock_top_ms: float | None = None


NOTHING_KNOWN = PassRecord()


@dataclass(frozen=True)
class Counters:
    """What a kernel has counted so far, as in PassRecord; None: it does not count that."""

    switches: int | None = None
    clock_ms: float | None = None
    clock_mhz_ms: float | None = None
    clock_top_ms: float | None = None

    def since(self, before: Counters) -> Counters:
        pairs = {name: (getattr(before, name), getattr(self, name)) for name in (f.name for f in fields(self))}
        passed = {n: new - old for n, (old, new) in pairs.items() if old is not None and new is not None and new >= old}
        if not passed.get("clock_ms"):  # no step has passed
            passed = {name: value for name, value in passed.items() if name == "switches"}
        return Counters(**passed)


@dataclass(frozen=True)
class Pass:
    """The samples of one session, in ms per inference and in the order run; warm-up runs are left out.

    `busy`: made under load of other programs, or while the anchor had drifted and repeating it did not help; a device
    leaves that to the protocol. Raises InvalidInput for samples that are no positive finite numbers.
    """

    samples_ms: tuple[float, ...]
    busy: bool = False
    record: PassRecord = field(default=NOTHING_KNOWN, compare=False)  # tables keep none

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise InvalidInput("a pass without samples", next_step="measure again")
        for value in self.samples_ms:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidInput(f"a latency of {value!r} is not a number", next_step="measure again")
            if not math.isfinite(value) or value <= 0:
                raise InvalidInput(f"a latency of {value} ms is not possible", next_step="measure again")


@dataclass(frozen=True)
class Timing:
    """How one session is timed. Slow models take at least `min_samples` and stop at `max_s`.

    `min_sample_ms`: shorter models are called several times per sample, and the sample is the mean. Warm-up takes at
    least `warmup_runs`, and goes on until the runs are no longer getting shorter; with a period just so many.
    `cpu_time`: of the calling thread, for benchmarks on busy machines; a session must use no other thread, and phones
    cannot. `period_ms`: from the start of one run to that of the next, as in an app that gets frames; a run that is
    late starts at once, and a sample is one run. 0: back to back. `warmup_s`: the least warm-up of a device that has
    rested, whose clocks rise with the load. Raises InvalidConfig for values out of range.
    """

    samples: int
    min_sample_ms: float = 0.0
    warmup_runs: int = 4
    max_s: float = 1e6
    min_samples: int = 4
    cpu_time: bool = False
    period_ms: float = 0.0
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        counts, times = (self.samples, self.min_samples), (self.min_sample_ms, self.max_s)
        if not (0 <= self.warmup_runs <= 1_000_000 and all(1 <= count <= 100_000 for count in counts)):
            raise InvalidConfig(f"{self}: the counts are out of range")
        if not all(0 <= time <= 1e6 for time in times):
            raise InvalidConfig(f"{self}: the times must be between 0 and 1,000,000")
        if not 0 <= self.period_ms <= MOST_PERIOD_MS:
            raise InvalidConfig(f"period_ms = {self.period_ms} must be between 0 and {MOST_PERIOD_MS:g}")
        if not 0 <= self.warmup_s <= 60:
            raise InvalidConfig(f"warmup_s = {self.warmup_s} must be between 0 and 60")

    @property
    def half(self) -> Timing:
        """For one of the two blocks that a model gets in an alternating round."""
        return replace(self, samples=max(2, self.samples // 2), max_s=self.max_s / 2, min_samples=2)


@dataclass(frozen=True)
class Job:
    """One pass to make. `model` builds the file; `key` is equal for jobs whose files are equal."""

    key: str
    label: str
    model: Callable[[], bytes]
    timing: Timing


class Device(Protocol):
    """Where models run. `jobs_per_batch`: about as many as it is given at once, since starting may cost seconds."""

    @property
    def jobs_per_batch(self) -> int: ...

    def conditions(self) -> Conditions: ...

    def session(self) -> AbstractContextManager[object]:
        """Holds the device for measuring; passes are made within it."""

    def passes(self, jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        """Makes the passes and gives their results one after another, in this order, as they come.

        Closing the generator ends the work. Raises DeviceError that names the model that fails.
        """

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[Pass, Pass]]:
        """Times two models in alternating blocks, before-after-after-before, in fresh sessions per round."""

    def is_steady(self) -> bool:
        """Whether the device itself sees nothing, such as heat, that makes it slower than at the session's start."""

    def settle(self) -> None:
        """Waits until the device is fit again. Raises DeviceError when it does not come to rest."""

    def neighbours(self) -> Neighbours | None:
        """The other programs on it when it was last looked at: within a session by `is_steady`. None: unknown."""

    def most_neighbours(self) -> Neighbours | None:
        """Highest load of other programs during the passes, in cores."""

    def screen(self) -> str:
        """State of the screen in Android's words: the first that was not `Awake`, else `Awake`; "" where unknown."""


@runtime_checkable
class ResumableDevice(Protocol):
    """A device that finishes its passes when this process is killed, and gives their results to the next process."""

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[Pass, None, None]:
        """As Device.passes. `plan`: whatever is needed to ask for the same jobs again; kept with them."""

    def unfinished(self) -> str:
        """The plan of jobs whose results an earlier process has not seen to the end, else "". Within a session.

        The same jobs, when they are the first to be asked for, are not done again: their results are given.
        """


@dataclass(frozen=True)
class Heat:
    """Temperature of the device, and clock of the fastest core in use; None where the device does not report it.

    `clock_mhz`: now, or the mean over some time; `clock_limit_mhz`: the highest that heat allows now.
    """

    celsius: float | None = None
    clock_mhz: float | None = None
    clock_limit_mhz: float | None = None


@runtime_checkable
class HeatReader(Protocol):
    """A device that can be asked for its temperature and clocks while it works."""

    def heat(self) -> Heat: ...


class Session:
    """A loaded model with its inputs filled once. `run()` is one inference; close it, or use it as a context."""

    run: Callable[[], object]

    def __init__(self, run: Callable[[], object], *keeps: object) -> None:
        # The runtime's own function, not a method around it: a call's overhead is part of every sample.
        self.run = run
        self._keeps: tuple[object, ...] = keeps  # what must live as long, such as the input buffers

    def close(self) -> None:
        """Frees the model. Harmless when repeated."""
        self._keeps = ()
        self.run = _closed

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _closed() -> object:
    raise RuntimeError("this session is closed")


class SessionDevice(ABC):
    """A device whose sessions this process runs and times itself."""

    jobs_per_batch = 1  # starting costs nothing
    _worked_until = -math.inf  # the end of the latest session's samples

    @abstractmethod
    def open(self, model: bytes) -> AbstractContextManager[Session]:
        """A fresh session with its inputs filled."""

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def passes(self, jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        for job in jobs:
            with _naming(job), ExitStack() as stack:
                opened = self.counters()
                session, record = self._opened(stack, job.model())
                before = self.counters()
                samples = self._timed(session, job.timing)
                now = self.counters()
            passed = replace(now.since(opened), switches=now.since(before).switches)
            yield Pass(samples, record=replace(record, **asdict(passed)))

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[Pass, Pass]]:
        jobs = (before, after)
        files = [job.model() for job in jobs]
        for _ in range(rounds):
            samples: tuple[list[float], list[float]] = ([], [])
            switches: list[list[int | None]] = [[], []]
            with ExitStack() as stack:
                opened, began = [], self.counters()
                for job, file in zip(jobs, files, strict=True):
                    with _naming(job):
                        opened.append(self._opened(stack, file))
                for which in (0, 1, 1, 0):
                    counted = self.counters()
                    with _naming(jobs[which]):
                        samples[which].extend(self._timed(opened[which][0], jobs[which].timing.half))
                    switches[which].append(self.counters().since(counted).switches)
                passed = asdict(self.counters().since(began))
            first, second = (
                Pass(
                    tuple(samples[which]),
                    record=replace(opened[which][1], **passed | {"switches": _sum(switches[which])}),
                )
                for which in (0, 1)
            )
            yield first, second

    def counters(self) -> Counters:
        return Counters()

    def _timed(self, session: Session, timing: Timing) -> SamplesMs:
        has_rested = time.perf_counter() - self._worked_until > REST_S
        samples = time_session(session, timing if has_rested else replace(timing, warmup_s=0.0))
        self._worked_until = time.perf_counter()
        return samples

    def _opened(self, stack: ExitStack, model: bytes) -> tuple[Session, PassRecord]:
        """A session that has run once. Its memory cannot be separated from the rest of this process."""
        start = time.perf_counter()
        session = stack.enter_context(self.open(model))
        loaded = time.perf_counter()
        session.run()
        return session, PassRecord((loaded - start) * 1000, (time.perf_counter() - loaded) * 1000)

    def is_steady(self) -> bool:
        return True

    def settle(self) -> None:  # noqa: B027 - not abstract: most have nothing to wait for
        """There is nothing to wait for."""

    def neighbours(self) -> Neighbours | None:
        return None

    def most_neighbours(self) -> Neighbours | None:
        return None

    def screen(self) -> str:
        return ""


def _sum(values: Sequence[int | None]) -> int | None:
    counted = [value for value in values if value is not None]
    return sum(counted) if len(counted) == len(values) else None


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    try:
        yield
    except AmcMobileError as error:
        raise DeviceError(f"{job.label}: {error.message}", next_step=error.next_step) from error


class _Cadence:
    """Starts runs a period apart."""

    def __init__(self, period_ms: float) -> None:
        self._period_s = period_ms / 1000
        self._due_s = -math.inf

    def wait(self) -> None:
        """Until the next run is due. One that is late starts at once, and the next a period after it."""
        now_s = time.perf_counter()
        if now_s < self._due_s:
            time.sleep(self._due_s - now_s)
            self._due_s += self._period_s
        else:
            self._due_s = now_s + self._period_s


def time_session(session: Session, timing: Timing) -> SamplesMs:
    """Warms up and times one session."""
    cadence = _Cadence(timing.period_ms) if timing.period_ms else None
    run, clock = session.run, time.thread_time if timing.cpu_time else time.perf_counter
    shortest = math.inf
    began = clock()
    done = as_before = 0
    while timing.warmup_runs > 0:
        if cadence:
            cadence.wait()
        start = clock()
        run()
        end = clock()
        done, as_before = done + 1, 0 if end - start < shortest * (1 - GAIN) else as_before + 1
        shortest = min(shortest, end - start)
        if end - began < timing.warmup_s:
            continue
        if done >= timing.warmup_runs and (cadence or as_before >= timing.warmup_runs - 1):
            break
        if done > 1 and end - began > timing.max_s / 2:
            break
    # The shortest warm-up run decides: a single interrupted one would make the samples too short to time.
    calls = 1 if cadence else max(1, math.ceil(timing.min_sample_ms / 1000 / max(shortest, 1e-7)))
    samples: list[float] = []
    began = clock()
    for _ in range(timing.samples):
        if cadence:
            cadence.wait()
        start = clock()
        for _ in range(calls):
            run()
        end = clock()
        samples.append(max(end - start, 1e-9) * 1000 / calls)
        if end - began > timing.max_s and len(samples) >= timing.min_samples:
            break
    return tuple(samples)
