"""ONNX Runtime on several processors: this one, and others under an emulator. What they compute in, not how fast."""

from __future__ import annotations

import functools
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import arm64_sandbox
import onnx
from host_runner import build_host_runner, locate_library, run_on_host

from amc_mobile.device.device import Timing
from amc_mobile.device.layout import OnnxLayout, questions, read
from amc_mobile.device.runner import BenchGraph, BenchManifest, BenchModel

X86_EMULATOR = arm64_sandbox.emulator("x86_64")
AVX2 = ["-cpu", "Haswell"]
ARM64 = {"arm64": "cortex-a76", "arm64 with SME": "max"}
PROCESSORS = ("here", "x86 with AVX2", *ARM64)


def missing(processor: str) -> str:
    """Why ONNX Runtime cannot be run on a processor, or ""."""
    if processor == "x86 with AVX2":
        if platform.machine() != "x86_64":
            return "needs ONNX Runtime for x86_64"
        return "" if X86_EMULATOR else f"no qemu-x86_64: {arm64_sandbox.FETCH}"
    if processor in ARM64:
        fetched = any(arm64_sandbox.LIBRARIES.glob("libonnxruntime.so*"))
        return arm64_sandbox.missing() or ("" if fetched else f"no libonnxruntime.so for arm64: {arm64_sandbox.FETCH}")
    return ""


@functools.cache
def _runner(processor: str) -> tuple[list[str], Path]:
    """The command that a manifest's path is to follow, and ONNX Runtime's library."""
    if processor in ARM64:
        folder = Path(tempfile.mkdtemp(prefix="arm64-"))
        executable = arm64_sandbox.build("--linux-arm64", output=folder / "amc-bench")
        emulator, *rest = arm64_sandbox.emulated(executable, arm64_sandbox.make_sysroot(folder / "sysroot"))
        return [emulator, "-cpu", ARM64[processor], *rest], next(arm64_sandbox.LIBRARIES.glob("libonnxruntime.so*"))
    emulator = [str(X86_EMULATOR), *AVX2] if processor == "x86 with AVX2" else []
    return [*emulator, str(build_host_runner())], locate_library("onnxruntime").path


def optimised(processor: str, files: Sequence[bytes]) -> list[bytes]:
    """The graphs that ONNX Runtime makes of some models on a processor, as .onnx files."""
    command, library = _runner(processor)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number, file in enumerate(files):
            (folder / f"{number}.onnx").write_bytes(file)
        models = tuple(BenchModel(str(number), f"{number}.onnx") for number in range(len(files)))
        timing = Timing(warmup_runs=0, samples=1, min_samples=1)
        graph = str(folder / "graph.onnx")
        asked = BenchManifest("onnxruntime", str(library), 1, 300, models, timing, graph_path=graph)
        events = run_on_host(command, asked, folder).events
    return [event.file for event in events if isinstance(event, BenchGraph)]


@functools.cache
def layout(processor: str) -> OnnxLayout:
    (graph,) = optimised(processor, [questions()])
    return read(graph)


def nodes(file: bytes) -> list[onnx.NodeProto]:
    return list(onnx.load_from_string(file).graph.node)
