"""All that is known about .tflite and .onnx files and their runtimes, in one table; and how to load a file here.

No other module names a runtime: it takes what differs between formats from TFLITE, ONNX and PHONE_RUNTIMES.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_mobile.errors import DeviceError, InvalidInput, MissingDependency, first_line

FLOAT32, INT8, FLOAT16 = "float32", "int8", "float16"
PRECISIONS = (FLOAT32, INT8, FLOAT16)


@dataclass(frozen=True)
class Format:
    """A kind of exported file, and the runtime that runs it on this computer.

    `name`: the file's suffix and the option of `export`. `runtime`: as `--runtime`, conditions and kernels call it.
    `library`: pattern of the shared library that computes, in the folder of the runtime's Python module.
    `exporter_packages`: those whose versions decide what a network is exported to. `channel_axis`: of images in the
    file.
    """

    name: str
    runtime: str
    package: str  # of the runtime, on PyPI
    module: str
    extra: str  # of amc-mobile that installs everything for this format; "": always there
    library: str
    delegate: str
    exporter: str  # module
    exporter_packages: tuple[str, ...]
    quantizer_package: str
    precisions: tuple[str, ...]
    channel_axis: int

    @property
    def suffix(self) -> str:
        return f".{self.name}"

    @property
    def is_installed(self) -> bool:
        """Whether this computer has the runtime."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def can_export(self) -> bool:
        return importlib.util.find_spec(self.exporter) is not None

    @property
    def runtime_version(self) -> str:
        import importlib.metadata  # takes a tenth of the start-up

        return importlib.metadata.version(self.package)

    def missing(self, package: str = "") -> MissingDependency:
        """The error for a package of this format that is not installed, by default the runtime's."""
        return MissingDependency(package or self.package, self.extra)


TFLITE = Format(
    name="tflite",
    runtime="tflite",
    package="ai-edge-litert",
    module="ai_edge_litert",
    extra="tflite",
    library="libpywrap_litert_common.*",
    delegate="XNNPACK",  # the interpreter hands float and int8 graphs to it by itself
    exporter="litert_torch",
    exporter_packages=("torch", "litert-torch"),
    quantizer_package="litert-quantizer",
    precisions=PRECISIONS,
    channel_axis=-1,
)
ONNX = Format(
    name="onnx",
    runtime="onnxruntime",
    package="onnxruntime",
    module="onnxruntime",
    extra="",
    library="capi/onnxruntime_pybind11_state*",
    delegate="CPUExecutionProvider",
    exporter="onnxscript",
    exporter_packages=("torch", "onnx", "onnxscript"),
    quantizer_package="onnxruntime",
    precisions=(FLOAT32, INT8),
    channel_axis=1,
)
FORMATS = {form.name: form for form in (TFLITE, ONNX)}  # by name, in order of preference
BY_RUNTIME = {form.runtime: form for form in FORMATS.values()}
BY_SUFFIX = {form.suffix: form for form in FORMATS.values()}


@dataclass(frozen=True)
class PhoneRuntime:
    """What runs the files of a format on a phone.

    `symbol`: by whose export a library is recognised. `wheel_library`: pattern of such a library in the format's
    package for this computer; "": none of its wheels has one.
    """

    name: str
    format: Format
    symbol: str = ""
    wheel_library: str = ""


LITERT = "litert"  # LiteRT's newer interface, whose ABI changes with its version
BENCHMARK_MODEL = "benchmark_model"  # TFLite's own program, with the library inside
PHONE_RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        PhoneRuntime(ONNX.runtime, ONNX, "OrtGetApiBase", "capi/libonnxruntime.so*"),
        # Before tflite: a library with both interfaces is driven through the newer one.
        PhoneRuntime(LITERT, TFLITE, "LiteRtCreateEnvironment", "libLiteRt.so"),
        PhoneRuntime(TFLITE.runtime, TFLITE, "TfLiteInterpreterCreate"),
        PhoneRuntime(BENCHMARK_MODEL, TFLITE),
    )
}
LIBRARY_RUNTIMES = (TFLITE.runtime, LITERT, ONNX.runtime)  # those that a library for phones may be of
MAVEN = (  # where libraries for phones are
    "com.microsoft.onnxruntime:onnxruntime-android, org.tensorflow:tensorflow-lite, com.google.ai.edge.litert:litert"
)


