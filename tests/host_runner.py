"""The runner for phones on this computer: compiled with its C compiler, and run with its own inference libraries."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.runner import (
    BenchEnd,
    BenchError,
    BenchEvent,
    BenchManifest,
    BenchResult,
    BenchStart,
    ResultStream,
)
from amc_mobile.formats import PHONE_RUNTIMES

SOURCES = Path(__file__).parents[1] / "android_bench"
COMPILER = shlex.split(os.environ.get("CC", "")) or ["cc"]
GRACE_S = 5.0  # the runner's watchdog ends it one second after its deadline
_scratch = tempfile.TemporaryDirectory(prefix="amc-runner-")


@functools.cache
def build_host_runner() -> Path:
    """The runner for this computer, built once in a process."""
    built = Path(_scratch.name) / "amc-bench"
    files = [str(path) for path in SOURCES.glob("*.c")]
    subprocess.run([*COMPILER, "-std=c11", "-O2", *files, "-ldl", "-o", str(built)], check=True, timeout=120)
    return built


@functools.cache
def locate_library(runtime: str) -> RuntimeLibrary:
    """The library for the runner in this environment's packages."""
    form, pattern = PHONE_RUNTIMES[runtime].format, PHONE_RUNTIMES[runtime].wheel_library
    spec = importlib.util.find_spec(form.module)
    assert spec is not None, f"{form.package} is not installed"
    path = next(path for folder in spec.submodule_search_locations or () for path in Path(folder).glob(pattern))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return RuntimeLibrary(runtime, form.runtime_version, platform.machine(), "glibc", path, digest)


@dataclass(frozen=True)
class BenchRun:
    """A finished run. `log`: the end of what it and the runtime printed."""

    events: tuple[BenchEvent, ...]
    end: BenchEnd | None
    exit_code: int
    log: str

    @property
    def start(self) -> BenchStart | None:
        return next((event for event in self.events if isinstance(event, BenchStart)), None)

    @property
    def results(self) -> tuple[BenchResult, ...]:
        return tuple(event for event in self.events if isinstance(event, BenchResult))

    @property
    def errors(self) -> tuple[BenchError, ...]:
        return tuple(event for event in self.events if isinstance(event, BenchError))


def run_on_host(runner: Path | Sequence[str], manifest: BenchManifest, folder: Path) -> BenchRun:
    """Runs the runner; relative paths in the manifest are relative to `folder`.

    `runner`: its path, or a command that it is the last word of, such as an emulator's.
    """
    command = [str(runner)] if isinstance(runner, Path) else list(runner)
    stream = ResultStream([model.id for model in manifest.models])
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".manifest", encoding="utf-8") as written:
        written.write(manifest.text())
        written.flush()
        done = subprocess.run([*command, written.name], capture_output=True, timeout=manifest.deadline_s + GRACE_S)
    events = stream.feed(done.stdout)
    return BenchRun(tuple(events), stream.end, done.returncode, done.stderr[-4000:].decode(errors="replace"))
