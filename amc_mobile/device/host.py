"""This computer as the device: runs models with the runtimes that are installed in this environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile import formats
from amc_mobile.device import layout
from amc_mobile.device.conditions import Conditions, core_ranges
from amc_mobile.device.device import (
    WINDOW_S,
    Counters,
    CpuTimes,
    Heat,
    Neighbourhood,
    Neighbours,
    OnNeighbours,
    SessionDevice,
    parse_cpu_times,
)
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.device.phone_state import BUSY, check_waivers
from amc_mobile.errors import DeviceError, InvalidConfig, InvalidInput, MissingDependency

INPUT_SEED = 0
TFLITE_IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class RuntimeSession:
    """`run`: one inference. `keeps`: what must live as long as the session, such as its input buffers."""

    run: Callable[[], object]
    keeps: tuple[object, ...]


class Runtime(ABC):
    """One inference library with the settings that measurements are made under."""

    name: str
    package: str  # on PyPI
    module: str
    extra: str  # of this project, "" where it is a base dependency
    delegate: str
    library_pattern: str  # of the shared library that does the work, inside the package's folder

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def library_sha256(self) -> str:
        """Of the shared library, or "" when the package is laid out in another way."""
        spec = importlib.util.find_spec(self.module)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        libraries = sorted(path for folder in folders for path in Path(folder).glob(self.library_pattern))
        return _sha256(tuple(libraries)) if libraries else ""

    def layout(self) -> str:
        """How the runtime rewrites graphs on this processor, see `OnnxLayout.text`; "" where it tells nothing."""
        return ""

    @abstractmethod
    def load(self, model: bytes, threads: int) -> RuntimeSession:
        """Raises InvalidInput for bytes that are no model, DeviceError when the model cannot be prepared."""


@lru_cache(maxsize=8)
def _sha256(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def random_input(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Seeded data in [0, 1) for floats, over the type's lower 100 values for integers: never denormal, never NaN."""
    rng = np.random.default_rng(INPUT_SEED)
    if dtype.kind == "f":
        return rng.random(tuple(shape), dtype=np.float32).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, tuple(shape)).astype(dtype)
    if dtype.kind in "iu":
        # 64-bit integers are indices in exported graphs: only 0 is always within range.
        low, high = (0, 1) if dtype.itemsize == 8 else (0, 100)
        return rng.integers(low, high, tuple(shape)).astype(dtype)
    raise InvalidInput(f"an input of type {dtype} cannot be filled", next_step="use a model with numeric inputs")


class Tflite(Runtime):
    """LiteRT's interpreter; it hands float and int8 graphs to XNNPACK by itself."""

    name = "tflite"
    package = "ai-edge-litert"
    module = "ai_edge_litert"
    extra = "tflite"
    delegate = "XNNPACK"
    library_pattern = "libpywrap_litert_common.*"

    def load(self, model: bytes, threads: int) -> RuntimeSession:
        if model[4:8] != TFLITE_IDENTIFIER:
            raise InvalidInput("not a .tflite model", next_step="give a file that a TFLite converter wrote")
        try:
            interpreter = formats.unprepared(model, threads)
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(f"LiteRT does not read this model: {_first_line(error)}") from error
        try:
            formats.prepare(interpreter)
            for entry in interpreter.get_input_details():
                interpreter.set_tensor(entry["index"], random_input(entry["shape"], np.dtype(entry["dtype"])))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"LiteRT cannot run this model: {_first_line(error)}") from error
        return RuntimeSession(interpreter.invoke, (interpreter, model))


