"""The runner: its executable, what it is asked (the manifest) and what it answers (JSON lines).

Results come from a phone, through a cable, from a process that loads a library which may print or crash. So every
line is bounded, every value checked, and a result counts only when it names the model that the manifest has at its
index.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_mobile.device.device import PassRecord, SamplesMs, Timing
from amc_mobile.errors import DeviceError, InvalidConfig
from amc_mobile.formats import LIBRARY_RUNTIMES, LITERT, ONNX, TFLITE
from amc_mobile.store import parse_json

MANIFEST_VERSION = 1  # 1: `key value` lines, models and pairs
_ID = re.compile(r"[A-Za-z0-9._-]{1,80}", re.ASCII)
_CORES = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,31}", re.ASCII)


DEFAULT_TIMING = Timing(samples=20)


def _timing_lines(timing: Timing, before: Timing | None) -> list[str]:
    """Where `before` held until now; no period where none is set, since older runners refuse that key."""
    has_period = timing.period_ms > 0 or (before is not None and before.period_ms > 0)
    return [
        f"warmup_runs {timing.warmup_runs}",
        f"samples {timing.samples}",
        f"min_sample_ms {timing.min_sample_ms:.6f}",
        f"max_s {timing.max_s:.6f}",
        f"min_samples {timing.min_samples}",
        *([f"period_ms {timing.period_ms:.6f}"] if has_period else []),
    ]


@dataclass(frozen=True)
class BenchModel:
    """One pass over one model.

    `path`: absolute, or relative to the manifest's folder; `timing`: where it differs from the manifest's.
    """

    id: str
    path: str
    timing: Timing | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise InvalidConfig(f"{self.id!r} is not an identifier of 1 to 80 of A-Z a-z 0-9 . _ -")
        _check_path(self.path)


@dataclass(frozen=True)
class BenchPair:
    """Two models open together, timed in blocks first, second, second, first; each gives a result of its own.

    Both are timed as the first one is.
    """

    first: BenchModel
    second: BenchModel


def _check_path(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InvalidConfig(f"the path {path!r} is not valid text") from error
    if not path or any(c in path for c in "\n\t\0"):
        raise InvalidConfig(f"the path {path!r} is empty or holds a newline, a tab or a zero byte")


@dataclass(frozen=True)
class BenchManifest:
    """What the runner is asked to do. Raises InvalidConfig for what the runner would refuse.

    `cores`: in the kernel's list form, "" for all; `runtime_version`: needed for litert, whose ABI depends on it;
    `delegate`: xnnpack or none, for tflite only; `graph_path`: where onnxruntime writes the graph that it made of each
    model, for the runner to send; "": nowhere; `model_deadline_s`: after this time without a result of one model the
    runner ends, twice that for a pair; 0: only at `deadline_s`.
    """

    runtime: str
    library: str
    threads: int
    deadline_s: int
    entries: tuple[BenchModel | BenchPair, ...]
    timing: Timing = DEFAULT_TIMING
    runtime_version: str = ""
    cores: str = ""
    delegate: str = ""
    graph_path: str = ""
    model_deadline_s: int = 0

    def __post_init__(self) -> None:
        if self.runtime not in LIBRARY_RUNTIMES:
            raise InvalidConfig(
                f"runtime {self.runtime!r} is unknown", next_step=f"use one of {', '.join(LIBRARY_RUNTIMES)}"
            )
        _check_path(self.library)
        if not 1 <= self.threads <= 256:
            raise InvalidConfig(f"threads = {self.threads} must be between 1 and 256")
        if not 1 <= self.deadline_s <= 1_000_000:
            raise InvalidConfig(f"deadline_s = {self.deadline_s} must be between 1 and 1,000,000")
        if not 0 <= self.model_deadline_s <= 1_000_000:
            raise InvalidConfig(f"model_deadline_s = {self.model_deadline_s} must be between 0 and 1,000,000")
        if not self.entries:
            raise InvalidConfig("the manifest names no model")
        if self.runtime_version and not _VERSION.fullmatch(self.runtime_version):
            raise InvalidConfig(f"runtime_version {self.runtime_version!r} is not a version")
        if self.runtime == LITERT and not self.runtime_version:
            raise InvalidConfig(
                "litert needs its runtime_version", next_step="its ABI depends on it, and the library has none inside"
            )
        if self.cores and (len(self.cores) > 255 or not _CORES.fullmatch(self.cores)):
            raise InvalidConfig(f"cores {self.cores!r} is not a list such as 4-5,7")
        if self.delegate and (self.runtime != TFLITE.runtime or self.delegate not in ("xnnpack", "none")):
            raise InvalidConfig(f"delegate {self.delegate!r} is not allowed for {self.runtime}")
        if self.graph_path:
            _check_path(self.graph_path)
            if self.runtime != ONNX.runtime:
                raise InvalidConfig(f"{self.runtime} writes no graph that it made", next_step="leave out graph_path")

    @property
    def models(self) -> tuple[BenchModel, ...]:
        """In the order of the results' index: a pair counts as two."""
        models: list[BenchModel] = []
        for entry in self.entries:
            models += [entry.first, entry.second] if isinstance(entry, BenchPair) else [entry]
        return tuple(models)

    def text(self) -> str:
        """The manifest as the runner reads it."""
        lines = [f"amc_bench_manifest {MANIFEST_VERSION}", f"runtime {self.runtime}", f"library {self.library}"]
        for key in ("runtime_version", "cores", "delegate", "graph_path"):
            if getattr(self, key):
                lines.append(f"{key} {getattr(self, key)}")
        lines += [f"threads {self.threads}", f"deadline_s {self.deadline_s}"]
        lines += [f"model_deadline_s {self.model_deadline_s}"] if self.model_deadline_s else []
        warmup_s = (self.models[0].timing or self.timing).warmup_s  # the phone has rested before the first one alone
        lines += [f"warmup_s {warmup_s:.3f}"] if warmup_s else []
        current: Timing | None = None
        for entry in self.entries:
            timing = (entry.first if isinstance(entry, BenchPair) else entry).timing or self.timing
            if timing != current:
                lines += _timing_lines(timing, current)
                current = timing
            if isinstance(entry, BenchPair):
                fields = (entry.first.id, entry.first.path, entry.second.id, entry.second.path)
                lines.append("pair " + "\t".join(fields))
            else:
                lines.append(f"model {entry.id} {entry.path}")
        return "\n".join(lines) + "\n"


