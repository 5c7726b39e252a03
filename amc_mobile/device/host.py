"""This computer as the device: runs models with the runtimes that are installed in this environment."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import math
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile import formats
from amc_mobile.device import layout
from amc_mobile.device.accelerator import CPU, GPU, check_accelerator, gpu, runner
from amc_mobile.device.conditions import PARTLY, Conditions, core_ranges
from amc_mobile.device.device import (
    WINDOW_S,
    Counters,
    CpuTimes,
    Heat,
    Neighbourhood,
    Neighbours,
    OnNeighbours,
    Session,
    SessionDevice,
    parse_cpu_times,
)
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.device.phone_state import BUSY, FALLBACK, check_waivers
from amc_mobile.errors import DeviceError, InvalidConfig, InvalidInput, first_line
from amc_mobile.formats import BY_RUNTIME, FORMATS, ONNX, TFLITE, Format

INPUT_SEED = 0


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


def _tflite_session(model: bytes, threads: int) -> Session:
    interpreter = formats.open_tflite(model, threads)
    try:
        for entry in interpreter.get_input_details():
            interpreter.set_tensor(entry["index"], random_input(entry["shape"], np.dtype(entry["dtype"])))
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise DeviceError(f"LiteRT cannot run this model: {first_line(error)}") from error
    return Session(interpreter.invoke, interpreter, model)


def _onnx_session(model: bytes, threads: int) -> Session:
    session = formats.open_onnx(model, threads)
    from onnxruntime import OrtValue

    binding = session.io_binding()
    values = []
    try:
        for entry in session.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in entry.shape]  # a name is the batch
            values.append(OrtValue.ortvalue_from_numpy(random_input(shape, _onnx_dtype(entry.type))))
            binding.bind_ortvalue_input(entry.name, values[-1])
        for entry in session.get_outputs():
            if all(isinstance(size, int) for size in entry.shape):
                values.append(OrtValue.ortvalue_from_numpy(np.zeros(entry.shape, _onnx_dtype(entry.type))))
                binding.bind_ortvalue_output(entry.name, values[-1])
            else:
                binding.bind_output(entry.name)
        session.run_with_iobinding(binding)
    except InvalidInput:
        raise
    except Exception as error:  # its errors share no base class of their own
        raise DeviceError(f"ONNX Runtime cannot run this model: {first_line(error)}") from error
    run_bound = session.run_with_iobinding
    return Session(lambda: run_bound(binding), session, binding, *values)


def _onnx_dtype(name: str) -> np.dtype[Any]:
    """`tensor(float)` -> float32. Raises InvalidInput for strings, sequences and maps."""
    names = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
    inner = name.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(names.get(inner, inner))
    except TypeError as error:
        raise InvalidInput(f"an input or output of type {name} is not supported") from error


# The sum of two inputs, opset 13, as the package onnx writes it.
_ONNX = (
    "CAc6WQoQCgFhCgFiEgNzdW0iA0FkZBIEdGlueVoTCgFhEg4KDAgBEggKAggBCgIIBFoTCgFiEg4KDAgBEggKAggBCgIIBGIVCgNzdW0SDgoMCAES"
    "CAoCCAEKAggEQgQKABAN"
)
# The sum of two images of 8x8 pixels, packed by zlib.
_TFLITE = (
    "eNqTYGBgCHHzMWZg4GMQYRBg4GHgAIqwAHkMQB4DgwQQazAyMDADaUawDAPDg3///zNC5XnguliAJEQsAGQmEMdA9YgwgAAfmAap5UYyHwi4Yfos"
    "/kPMZYJiBqh+bGIg92QAsQHUTRuAejnA7oHIFZfmgsVBajmgGMS/gaQOJJcEFUdXxwMNCQaov5D1JOLQwwhns4D5ANORFiY="
)


def tiny_model(runtime: str) -> bytes:
    if runtime == ONNX.runtime:
        return base64.b64decode(_ONNX)
    return zlib.decompress(base64.b64decode(_TFLITE))


_SESSIONS = {TFLITE.runtime: _tflite_session, ONNX.runtime: _onnx_session}


@lru_cache(maxsize=8)
def library_sha256(form: Format) -> str:
    """Of the runtime's shared library, or "" when its package is laid out in another way."""
    spec = importlib.util.find_spec(form.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    libraries = sorted(path for folder in folders for path in Path(folder).glob(form.library))
    digest = hashlib.sha256()
    for path in libraries:
        digest.update(path.read_bytes())
    return digest.hexdigest() if libraries else ""


@lru_cache(maxsize=2)
def layout_here(runtime: str) -> str:
    """How a runtime rewrites graphs on this computer, see `OnnxLayout.text`; "" where it is not installed or does not
    say."""
    if runtime != ONNX.runtime or not ONNX.is_installed:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        formats.open_onnx(layout.questions(), optimised=path)
        return layout.read(path.read_bytes()).text()


def assumed_layout(runtime: str) -> str:
    """For tables and libraries without a layout: what is fused on this computer, without its blocks of channels."""
    return replace(OnnxLayout.parse(layout_here(runtime)), block=0).text() if runtime == ONNX.runtime else ""


def installed_runtimes() -> tuple[str, ...]:
    """The runtimes that can be used here, in order of preference."""
    return tuple(form.runtime for form in FORMATS.values() if form.is_installed)


PROC = Path("/proc")
LONG_S = 10.0  # over a longer time than this, a neighbour that has just come would not show
NAME_CHARACTERS = 40


class HostNeighbours:
    """Looks at the processor time of all programs but this one. `proc`: the kernel's folder with it."""

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
        others = self.since_before()
        return replace(others, program=self._greediest(programs)) if others and others.is_busy else others

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
        programs = {}
        for folder in self._proc.iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                try:
                    name, _, counts = (folder / "stat").read_text(errors="replace").rpartition(") ")
                    words = counts.split()
                    programs[int(folder.name)] = (int(words[11]) + int(words[12]), name.partition("(")[2])
                except (OSError, ValueError, IndexError):
                    continue  # it has ended meanwhile
        return programs

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

CPU_FOLDER = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")
SENSORS_FOLDER = Path("/sys/class/hwmon")
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")  # names of their drivers


class HostDevice(SessionDevice):
    """Runs models on this computer with one runtime.

    `patience_s`: how long to wait, in all sessions together, for other programs to end. `waived`: names of problems
    that do not matter; with BUSY nobody looks for other programs, with FALLBACK operators that the accelerator cannot
    run are left to the CPU. Raises InvalidConfig for unknown runtimes, accelerators and waivers and thread counts
    below 1, MissingDependency for a runtime that is not installed.
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
        accelerator: str = CPU,
    ) -> None:
        check_waivers(waived)
        if runtime not in BY_RUNTIME:
            raise InvalidConfig(f"runtime {runtime!r} is unknown", next_step=f"use one of {', '.join(BY_RUNTIME)}")
        if threads < 1:
            raise InvalidConfig(f"threads = {threads} must be at least 1", next_step="pass --threads 1")
        self._format = BY_RUNTIME[runtime]
        if not self._format.is_installed:
            raise self._format.missing()
        check_accelerator(accelerator, runtime)
        self.runtime = runtime
        self.threads = threads
        self._is_on_gpu, self._may_fall_back = accelerator == GPU, FALLBACK in waived
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
            runtime_version=self._format.runtime_version,
            library_sha256=library_sha256(self._format),
            delegate=self._delegate(),
            threads=self.threads,
            cores=core_ranges(cores),
            clock_mode=clock_mode(cores),
            layout=layout_here(self.runtime),
            accelerator="" if not self._is_on_gpu else PARTLY if self._may_fall_back else GPU,
        )

    def _delegate(self) -> str:
        if not self._is_on_gpu:
            return self._format.delegate
        adapter = gpu().adapter(tiny_model(self.runtime))
        return adapter.text() if adapter else "WebGPU"

    def open(self, model: bytes) -> Session:
        """Loads a model and fills its inputs with seeded random data.

        Raises InvalidInput for bytes that the runtime does not read, DeviceError when the model cannot be prepared.
        """
        if not self._is_on_gpu:
            return _SESSIONS[self.runtime](model, self.threads)
        run, keeps = runner(gpu().compiled(model, may_fall_back=self._may_fall_back), random_input)
        return Session(run, *keeps)


def processor_name(cpu_info: Path = CPU_INFO) -> str:
    """The processor's model name as the system gives it, e.g. `AMD EPYC 7B13`."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for name in ("model name", "Hardware", "Processor"):  # Arm kernels have no model name
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == name and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def allowed_cores() -> tuple[int, ...]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))  # macOS and Windows do not say


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
    # Of several clusters some rest, and the kernel does not say which one works.
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
