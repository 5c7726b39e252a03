"""The inference runtimes that this environment may hold: LiteRT for .tflite, ONNX Runtime for .onnx."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile import litert
from amc_mobile.device import layout
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.errors import DeviceError, InvalidInput

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
            interpreter = litert.unprepared(model, threads)
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(f"LiteRT does not read this model: {_first_line(error)}") from error
        try:
            litert.prepare(interpreter)
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