FORMAT_VERSION = 1  # 1: start, graph, result, error and end lines
MAX_LINE_BYTES = 4 << 20
MAX_SAMPLES = 100_000
MAX_TEXT = 1000
MAX_SAMPLE_MS = 1e9


@dataclass(frozen=True)
class BenchStart:
    """The run has begun. `cores_seen`: what the kernel granted; it may ignore `cores_wanted` silently."""

    runner: str
    pid: int
    runtime: str
    runtime_version: str
    threads: int
    cores_wanted: str
    cores_seen: str
    delegate: str = ""


@dataclass(frozen=True)
class BenchResult:
    """One pass over one model. `index`: in the manifest, from 0."""

    index: int
    id: str
    warmup_runs: int
    runs_per_sample: int
    samples_ms: SamplesMs
    record: PassRecord


@dataclass(frozen=True)
class BenchGraph:
    """The .onnx file of the graph that the runtime made of a model; comes before the model's result."""

    index: int
    id: str
    file: bytes


@dataclass(frozen=True)
class BenchError:
    """One model failed; the run goes on."""

    index: int
    id: str
    message: str


@dataclass(frozen=True)
class BenchEnd:
    """The last line. `status`: done, deadline or error."""

    status: str
    results: int
    errors: int
    message: str


BenchEvent = BenchStart | BenchResult | BenchGraph | BenchError | BenchEnd


def _bad(why: str) -> DeviceError:
    return DeviceError(
        f"the runner's output cannot be used: {why}",
        next_step="push the runner of this version of amc-mobile again, and keep others from writing to its folder",
    )


def _text(document: dict[str, Any], key: str, default: str | None = None) -> str:
    value = document.get(key, default)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise _bad(f"{key} is not a text of at most {MAX_TEXT} characters")
    # It will be shown in a terminal, which obeys control characters.
    return "".join(c if c.isprintable() else "?" for c in value)


def _integer(document: dict[str, Any], key: str, lowest: int = 0) -> int:
    value = document.get(key)
    if type(value) is not int or not lowest <= value < 2**53:
        raise _bad(f"{key} is not an integer of at least {lowest}")
    return value


def _milliseconds(value: object, key: str) -> float:
    if type(value) not in (int, float) or not 0 < value <= MAX_SAMPLE_MS:  # type: ignore[operator]
        raise _bad(f"{key} is not a positive number of milliseconds")
    return float(value)  # type: ignore[arg-type]


def _result(document: dict[str, Any]) -> BenchResult:
    samples = document.get("samples_ms")
    if not isinstance(samples, list) or not 1 <= len(samples) <= MAX_SAMPLES:
        raise _bad(f"samples_ms is not a list of 1 to {MAX_SAMPLES} numbers")
    # What the kernel does not count is left out.
    lowest = {"peak_rss_kb": 1, "switches": 0}
    if "clock_ms" in document:
        lowest |= {"clock_ms": 1, "clock_mhz_ms": 0, "clock_top_ms": 0}
    counts = {key: _integer(document, key, lowest[key]) for key in lowest if key in document or key.startswith("clock")}
    if counts.get("clock_top_ms", 0) > counts.get("clock_ms", 0):
        raise _bad("clock_top_ms is more than clock_ms")
    load_ms, first_ms = (_milliseconds(document.get(key), key) for key in ("load_ms", "first_ms"))
    return BenchResult(
        index=_integer(document, "index"),
        id=_text(document, "id"),
        warmup_runs=_integer(document, "warmup_runs"),
        runs_per_sample=_integer(document, "runs_per_sample", 1),
        samples_ms=tuple(_milliseconds(sample, "samples_ms") for sample in samples),
        record=PassRecord(load_ms, first_ms, **counts),
    )


