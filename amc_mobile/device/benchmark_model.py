"""A phone on which TFLite's own benchmark_model measures, for those who have it and no runtime library.

It keeps no samples, only averages and extremes: each pass is a process of its own and gives the average over its runs.
A p50 over passes is the median of averages, and the conditions say so. Our own runner says more.
"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amc_mobile.device.adb import AdbPhone, command_line
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Job, Pass, PassRecord, Timing
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import LOAD_ALLOWANCE_S, START_ALLOWANCE_S, PhoneDevice
from amc_mobile.device.phone_output import parse_allowed_cores
from amc_mobile.device.phone_runner import FOLDER, InstalledFile
from amc_mobile.device.profiles import DeviceProfile
from amc_mobile.errors import DeviceError, InvalidConfig, PhoneOutputInvalid
from amc_mobile.formats import TFLITE

SOURCE = "benchmark_model output"
_CLASSIC = re.compile(
    r"Inference timings in us: Init: ([\d.]{1,30}), First inference: ([\d.]{1,30}), "
    r"Warmup \(avg\): ([\d.e+]{1,30}), Inference \(avg\): ([\d.e+]{1,30})",
    re.ASCII,
)
_COUNT = re.compile(r"count=(\d{1,12})\b(.*)", re.ASCII)
_LITERT_HEADING = re.compile(r"^=+ BENCHMARK RESULTS =+$", re.MULTILINE)
_LITERT = re.compile(
    r"^(?:INFO: )?([A-Z][a-z]+(?: \((?:avg|min|max|std|first)\)| initialization)): +([\d.]{1,30})", re.MULTILINE
)
_LITERT_STEP_MS = 0.01
_LITERT_RUNS = re.compile(r"Inference \(avg\): +[\d.]{1,30} ms \((\d{1,12}) runs\)", re.ASCII)


@dataclass(frozen=True)
class BenchmarkModelResult:
    """In ms per inference. `min_ms` and `max_ms` equal the average where all samples were equal.

    `step_ms`: what the format rounds to; 0: no coarser than the clock.
    """

    init_ms: float
    first_ms: float
    average_ms: float
    min_ms: float
    max_ms: float
    runs: int
    step_ms: float = 0.0


def parse_benchmark_model(text: str) -> BenchmarkModelResult:
    """Raises PhoneOutputInvalid when the output holds no result, as after a crash, or one that is not possible."""
    result = _litert(text) if _LITERT_HEADING.search(text) else _classic(text)
    numbers = (result.init_ms, result.first_ms, result.average_ms, result.min_ms, result.max_ms)
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or result.average_ms <= 0:
        raise PhoneOutputInvalid(SOURCE, f"impossible times: {numbers}")
    if result.runs < 1 or not result.min_ms <= result.max_ms:
        raise PhoneOutputInvalid(SOURCE, f"{result.runs} runs between {result.min_ms} and {result.max_ms} ms")
    return result


def _classic(text: str) -> BenchmarkModelResult:
    summary = _CLASSIC.search(text)
    counts = _COUNT.findall(text)
    if summary is None or not counts:
        raise PhoneOutputInvalid(SOURCE, "no line 'Inference timings in us', so it did not finish")
    init_us, first_us, _, average_us = (_number(value) for value in summary.groups())
    runs, rest = counts[-1]  # the first count is of the warm-up
    values = {key: _number(value) for key, value in re.findall(r"\b(curr|min|max)=([\d.e+]{1,30})", rest, re.ASCII)}
    if "(all same)" in rest and "curr" in values:
        # Neither average nor extremes are printed when all samples are equal.
        values["min"] = values["max"] = values["curr"]
        average_us = values["curr"]
    if not {"min", "max"} <= set(values):
        raise PhoneOutputInvalid(SOURCE, f"no minimum and maximum in 'count={runs}{rest[:80]}'")
    return BenchmarkModelResult(
        init_us / 1000, first_us / 1000, average_us / 1000, values["min"] / 1000, values["max"] / 1000, int(runs)
    )


def _litert(text: str) -> BenchmarkModelResult:
    values = {key: _number(value) for key, value in _LITERT.findall(text)}
    runs = _LITERT_RUNS.search(text)
    keys = ("Model initialization", "Warmup (first)", "Inference (avg)", "Inference (min)", "Inference (max)")
    missing = [key for key in keys if key not in values]
    if missing or runs is None:
        raise PhoneOutputInvalid(SOURCE, f"the results lack {', '.join(missing) or 'the number of runs'}")
    init_ms, first_ms, average_ms, min_ms, max_ms = (values[key] for key in keys)
    return BenchmarkModelResult(init_ms, first_ms, average_ms, min_ms, max_ms, int(runs[1]), _LITERT_STEP_MS)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise PhoneOutputInvalid(SOURCE, f"{text!r} is no number") from error


RUNTIME = "tflite (benchmark_model, averages)"  # what conditions call it
FEWEST_RUNS = 50  # the program's own default; a few slow runs weigh less
ROUNDING_ERROR = 0.01  # the most that a rounded average may be off by, relative
MODELS = f"{FOLDER}/models"  # the end of a session removes it
LOG_CHARACTERS = 300
# Prints where the kernel lets the process run, then becomes the program.
_SHOW_CORES = 'grep Cpus_allowed_list: /proc/self/status; exec "$@"'


class BenchmarkModelDevice(PhoneDevice):
    """Makes passes on a phone with benchmark_model, which is library and runner. Runs .tflite files only."""

    jobs_per_batch = 1  # every pass starts a process in any case

    def __init__(
        self, adb: AdbPhone, profile: DeviceProfile, library: RuntimeLibrary, runner: Path, **settings: Any
    ) -> None:
        super().__init__(adb, profile, library, runner, **settings)
        self._program = f"{FOLDER}/{InstalledFile(library.path, library.sha256).remote}"
        self._on_phone: set[str] = set()  # paths of models

    def conditions(self) -> Conditions:
        return replace(super().conditions(), runtime=RUNTIME)

    @contextmanager
    def session(self) -> Iterator[PhoneDevice]:
        """Raises PhoneBusy, PhoneUnfit naming the problems, PhoneDiskFull."""
        self._on_phone.clear()
        with super().session() as session:
            yield session

    def unfinished(self) -> str:
        return ""  # a pass ends with the process that asked for it

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[Pass, None, None]:
        """One sample per pass; `plan` is not kept.

        Raises DeviceError naming the model that fails, or is too fast for what is printed.
        """
        for job in jobs:
            result = _checked(self._run(job), job)
            yield Pass((result.average_ms,), record=_record(result))

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[Pass, Pass]]:
        """Processes in the order before, after, after, before; two samples of each model per round."""
        for _ in range(rounds):
            results = [_checked(self._run(job), job) for job in (before, after, after, before)]
            first, second, third, fourth = (result.average_ms for result in results)
            yield Pass((first, fourth), record=_record(results[0])), Pass((second, third), record=_record(results[1]))

    def try_out(self, model: bytes) -> None:
        """Runs a model once. Raises DeviceError naming what fails."""
        with self.untimed():
            self._on_phone.clear()
            self._run(Job("trial", "a tiny network", lambda: model, Timing(1, 0.0, 0, 1.0)))

    def _run(self, job: Job) -> BenchmarkModelResult:
        if job.timing.period_ms:
            raise InvalidConfig(
                "benchmark_model runs a model back to back only",
                next_step="add a runtime library (amc-mobile runtime add) and pass --runtime tflite",
            )
        words = [self._program, f"--graph={self._keep(job.model())}", *flags(job.timing, self.threads)]
        if self.cores:
            mask = sum(1 << core for core in self.cores)
            words = ["taskset", f"{mask:x}", "sh", "-c", _SHOW_CORES, "sh", *words]  # hexadecimal, and without 0x
        limit_s = START_ALLOWANCE_S + LOAD_ALLOWANCE_S + 2 * job.timing.max_s
        output = self.adb.shell(
            f"{command_line(*words)} 2>&1", what=f"measuring {job.label}", timeout_s=limit_s, check=False
        )
        if output.exit_code != 0:
            log = " ".join(output.text.split())[-LOG_CHARACTERS:]
            raise DeviceError(
                f"{job.label}: benchmark_model ended with exit code {output.exit_code}: {log or 'it printed nothing'}",
                next_step="try the model with a runtime library: amc-mobile runtime add",
            )
        if self.cores:
            self.require_cores(parse_allowed_cores(output.text))
        return parse_benchmark_model(output.text)

    def _keep(self, model: bytes) -> str:
        """The model's path on the phone; it is copied there once in a session."""
        path = f"{MODELS}/model-{hashlib.sha256(model).hexdigest()[:24]}{TFLITE.suffix}"
        if path not in self._on_phone:
            with tempfile.TemporaryDirectory(prefix="amc-model-") as folder:
                local = Path(folder) / "model"
                local.write_bytes(model)
                self.adb.push(local, path)
            self._on_phone.add(path)
        return path


def flags(timing: Timing, threads: int) -> list[str]:
    """A pass's timing as benchmark_model takes it. A slow model makes as many runs as fit into `max_s`."""
    return [
        f"--num_threads={threads}",
        "--use_xnnpack=true",
        f"--warmup_runs={timing.warmup_runs}",
        f"--warmup_min_secs={timing.warmup_s:g}",  # each pass is a process, and comes after a rest
        f"--num_runs={max(timing.samples, FEWEST_RUNS)}",
        f"--min_secs={timing.samples * timing.min_sample_ms / 1000:g}",
        f"--max_secs={timing.max_s:g}",
    ]


def _record(result: BenchmarkModelResult) -> PassRecord:
    return PassRecord(load_ms=result.init_ms, first_ms=result.first_ms)


def _checked(result: BenchmarkModelResult, job: Job) -> BenchmarkModelResult:
    if result.step_ms / 2 > ROUNDING_ERROR * result.average_ms:
        raise PhoneOutputInvalid(
            "benchmark_model output",
            f"{job.label}: {result.average_ms} ms rounded to {result.step_ms} ms is off by more than "
            f"{ROUNDING_ERROR:.0%}",
            next_step="add a runtime library instead: amc-mobile runtime add",
        )
    return result