class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU provider, with every graph optimisation, as an application would use it."""

    name = "onnxruntime"
    package = "onnxruntime"
    module = "onnxruntime"
    extra = ""
    delegate = "CPUExecutionProvider"
    library_pattern = "capi/onnxruntime_pybind11_state*"

    def layout(self) -> str:
        return _layout_here()

    def load(self, model: bytes, threads: int) -> RuntimeSession:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors reach the user as exceptions
        if threads == 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        unreadable = (state.InvalidProtobuf, state.InvalidGraph, state.NoModel)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except unreadable as error:
            raise InvalidInput(f"ONNX Runtime does not read this model: {_first_line(error)}") from error
        except Exception as error:  # its errors share no base class of their own
            raise DeviceError(f"ONNX Runtime cannot load this model: {_first_line(error)}") from error
        binding = session.io_binding()
        values = []
        try:
            for entry in session.get_inputs():
                shape = [size if isinstance(size, int) else 1 for size in entry.shape]  # names stand for the batch
                array = random_input(shape, _onnx_dtype(entry.type))
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
                values.append(value)
                binding.bind_ortvalue_input(entry.name, value)
            for entry in session.get_outputs():
                if all(isinstance(size, int) for size in entry.shape):
                    array = np.zeros(entry.shape, _onnx_dtype(entry.type))
                    value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
                    values.append(value)
                    binding.bind_ortvalue_output(entry.name, value)
                else:
                    binding.bind_output(entry.name)
            session.run_with_iobinding(binding)
        except InvalidInput:
            raise
        except Exception as error:
            raise DeviceError(f"ONNX Runtime cannot run this model: {_first_line(error)}") from error

        run_bound, bound = session.run_with_iobinding, binding
        return RuntimeSession(lambda: run_bound(bound), (session, binding, *values))


@lru_cache(maxsize=1)
def _layout_here() -> str:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the file is bound to this processor, which is the point
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(layout.questions(), options, providers=["CPUExecutionProvider"])
        return layout.read(path.read_bytes()).text()


def _onnx_dtype(name: str) -> np.dtype[Any]:
    """`tensor(float)` -> float32. Raises InvalidInput for strings, sequences and maps."""
    names = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
    inner = name.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(names.get(inner, inner))
    except TypeError as error:
        raise InvalidInput(f"an input or output of type {name} is not supported") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (Tflite(), OnnxRuntime())}


def layout_here(runtime: str) -> str:
    """What a runtime does with graphs on this computer; "" where it is not installed or tells nothing."""
    return RUNTIMES[runtime].layout() if RUNTIMES[runtime].is_installed() else ""


def assumed_layout(runtime: str) -> str:
    """For tables and libraries that do not tell: what is fused on this computer, without its blocks of channels."""
    return replace(OnnxLayout.parse(layout_here(runtime)), block=0).text() if runtime == "onnxruntime" else ""


def installed_runtimes() -> tuple[str, ...]:
    """The runtimes that can be used here, in order of preference."""
    return tuple(name for name, runtime in RUNTIMES.items() if runtime.is_installed())


PROC = Path("/proc")
LONG_S = 10.0  # over a longer time than this, a neighbour that has just come would not show
NAME_CHARACTERS = 40


class HostNeighbours:
    """Looks at the processor time of all programs but this one. `proc`: where the kernel tells it."""

    def __init__(self, proc: Path | None = None) -> None:
        self._proc = proc or PROC
        self._before: tuple[float, float, CpuTimes] | None = None

    def look(self) -> Neighbours | None:
        """What others take in the next WINDOW_S, and the greediest of them where they are too many."""
        if self._read() is None:
            return None
        programs = self._programs()
        self._before = self._read()
        time.sleep(WINDOW_S)
        found = self.since_before()
        return replace(found, program=self._greediest(programs)) if found and found.is_busy else found

    def since_before(self) -> Neighbours | None:
        """What others took since the last look, while this program worked."""
        before, now = self._before, self._read()
        self._before = now
        if before is None or now is None:
            return None
        ticks = (now[1] - before[1]) * os.sysconf("SC_CLK_TCK")
        return now[2].neighbours_since(before[2], ticks)

    @property
    def seconds_since(self) -> float:
        """Since the last look; infinite before the first."""
        return time.monotonic() - self._before[0] if self._before else math.inf

    def _read(self) -> tuple[float, float, CpuTimes] | None:
        """When, this program's own processor time in seconds, and everyone's."""
        try:
            times = parse_cpu_times((self._proc / "stat").read_text(errors="replace"))
        except OSError:
            return None
        return (time.monotonic(), time.process_time(), times) if times else None

    def _programs(self) -> dict[int, tuple[int, str]]:
        """Pid -> its ticks so far, and its name; those that we may see."""
        found = {}
        for folder in self._proc.iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                try:
                    name, _, counts = (folder / "stat").read_text(errors="replace").rpartition(") ")
                    words = counts.split()
                    found[int(folder.name)] = (int(words[11]) + int(words[12]), name.partition("(")[2])
                except (OSError, ValueError, IndexError):
                    continue  # it has ended meanwhile
        return found

    def _greediest(self, before: dict[int, tuple[int, str]]) -> str:
        taken = {pid: (ticks - before.get(pid, (0, ""))[0], name) for pid, (ticks, name) in self._programs().items()}
        pid = max(taken, key=lambda pid: taken[pid][0], default=None)
        if pid is None or taken[pid][0] <= 0:
            return ""
        # Any program may choose its name.
        shown = "".join(character if character.isprintable() else "?" for character in taken[pid][1])
        return f"{shown[:NAME_CHARACTERS]} (process {pid})"


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