TFLITE_IDENTIFIER = b"TFL3"  # from the fifth byte on
REMARK = b"INFO: "  # begins a line that says which delegate runs; warnings and errors begin otherwise
STDERR = 2  # C++ writes there, whatever sys.stderr is


def open_tflite(model: bytes, threads: int = 1) -> Any:
    """LiteRT's interpreter with its tensors allocated.

    Raises InvalidInput for bytes that are no model, DeviceError when the model cannot be prepared, MissingDependency.
    """
    if model[4:8] != TFLITE_IDENTIFIER:
        raise InvalidInput("not a .tflite model", next_step="give a file that a TFLite converter wrote")
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise TFLITE.missing() from error
    try:
        interpreter = Interpreter(model_content=model, num_threads=threads)
    except (ValueError, RuntimeError) as error:
        raise InvalidInput(f"LiteRT does not read this model: {first_line(error)}") from error
    try:
        allocate(interpreter)
    except (ValueError, RuntimeError) as error:
        raise DeviceError(f"LiteRT cannot run this model: {first_line(error)}") from error
    return interpreter


def allocate(interpreter: Any) -> None:
    """Allocates the tensors, which creates the delegate, without its remark. Raises ValueError or RuntimeError."""
    log = NativeLog()
    try:
        with native_log(log, stdout=False):
            interpreter.allocate_tensors()
    finally:
        for line in log.text.splitlines(keepends=True) if sys.stderr is not None else ():
            if not line.startswith(REMARK):
                os.write(STDERR, line)


@dataclass
class NativeLog:
    text: bytes = b""


@contextmanager
def native_log(log: NativeLog | None = None, *, stdout: bool = True) -> Iterator[NativeLog]:
    """What C++ writes to stderr, and with `stdout` there, meanwhile, which does not appear; whole at the end.

    Its log level is compiled in: no variable and no function of the library changes it.
    """
    log, kept = log or NativeLog(), dict[int, int]()
    streams = {**({1: sys.stdout} if stdout else {}), STDERR: sys.stderr}
    with tempfile.TemporaryFile() as written:
        for number, stream in streams.items():
            if stream is not None:  # closed: another file may have its number
                stream.flush()
                kept[number] = os.dup(number)
                os.dup2(written.fileno(), number)
        try:
            yield log
        finally:
            for number, own in kept.items():
                os.dup2(own, number)
                os.close(own)
            written.seek(0)
            log.text = written.read()


def open_onnx(model: bytes, threads: int = 1, *, optimised: Path | None = None) -> Any:
    """A session of ONNX Runtime's CPU provider with every graph optimisation, as an application would use it.

    `optimised`: where it writes the graph that it made. Raises InvalidInput for bytes that are no model, DeviceError
    when the model cannot be loaded.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors reach the user as exceptions
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(model, options, providers=[ONNX.delegate])
    except (state.InvalidProtobuf, state.InvalidGraph, state.NoModel) as error:
        raise InvalidInput(f"ONNX Runtime does not read this model: {first_line(error)}") from error
    except Exception as error:  # its errors share no base class of their own
        raise DeviceError(f"ONNX Runtime cannot load this model: {first_line(error)}") from error


MOST_LOST = 0.02  # of the accuracy; what a quantised file may lose without a warning
LEAST_SQNR_DB = 10.0  # below it the noise has more than a tenth of the signal's power
REMEDY = "try the other format, `--fp16` (.tflite only) or `--fp32`, or quantise a less pruned network"


def precision_problem(precision: str, metric: str, before: float, after: float, images: int, sqnr_db: float) -> str:
    """What a quantised file loses too much of; empty where it does not.

    `before`, `after`: accuracies of the float32 and of the quantised file on so many test images; one image less is no
    loss.
    """
    problems = []
    if before - after > MOST_LOST and (before - after) * images > 1.5:
        problems.append(
            f"{precision} costs {100 * (before - after):.1f} points of {metric}, more than {100 * MOST_LOST:.0f}"
        )
    if sqnr_db < LEAST_SQNR_DB:
        problems.append(f"its SQNR is {sqnr_db:.1f} dB, below {LEAST_SQNR_DB:.0f} dB")
    return "; ".join(problems)
