"""Models on an accelerator of this computer, by LiteRT's compiled models: what ran there, proven by the runtime itself.

A model is accelerated when LiteRT says that no operator is left to the CPU. What it says about adapters and about
operators that it cannot place, it says in its log alone.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from amc_mobile.errors import DeviceError, DeviceUnavailable, InvalidConfig, first_line
from amc_mobile.formats import TFLITE, native_log

if TYPE_CHECKING:
    from collections.abc import Callable

CPU, GPU, NPU = ACCELERATORS = ("cpu", "gpu", "npu")

_ADAPTER = re.compile(rb"Selected adapter: ([^,\n]{1,80}),[^\n]*?backend=(\w{1,20}), adapterType=([^\n]{1,40})")
_NO_GPU = re.compile(rb"No adapters found|Failed to initialize WebGPU|\bGPU accelerator could not be loaded")
_NOT_PLACED = re.compile(rb"^([A-Z][A-Z0-9_]{1,40}): ", re.M)
_HEADER = b"not supported by GPU delegate"
INSTALL = "install a driver for Vulkan, e.g. Debian's mesa-vulkan-drivers, or measure with --accelerator cpu"


@dataclass(frozen=True)
class Adapter:
    name: str
    backend: str  # Vulkan, Metal ...
    kind: str

    @property
    def is_software(self) -> bool:
        return "cpu" in self.kind.lower()

    def text(self) -> str:
        software = ", software" if self.is_software else ""
        return f"WebGPU, {self.backend}, {self.name}{software}"


def check_accelerator(accelerator: str, runtime: str) -> None:
    """Raises InvalidConfig for what no runtime of this computer has."""
    if accelerator not in ACCELERATORS:
        raise InvalidConfig(
            f"accelerator {accelerator!r} is unknown", next_step=f"use one of {', '.join(ACCELERATORS)}"
        )
    if accelerator == NPU:
        raise InvalidConfig("no runtime drives an NPU of this computer", next_step="pass --accelerator gpu or cpu")
    if accelerator == GPU and runtime != TFLITE.runtime:
        raise InvalidConfig(
            f"{runtime} drives the CPU only", next_step=f"pass --runtime {TFLITE.runtime} with --accelerator gpu"
        )


class Gpu:
    """This computer's GPU as LiteRT drives it, through WebGPU. Raises MissingDependency."""

    def __init__(self) -> None:
        try:
            from ai_edge_litert.compiled_model import CompiledModel
            from ai_edge_litert.environment import Environment
            from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        except ImportError as error:
            raise TFLITE.missing() from error
        self._compile, self._units = CompiledModel.from_buffer, HardwareAccelerator
        self._adapter: Adapter | None = None
        with native_log():
            self._environment: Any = Environment.create()

    def adapter(self, probe: bytes) -> Adapter | None:
        """What LiteRT chose; None where it does not say. `probe`: any model that runs there."""
        if self._adapter is None:  # it says so once
            self.compiled(probe)
        return self._adapter

    def compiled(self, model: bytes, *, may_fall_back: bool = False) -> Any:
        """`model` (.tflite) on the GPU. With `may_fall_back` operators that it cannot run are left to the CPU.

        Raises DeviceUnavailable where there is no GPU, DeviceError naming the operators that it cannot run.
        """
        allowed = self._units.GPU | self._units.CPU if may_fall_back else self._units.GPU
        failure: Exception | None = None
        with native_log() as log:
            try:
                compiled = self._compile(model, hardware_accel=allowed, environment=self._environment)
            except Exception as error:  # a RuntimeError today, of C++ underneath
                failure = error
        if found := _ADAPTER.search(log.text):
            self._adapter = Adapter(*(group.decode(errors="replace").strip() for group in found.groups()))
        if failure is None and (may_fall_back or compiled.is_fully_accelerated()):
            return compiled
        left = dict.fromkeys(name.decode() for name in _NOT_PLACED.findall(log.text.partition(_HEADER)[2]))
        if not left and _NO_GPU.search(log.text):
            raise DeviceUnavailable("LiteRT finds no GPU on this computer", next_step=INSTALL) from failure
        what = ", ".join(left) if left else f"this model: {first_line(failure)}" if failure else "all of this model"
        raise DeviceError(
            f"the GPU cannot run {what}",
            next_step="measure with --accelerator cpu, or let the CPU run the rest: --waive FALLBACK",
        ) from failure

    def close(self) -> None:
        """At the end of the process: LiteRT writes about every accelerator that it lets go, and some go after this."""
        with native_log():
            self._environment = None
            gc.collect()  # models that sessions still hold
        if sys.stderr is not None:
            sys.stderr.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno() if sys.__stderr__ else 2)


@lru_cache(maxsize=1)
def gpu() -> Gpu:
    found = Gpu()
    atexit.register(found.close)
    return found


def runner(compiled: Any, fill: Callable[[Any, Any], Any]) -> tuple[Callable[[], object], tuple[object, ...]]:
    """One inference, which ends when its outputs can be read, and what must live as long.

    Without reading them an inference only submits its work. `fill`: (shape, NumPy dtype) -> data for an input.
    """
    import numpy as np

    ((key, signature),) = compiled.get_signature_list().items()
    given, results = compiled.get_input_tensor_details(key), compiled.get_output_tensor_details(key)
    with native_log():
        inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
        for buffer, name in zip(inputs, signature["inputs"], strict=True):
            buffer.write(np.ascontiguousarray(fill(given[name]["shape"], np.dtype(given[name]["dtype"]))))
    reads = [
        (buffer, int(np.prod(results[name]["shape"])), np.dtype(results[name]["dtype"]).type)
        for buffer, name in zip(outputs, signature["outputs"], strict=True)
    ]

    def run() -> None:
        compiled.run_by_index(0, inputs, outputs)
        for buffer, count, kind in reads:
            buffer.read(count, kind)

    with native_log():
        run()
    return run, (compiled, inputs, outputs)
