"""The runner, seen from this side: its executable, the libraries it loads, and a run on this computer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import selectors
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_mobile.device.bench_manifest import BenchManifest, BenchModel, BenchPair, BenchTiming
from amc_mobile.device.bench_results import BenchEnd, BenchError, BenchEvent, BenchResult, BenchStart, ResultStream
from amc_mobile.errors import DeviceError, InvalidConfig, MissingDependency

__all__ = [
    "BenchManifest",
    "BenchModel",
    "BenchPair",
    "BenchRun",
    "BenchTiming",
    "RuntimeLibrary",
    "build_host_runner",
    "locate_library",
    "packaged_runner",
    "run_on_host",
    "runner_program",
    "runner_sources",
]

BUILD_TIMEOUT_S = 120.0
GRACE_S = 5.0  # the runner's watchdog ends it one second after its deadline


@dataclass(frozen=True)
class RuntimeLibrary:
    """A runtime's shared library, with the version that its package tells."""

    runtime: str
    path: Path
    version: str


_WHEELS = {  # runtime: package, module, pattern, extra; no wheel of this platform exports TFLite's own C API
    "onnxruntime": ("onnxruntime", "onnxruntime", "capi/libonnxruntime.so*", ""),
    "litert": ("ai-edge-litert", "ai_edge_litert", "libLiteRt.so", "tflite"),
}


def locate_library(runtime: str) -> RuntimeLibrary:
    """The C library in this environment's packages, "onnxruntime" or "litert".

    Raises InvalidConfig for other runtimes, MissingDependency where the package is not installed, DeviceError where it
    holds no such library.
    """
    if runtime not in _WHEELS:
        raise InvalidConfig(
            f"no package brings a library for {runtime!r}", next_step=f"use one of {', '.join(_WHEELS)}"
        )
    package, module, pattern, extra = _WHEELS[runtime]
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise MissingDependency(package, extra)
    found = sorted(path for folder in spec.submodule_search_locations or () for path in Path(folder).glob(pattern))
    if not found:
        raise DeviceError(
            f"the installed package {package} holds no {pattern}", next_step=f"pip install --upgrade {package}"
        )
    return RuntimeLibrary(runtime, found[0], importlib.metadata.version(package))


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


def runner_sources() -> Path:
    """The folder of the runner's C sources: in the wheel, or in the checkout of an editable installation."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "bench_source", here.parents[2] / "android_bench"):
        if (folder / "bench.h").is_file():
            return folder
    raise DeviceError("this installation holds no sources of the runner", next_step="install amc-mobile again")


def build_host_runner(folder: Path | None = None) -> Path:
    """The runner compiled for this computer, in a cache folder that changes with the sources and the compiler.

    Raises DeviceError where there is no C compiler ($CC or cc), or where it refuses.
    """
    sources = sorted(path for path in runner_sources().iterdir() if path.suffix in (".c", ".h"))
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    digest = hashlib.sha256(repr(compiler).encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amc-mobile" / "runner"
    runner = (folder or cache) / digest.hexdigest()[:16] / "amc-bench"
    if runner.is_file():
        return runner
    runner.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runner.parent) as scratch:
        built = Path(scratch) / "amc-bench"
        files = [str(path) for path in sources if path.suffix == ".c"]
        command = [*compiler, "-std=c11", "-O2", *files, "-ldl", "-o", str(built)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(
                f"the C compiler {compiler[0]} cannot be run", next_step="install one (apt install gcc), or set CC"
            ) from error
        if done.returncode != 0:
            raise DeviceError(f"{compiler[0]} cannot build the runner: {done.stderr.strip()[:500]}")
        built.replace(runner)  # another process that builds it meanwhile gives the same
    return runner


@dataclass(frozen=True)
class BenchRun:
    """All that a finished run told. `log`: the end of what it and the runtime printed."""

    start: BenchStart | None
    results: tuple[BenchResult, ...]
    errors: tuple[BenchError, ...]
    end: BenchEnd | None
    exit_code: int
    log: str


def run_on_host(
    runner: Path | Sequence[str],
    manifest: BenchManifest,
    folder: Path,
    *,
    on_event: Callable[[BenchEvent], None] | None = None,
) -> BenchRun:
    """Runs the runner on this computer; relative paths in the manifest are relative to `folder`.

    `runner`: its path, or a command that it is the last word of, such as an emulator's. Raises DeviceError when it
    cannot be started, writes what is no result, or outlives its deadline.
    """
    command = [str(runner)] if isinstance(runner, Path) else list(runner)
    stream = ResultStream([model.id for model in manifest.models])
    events: list[BenchEvent] = []
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".manifest", encoding="utf-8") as written:
        written.write(manifest.text())
        written.flush()
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen([*command, written.name], stdout=subprocess.PIPE, stderr=log)
            except OSError as error:
                raise DeviceError(f"the runner {command[0]} cannot be started: {error.strerror}") from error
            try:
                for data in _read_until(process, time.monotonic() + manifest.deadline_s + GRACE_S):
                    for event in stream.feed(data):
                        events.append(event)
                        if on_event:
                            on_event(event)
                exit_code = process.wait(GRACE_S)
            except subprocess.TimeoutExpired as error:
                raise DeviceError("the runner has closed its output, but does not end") from error
            finally:
                process.kill()
                process.wait()
                if process.stdout:
                    process.stdout.close()
            log.seek(max(0, log.tell() - 4000))
            tail = log.read().decode(errors="replace")
    return BenchRun(
        stream.start,
        tuple(event for event in events if isinstance(event, BenchResult)),
        tuple(event for event in events if isinstance(event, BenchError)),
        stream.end,
        exit_code,
        tail,
    )


def _read_until(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """What the process writes, until it closes its output. Raises DeviceError after `deadline` (monotonic, s)."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeviceError("the runner has outlived its deadline and was killed")
            if selector.select(left):
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    return
                yield data