def _start(document: dict[str, Any]) -> BenchStart:
    return BenchStart(
        runner=_text(document, "runner"),
        pid=_integer(document, "pid", 1),
        runtime=_text(document, "runtime"),
        runtime_version=_text(document, "runtime_version"),
        threads=_integer(document, "threads", 1),
        cores_wanted=_text(document, "cores_wanted"),
        cores_seen=_text(document, "cores_seen"),
        delegate=_text(document, "delegate", ""),
    )


def _error(document: dict[str, Any]) -> BenchError:
    return BenchError(_integer(document, "index"), _text(document, "id"), _text(document, "message"))


def _graph(document: dict[str, Any]) -> BenchGraph:
    encoded = document.get("base64")
    try:
        file = base64.b64decode(encoded if isinstance(encoded, str) else "", validate=True)
    except ValueError as error:
        raise _bad("a graph is not in base64") from error
    if not file:
        raise _bad("a graph is empty")
    return BenchGraph(_integer(document, "index"), _text(document, "id"), file)


def _end(document: dict[str, Any]) -> BenchEnd:
    status = _text(document, "status")
    if status not in ("done", "deadline", "error"):
        raise _bad(f"the run ended as {status!r}")
    return BenchEnd(status, _integer(document, "results"), _integer(document, "errors"), _text(document, "message"))


_PARSERS: dict[str, Callable[[dict[str, Any]], BenchEvent]] = {
    "start": _start,
    "result": _result,
    "graph": _graph,
    "error": _error,
    "end": _end,
}


def parse_line(line: bytes) -> BenchEvent | None:
    """One line, without its newline. None for an event that this version does not know; unknown keys are ignored.

    Raises DeviceError for everything that is no such line.
    """
    if len(line) > MAX_LINE_BYTES:
        raise _bad(f"a line is longer than {MAX_LINE_BYTES} bytes")
    try:
        document = parse_json(line)
    except ValueError as error:
        raise _bad(f"a line is not JSON ({str(error)[:80]})") from error
    if not isinstance(document, dict):
        raise _bad("a line is not a JSON object")
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise _bad(f"its format_version is {str(version)[:20]}, this version reads {FORMAT_VERSION}")
    event = document.get("event")
    if not isinstance(event, str):
        raise _bad("a line has no event")
    parser = _PARSERS.get(event)
    return parser(document) if parser else None


class ResultStream:
    """Reads the runner's output as it comes, in pieces of any size.

    `ids`: of the manifest's models in order. A line of another model, a second line of the same one and lines after the
    end are errors. `pending_bytes` of an unfinished last line are left when the run was cut off; they are not a result.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = tuple(ids)
        self._buffer = bytearray()
        self._answered: set[int] = set()
        self.start: BenchStart | None = None
        self.end: BenchEnd | None = None

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    @property
    def missing(self) -> tuple[int, ...]:
        """Indices of the models that have neither a result nor an error yet."""
        return tuple(index for index in range(len(self._ids)) if index not in self._answered)

    def feed(self, data: bytes) -> list[BenchEvent]:
        """The events that `data` completes. Raises DeviceError as `parse_line` does."""
        *lines, rest = (bytes(self._buffer) + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise _bad(f"a line is longer than {MAX_LINE_BYTES} bytes")
        self._buffer = bytearray(rest)
        events = []
        for line in lines:
            event = parse_line(line)
            if event is not None:
                self._accept(event)
                events.append(event)
        return events

    def _accept(self, event: BenchEvent) -> None:
        if self.end is not None:
            raise _bad("there are lines after the end")
        if isinstance(event, BenchEnd):
            self.end = event
        elif isinstance(event, BenchStart):
            if self.start is not None:
                raise _bad("it starts twice")
            self.start = event
        else:
            if self.start is None:
                raise _bad("a result comes before the start")
            if event.index >= len(self._ids) or event.id != self._ids[event.index]:
                raise _bad(f"line {event.index} is of {event.id[:80]!r}, which is not the model that was asked for")
            if event.index in self._answered:
                raise _bad(f"model {event.index} is answered twice")
            if not isinstance(event, BenchGraph):  # its result is still to come
                self._answered.add(event.index)


def packaged_runner(abi: str = "arm64-v8a") -> Path:
    """The executable for phones that came with this package. Raises DeviceError where it was not built."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "bin" / abi, here.parents[2] / "dist" / "android" / abi):
        if (folder / "amc-bench").is_file():
            return folder / "amc-bench"
    raise DeviceError(
        f"this installation holds no runner for {abi}",
        next_step="pip install ziglang, then scripts/build-android-bench in a checkout of amc-mobile; or set "
        "AMC_MOBILE_RUNNER to a build of your own",
    )


def runner_program(abi: str) -> Path:
    """AMC_MOBILE_RUNNER, for those who build their own, or the executable in this package.

    Raises InvalidConfig where that is no file, DeviceError where this package has none for the processor.
    """
    own = os.environ.get("AMC_MOBILE_RUNNER")
    if own and not Path(own).is_file():
        raise InvalidConfig(f"AMC_MOBILE_RUNNER = {own!r} is no file", next_step="unset it to use the packaged runner")
    return Path(own) if own else packaged_runner(abi)
