"""What the runner is asked to do: plain data and the manifest's text, as `android_bench/README.md` describes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from amc_mobile.errors import InvalidConfig

MANIFEST_VERSION = 1  # 1: `key value` lines, models and pairs
MOST_PERIOD_MS = 10_000.0
RUNTIMES = ("tflite", "litert", "onnxruntime")
_ID = re.compile(r"[A-Za-z0-9._-]{1,80}", re.ASCII)
_CORES = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,31}", re.ASCII)


@dataclass(frozen=True)
class BenchTiming:
    """How one pass is timed. Slow models take at least `min_samples` and stop at `max_s`; 0: no limit.

    `period_ms`: from the start of one run to that of the next, a sample being one run; 0: back to back.
    """

    warmup_runs: int = 4
    samples: int = 20
    min_sample_ms: float = 0.0  # a shorter model is run several times per sample, and the sample is the mean
    max_s: float = 0.0
    min_samples: int = 4
    period_ms: float = 0.0

    def __post_init__(self) -> None:
        if not (
            0 <= self.warmup_runs <= 1_000_000 and 1 <= self.samples <= 100_000 and 1 <= self.min_samples <= 100_000
        ):
            raise InvalidConfig(f"{self}: the counts are out of range")
        if not (0 <= self.min_sample_ms <= 1e6 and 0 <= self.max_s <= 1e6):
            raise InvalidConfig(f"{self}: the times must be between 0 and 1,000,000")
        if not 0 <= self.period_ms <= MOST_PERIOD_MS:
            raise InvalidConfig(f"period_ms = {self.period_ms} must be between 0 and {MOST_PERIOD_MS:g}")

    def lines(self, before: BenchTiming | None) -> list[str]:
        """What the manifest says where `before` held until now. Runners that know no period are not told of none."""
        has_period = self.period_ms > 0 or (before is not None and before.period_ms > 0)
        return [
            f"warmup_runs {self.warmup_runs}",
            f"samples {self.samples}",
            f"min_sample_ms {self.min_sample_ms:.6f}",
            f"max_s {self.max_s:.6f}",
            f"min_samples {self.min_samples}",
            *([f"period_ms {self.period_ms:.6f}"] if has_period else []),
        ]


@dataclass(frozen=True)
class BenchModel:
    """One pass over one model.

    `path`: absolute, or relative to the manifest's folder; `timing`: where it differs from the manifest's.
    """

    id: str
    path: str
    timing: BenchTiming | None = None

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
    model, for the runner to send; "": nowhere; `model_deadline_s`: after so long without a result of one model the
    runner ends, twice that for a pair; 0: only at `deadline_s`; `warmup_s`: the least warm-up of the
    first model.
    """

    runtime: str
    library: str
    threads: int
    deadline_s: int
    entries: tuple[BenchModel | BenchPair, ...]
    timing: BenchTiming = BenchTiming()
    runtime_version: str = ""
    cores: str = ""
    delegate: str = ""
    graph_path: str = ""
    model_deadline_s: int = 0
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise InvalidConfig(f"runtime {self.runtime!r} is unknown", next_step=f"use one of {', '.join(RUNTIMES)}")
        _check_path(self.library)
        if not 1 <= self.threads <= 256:
            raise InvalidConfig(f"threads = {self.threads} must be between 1 and 256")
        if not 1 <= self.deadline_s <= 1_000_000:
            raise InvalidConfig(f"deadline_s = {self.deadline_s} must be between 1 and 1,000,000")
        if not 0 <= self.model_deadline_s <= 1_000_000:
            raise InvalidConfig(f"model_deadline_s = {self.model_deadline_s} must be between 0 and 1,000,000")
        if not 0 <= self.warmup_s <= 60:
            raise InvalidConfig(f"warmup_s = {self.warmup_s} must be between 0 and 60")
        if not self.entries:
            raise InvalidConfig("the manifest names no model")
        if self.runtime_version and not _VERSION.fullmatch(self.runtime_version):
            raise InvalidConfig(f"runtime_version {self.runtime_version!r} is not a version")
        if self.runtime == "litert" and not self.runtime_version:
            raise InvalidConfig(
                "litert needs its runtime_version", next_step="its ABI depends on it, and it tells none"
            )
        if self.cores and (len(self.cores) > 255 or not _CORES.fullmatch(self.cores)):
            raise InvalidConfig(f"cores {self.cores!r} is not a list such as 4-5,7")
        if self.delegate and (self.runtime != "tflite" or self.delegate not in ("xnnpack", "none")):
            raise InvalidConfig(f"delegate {self.delegate!r} is not allowed for {self.runtime}")
        if self.graph_path:
            _check_path(self.graph_path)
            if self.runtime != "onnxruntime":
                raise InvalidConfig(f"{self.runtime} writes no graph that it made", next_step="leave out graph_path")

    @property
    def models(self) -> tuple[BenchModel, ...]:
        """In the order of the results' index: a pair counts as two."""
        found: list[BenchModel] = []
        for entry in self.entries:
            found += [entry.first, entry.second] if isinstance(entry, BenchPair) else [entry]
        return tuple(found)

    def text(self) -> str:
        """The manifest as the runner reads it."""
        lines = [f"amc_bench_manifest {MANIFEST_VERSION}", f"runtime {self.runtime}", f"library {self.library}"]
        for key in ("runtime_version", "cores", "delegate", "graph_path"):
            if getattr(self, key):
                lines.append(f"{key} {getattr(self, key)}")
        lines += [f"threads {self.threads}", f"deadline_s {self.deadline_s}"]
        lines += [f"model_deadline_s {self.model_deadline_s}"] if self.model_deadline_s else []
        lines += [f"warmup_s {self.warmup_s:.3f}"] if self.warmup_s else []
        current: BenchTiming | None = None
        for entry in self.entries:
            wanted = (entry.first if isinstance(entry, BenchPair) else entry).timing or self.timing
            if wanted != current:
                lines += wanted.lines(current)
                current = wanted
            if isinstance(entry, BenchPair):
                fields = (entry.first.id, entry.first.path, entry.second.id, entry.second.path)
                lines.append("pair " + "\t".join(fields))
            else:
                lines.append(f"model {entry.id} {entry.path}")
        return "\n".join(lines) + "\n"
