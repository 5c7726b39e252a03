"""This computer as the device: runs models with the runtimes that are installed in this environment."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from amc_mobile.device.conditions import Conditions, core_ranges
from amc_mobile.device.health import BUSY, check_waivers
from amc_mobile.device.host_neighbours import LONG_S, HostNeighbours
from amc_mobile.device.neighbours import WINDOW_S, Neighbourhood, Neighbours, OnNeighbours
from amc_mobile.device.runtimes import RUNTIMES, Runtime, RuntimeSession, installed_runtimes
from amc_mobile.device.timing import Counters, Heat, SessionDevice
from amc_mobile.errors import InvalidConfig, MissingDependency

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["HostDevice", "Session", "installed_runtimes"]

CPU_FOLDER = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")
SENSORS_FOLDER = Path("/sys/class/hwmon")
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")  # names of their drivers


class Session:
    """A loaded model with its inputs filled once. `run()` is one inference; close it, or use it as a context."""

    run: Callable[[], object]

    def __init__(self, loaded: RuntimeSession) -> None:
        # The runtime's own function, not a method around it: a call's overhead is part of every sample.
        self.run = loaded.run
        self._loaded: RuntimeSession | None = loaded

    def close(self) -> None:
        """Frees the model. Harmless when repeated."""
        self._loaded = None
        self.run = _closed

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _closed() -> object:
    raise RuntimeError("this session is closed")


class HostDevice(SessionDevice):
    """Runs models on this computer's CPU with one runtime, "tflite" or "onnxruntime".

    `patience_s`: how long to wait, in all sessions together, for other programs to end. `waived`: names of problems
    that do not matter; with BUSY nobody looks for other programs. Raises InvalidConfig for unknown runtimes and
    waivers and thread counts below 1, MissingDependency for a runtime that is not installed.
    """

    name = "host"

    def __init__(
        self,
        runtime: str,
        threads: int = 1,
        *,
        patience_s: float = 0.0,
        waived: Collection[str] = (),
        on_wait: OnNeighbours | None = None,
    ) -> None:
        check_waivers(waived)
        if runtime not in RUNTIMES:
            raise InvalidConfig(f"runtime {runtime!r} is unknown", next_step=f"use one of {', '.join(RUNTIMES)}")
        if threads < 1:
            raise InvalidConfig(f"threads = {threads} must be at least 1", next_step="pass --threads 1")
        self._runtime: Runtime = RUNTIMES[runtime]
        if not self._runtime.is_installed():
            raise MissingDependency(self._runtime.package, self._runtime.extra)
        self.runtime = runtime
        self.threads = threads
        self._others = HostNeighbours()
        self._neighbourhood = Neighbourhood(
            self._others.look if BUSY not in waived else lambda: None, patience_s, on_wait
        )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Waits, as long as the patience lasts, for other programs to end."""
        if self._others.seconds_since < LONG_S:
            self.is_steady()
        else:
            self._neighbourhood.look()
        if not self._neighbourhood.is_steady:
            self.settle()
        yield

    def is_steady(self) -> bool:
        """Whether no other program came since the session began."""
        if WINDOW_S <= self._others.seconds_since < math.inf:  # somebody has looked before, and nobody just now
            self._neighbourhood.see(self._others.since_before())
        return self._neighbourhood.is_steady

    def settle(self) -> None:
        self._neighbourhood.wait()

    def neighbours(self) -> Neighbours | None:
        return self._neighbourhood.now

    def counters(self) -> Counters:
        return counters(allowed_cores())

    def most_neighbours(self) -> Neighbours | None:
        return self._neighbourhood.most

    def heat(self) -> Heat:
        return read_heat(allowed_cores())

    def conditions(self) -> Conditions:
        cores = allowed_cores()
        return Conditions(
            device=self.name,
            soc=processor_name(),
            os=f"{platform.system()} {platform.release()} {platform.machine()}",
            runtime=self.runtime,
            runtime_version=self._runtime.version(),
            library_sha256=self._runtime.library_sha256(),
            delegate=self._runtime.delegate,
            threads=self.threads,
            cores=core_ranges(cores),
            clock_mode=clock_mode(cores),
            layout=self._runtime.layout(),
        )

    def open(self, model: bytes) -> Session:
        """Loads a model and fills its inputs with seeded random data.

        Raises InvalidInput for bytes that the runtime does not read, DeviceError when the model cannot be prepared.
        """
        return Session(self._runtime.load(model, self.threads))


def processor_name(cpu_info: Path = CPU_INFO) -> str:
    """The processor's model name as the system tells it, e.g. `AMD EPYC 7B13`."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for wanted in ("model name", "Hardware", "Processor"):  # Arm kernels have no model name
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == wanted and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def allowed_cores() -> tuple[int, ...]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # macOS and Windows do not tell


def counters(cores: Collection[int], folder: Path = CPU_FOLDER) -> Counters:
    """What the kernel has counted of this process and of the cluster that holds these cores. Virtual machines have no
    clocks to count."""
    usage = resource.getrusage(resource.RUSAGE_SELF) if resource else None
    clocks: list[tuple[float, float, float]] = []  # ms, MHz times ms, ms at the highest clock
    for policy in folder.glob("cpufreq/policy*"):
        try:
            if set(map(int, (policy / "related_cpus").read_text().split())) & set(cores):
                lines = (policy / "stats" / "time_in_state").read_text().splitlines()
                rows = [(int(khz) / 1000, 10.0 * int(ticks)) for khz, ticks in map(str.split, lines)]
                clocks.append((sum(ms for _, ms in rows), sum(mhz * ms for mhz, ms in rows), max(rows)[1]))
        except (OSError, ValueError):
            clocks.clear()
            break
    # Of several clusters some rest, and which of them works is not known.
    clock_ms, clock_mhz_ms, clock_top_ms = clocks[0] if len(clocks) == 1 else (None, None, None)
    return Counters(usage.ru_nivcsw if usage else None, clock_ms, clock_mhz_ms, clock_top_ms)


def clock_mode(cores: tuple[int, ...], folder: Path = CPU_FOLDER) -> str:
    """The distinct frequency governors of the cores, e.g. `performance`; "unknown" where the system has none."""
    governors = set()
    for core in cores:
        path = folder / f"cpu{core}" / "cpufreq" / "scaling_governor"
        try:
            governors.add(path.read_text().strip())
        except OSError:
            continue
    return "+".join(sorted(governors)) or "unknown"


def read_heat(cores: tuple[int, ...], cpu_folder: Path = CPU_FOLDER, sensors: Path = SENSORS_FOLDER) -> Heat:
    """The hottest sensor of the processor and the fastest clock of the cores; Linux only, and rarely in containers."""
    thousandths = [
        _whole_number(path)
        for chip in sensors.glob("hwmon*")
        if _line_of(chip / "name") in CPU_SENSORS
        for path in chip.glob("temp*_input")
    ]
    clocks_khz = [_whole_number(cpu_folder / f"cpu{core}" / "cpufreq" / "scaling_cur_freq") for core in cores]
    hottest, fastest = max(thousandths, default=0), max(clocks_khz, default=0)
    return Heat(celsius=hottest / 1000 or None, clock_mhz=fastest / 1000 or None)


def _line_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # also of a sensor that sleeps
        return ""


def _whole_number(path: Path) -> int:
    """0 where the file holds none."""
    text = _line_of(path)
    return int(text) if text.isascii() and text.isdigit() else 0
