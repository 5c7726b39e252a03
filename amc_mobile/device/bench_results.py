"""What the runner answers: JSON lines, parsed as if written by somebody who wishes us ill.

They come from a phone, through a cable, from a process that loads a library which may print or crash. So every line is
bounded, every value checked, and a result counts only when it names the model that the manifest has at its index.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from amc_mobile.errors import DeviceError
from amc_mobile.store import parse_json

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
    """One pass over one model. `index`: in the manifest, from 0; `samples_ms`: per inference, in the order run."""

    index: int
    id: str
    load_ms: float
    first_ms: float
    warmup_runs: int
    runs_per_sample: int
    samples_ms: tuple[float, ...]
    peak_rss_kb: int | None = None  # None where the kernel does not tell, as below
    switches: int | None = None
    clock_ms: int | None = None
    clock_mhz_ms: int | None = None
    clock_top_ms: int | None = None


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


def _samples(document: dict[str, Any]) -> tuple[float, ...]:
    values = document.get("samples_ms")
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_SAMPLES:
        raise _bad(f"samples_ms is not a list of 1 to {MAX_SAMPLES} numbers")
    return tuple(_milliseconds(value, "samples_ms") for value in values)


def _result(document: dict[str, Any]) -> BenchResult:
    return BenchResult(
        index=_integer(document, "index"),
        id=_text(document, "id"),
        load_ms=_milliseconds(document.get("load_ms"), "load_ms"),
        first_ms=_milliseconds(document.get("first_ms"), "first_ms"),
        warmup_runs=_integer(document, "warmup_runs"),
        runs_per_sample=_integer(document, "runs_per_sample", 1),
        samples_ms=_samples(document),
        peak_rss_kb=_integer(document, "peak_rss_kb", 1) if "peak_rss_kb" in document else None,
        switches=_integer(document, "switches") if "switches" in document else None,
        **_clock(document),
    )


def _clock(document: dict[str, Any]) -> dict[str, int]:
    if "clock_ms" not in document:
        return {}
    clock = {"clock_ms": _integer(document, "clock_ms", 1)}
    clock |= {name: _integer(document, name) for name in ("clock_mhz_ms", "clock_top_ms")}
    if clock["clock_top_ms"] > clock["clock_ms"]:
        raise _bad("clock_top_ms is more than clock_ms")
    return clock


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
                raise _bad("a result stands before the start")
            if event.index >= len(self._ids) or event.id != self._ids[event.index]:
                raise _bad(f"line {event.index} is of {event.id[:80]!r}, which is not the model that was asked for")
            if event.index in self._answered:
                raise _bad(f"model {event.index} is answered twice")
            if not isinstance(event, BenchGraph):  # its result is still to come
                self._answered.add(event.index)
