"""A phone as the protocol sees it: passes in, samples out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import fields

from amc_mobile.device.bench_manifest import BenchModel, BenchPair, BenchTiming
from amc_mobile.device.bench_results import BenchError, BenchResult
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.neighbours import Neighbours
from amc_mobile.device.phone_device import PhoneDevice
from amc_mobile.device.phone_facts import read_state
from amc_mobile.device.timing import Heat, Job, PassRecord, TimedPass, Timing
from amc_mobile.errors import DeviceError, PhoneUnfit, RunnerFailed

# Loading a model and its first inference, which no timing bounds; the runner is ended only when it hangs.
LOAD_ALLOWANCE_S = 5.0
MODEL_ALLOWANCE_S = 30.0  # one model that loads slowly, and whose fewest samples take longer than its timing allows
START_ALLOWANCE_S = 60.0
RECORDED = [field.name for field in fields(PassRecord)]


class PhonePasses:
    """Makes passes on a phone. A batch is one start of the runner, whose cost must vanish beside the measuring."""

    jobs_per_batch = 1200

    def __init__(self, phone: PhoneDevice) -> None:
        self.phone = phone

    def conditions(self) -> Conditions:
        return self.phone.conditions()

    def session(self) -> AbstractContextManager[object]:
        """Raises PhoneBusy, PhoneUnfit naming the problems, PhoneDiskFull."""
        return self.phone.session()

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[TimedPass, None, None]:
        """Raises DeviceError naming the model that fails, and what PhoneDevice.bench raises."""
        files = _Files(jobs)
        entries = [BenchModel(files.names[job.key], files.names[job.key], _bench_timing(job.timing)) for job in jobs]
        yield from self._results(entries, files, jobs, plan)

    def unfinished(self) -> str:
        return self.phone.unfinished()

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[TimedPass, TimedPass]]:
        """Both models open together in every round, timed before-after-after-before."""
        jobs = (before, after)
        files = _Files(jobs)
        models = [BenchModel(files.names[job.key], files.names[job.key], _bench_timing(job.timing)) for job in jobs]
        results = self._results([BenchPair(models[0], models[1])] * rounds, files, jobs * rounds)
        with closing(results):
            for first in results:
                yield first, next(results)

    def is_steady(self) -> bool:
        """Whether neither heat, lower clocks nor other programs have come over the phone since the session began."""
        try:
            self.phone.require_steady()
        except PhoneUnfit:
            return False
        return self.phone.neighbourhood.is_steady

    def settle(self) -> None:
        """Raises PhoneUnfit when the phone stays hot for longer than its profile allows."""
        self.phone.cool_down()
        self.phone.leave_alone()

    def neighbours(self) -> Neighbours | None:
        return self.phone.neighbourhood.now

    def most_neighbours(self) -> Neighbours | None:
        return self.phone.neighbourhood.most

    def heat(self) -> Heat:
        """Of the cores that the runner is on; nothing where the phone does not answer."""
        try:
            state = read_state(self.phone.adb)
        except DeviceError:
            return Heat()  # a pulled cable ends no measurement
        cores = set(self.phone.cores)
        limits_khz = [policy.scaling_max_khz for policy in state.policies if not cores or cores & set(policy.cores)]
        return Heat(state.celsius, clock_limit_mhz=max(limits_khz) / 1000 if limits_khz else None)

    def screen(self) -> str:
        return self.phone.screen

    def _results(
        self, entries: Sequence[BenchModel | BenchPair], files: _Files, jobs: Sequence[Job], plan: str = ""
    ) -> Generator[TimedPass, None, None]:
        deadline_s = START_ALLOWANCE_S + sum(2 * job.timing.max_s + LOAD_ALLOWANCE_S for job in jobs)
        model_deadline_s = MODEL_ALLOWANCE_S + max(2 * job.timing.max_s for job in jobs)
        events = self.phone.bench(
            entries,
            files,
            BenchTiming(),
            deadline_s=math.ceil(deadline_s),
            plan=plan,
            model_deadline_s=math.ceil(model_deadline_s),
            warmup_s=jobs[0].timing.warmup_s if jobs else 0.0,
            labels=[job.label for job in jobs],
        )
        given = 0
        with closing(events):
            for event in events:
                if isinstance(event, BenchError):
                    raise DeviceError(f"{jobs[event.index].label}: {event.message}")
                if isinstance(event, BenchResult):
                    if event.index != given:
                        raise RunnerFailed(f"result {event.index} came where {given} was due")
                    given += 1
                    record = {name: getattr(event, name) for name in RECORDED}
                    yield TimedPass(event.samples_ms, PassRecord(**record))


class _Files(Mapping[str, bytes]):
    """The files of some jobs by name, those with equal keys once. A file is built when it is asked for."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.names = {job.key: f"m{hashlib.sha256(job.key.encode()).hexdigest()[:24]}" for job in jobs}
        self._builders = {self.names[job.key]: job.model for job in reversed(jobs)}

    def __getitem__(self, name: str) -> bytes:
        return self._builders[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


def _bench_timing(timing: Timing) -> BenchTiming:
    return BenchTiming(
        warmup_runs=timing.warmup_runs,
        samples=timing.samples,
        min_sample_ms=timing.min_sample_ms,
        max_s=timing.max_s,
        min_samples=timing.min_samples,
        period_ms=timing.period_ms,
    )
