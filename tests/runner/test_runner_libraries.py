"""The runner with the real libraries of this environment's packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from bench_models import needs_compiler, onnx_model, tflite_model
from host_runner import locate_library, run_on_host

from amc_mobile.device.device import Timing
from amc_mobile.device.runner import BenchEnd, BenchManifest, BenchModel, BenchPair

pytestmark = needs_compiler
LITERT = pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="needs the tflite extra")
MAKERS = {"onnxruntime": onnx_model, "litert": tflite_model}


def manifest(runtime: str, folder: Path, threads: int = 1) -> BenchManifest:
    MAKERS[runtime](folder / "model")
    library = locate_library(runtime)
    entries = (BenchModel("model", "model"), BenchPair(BenchModel("first", "model"), BenchModel("second", "model")))
    timing = Timing(warmup_runs=2, samples=4, min_sample_ms=0.05)
    return BenchManifest(runtime, str(library.path), threads, 60, entries, timing, runtime_version=library.version)


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=LITERT)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_is_timed_alone_and_in_a_pair(runtime: str, threads: int, runner: Path, tmp_path: Path) -> None:
    asked = manifest(runtime, tmp_path, threads)
    run = run_on_host(runner, asked, tmp_path)
    assert run.errors == (), run.log
    assert run.end == BenchEnd("done", 3, 0, "")
    assert run.start is not None
    assert (run.start.runtime_version, run.start.threads) == (locate_library(runtime).version, threads)
    assert [(result.id, len(result.samples_ms)) for result in run.results] == [
        ("model", 4), ("first", 4), ("second", 4),
    ]  # fmt: skip
    for result in run.results:
        assert 0 < min(result.samples_ms) <= result.record.first_ms + 1e3


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=LITERT)])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\0\0\0\0TFL3", "cut"])
def test_a_file_that_is_no_model_is_an_error_of_that_model(
    runtime: str, content: bytes | str, runner: Path, tmp_path: Path
) -> None:
    asked = manifest(runtime, tmp_path)
    whole = (tmp_path / "model").read_bytes()
    (tmp_path / "broken").write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    entries = (BenchModel("broken", "broken"), BenchModel("model", "model"))
    run = run_on_host(runner, BenchManifest(**{**vars(asked), "entries": entries}), tmp_path)
    assert [error.id for error in run.errors] == ["broken"]
    assert [result.id for result in run.results] == ["model"]
    assert run.errors[0].message.startswith(("ONNX Runtime, loading: ", "LiteRT, reading the model: status"))


@LITERT
@pytest.mark.parametrize("version", ["1.4.0", "2.0.3", "3.0.0", "new"])
def test_a_litert_whose_abi_is_not_known_is_refused(version: str, runner: Path, tmp_path: Path) -> None:
    asked = BenchManifest(**{**vars(manifest("litert", tmp_path)), "runtime_version": version})
    run = run_on_host(runner, asked, tmp_path)
    assert run.end == BenchEnd("error", 0, 0, f"LiteRT {version}: this runner knows the versions 2.1.0 to 2.x")
    assert run.exit_code == 1
