"""The arm64 builds under an emulator: what they compute and report. Their timings mean nothing."""

from __future__ import annotations

from pathlib import Path

import arm64_sandbox
import pytest
from bench_models import HERE, onnx_model, tflite_model
from host_runner import run_on_host

from amc_mobile.device.device import Timing
from amc_mobile.device.runner import BenchEnd, BenchManifest, BenchModel

pytestmark = pytest.mark.skipif(bool(arm64_sandbox.missing()), reason=arm64_sandbox.missing() or "complete")
TIMING = Timing(warmup_runs=1, samples=2)
Command = list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arm64")


@pytest.fixture(scope="module")
def sysroot(folder: Path) -> Path:
    return arm64_sandbox.make_sysroot(folder / "sysroot")


@pytest.fixture(scope="module")
def linux(folder: Path, sysroot: Path) -> Command:
    return arm64_sandbox.emulated(arm64_sandbox.build("--linux-arm64", output=folder / "linux"), sysroot)


@pytest.fixture(scope="module")
def android(folder: Path, sysroot: Path) -> Command:
    executable = arm64_sandbox.build(output=folder / "android")
    return arm64_sandbox.emulated(executable, sysroot, arm64_sandbox.make_bionic(folder / "bionic"))


@pytest.fixture(params=["linux", "android"])
def command(request: pytest.FixtureRequest) -> Command:
    """Both executables; Android's runs on glibc, behind bionic's names."""
    return list(request.getfixturevalue(request.param))


@pytest.mark.parametrize("option_bytes", [4, 16, 24])
def test_the_c_interface_is_called_as_arm64_wants_it(
    option_bytes: int, command: Command, folder: Path, tmp_path: Path
) -> None:
    library = tmp_path / "libfake.so"
    source = str(HERE / "fake_tflite.c")
    arm64_sandbox.zig("-shared", "-fPIC", "-O1", f"-DOPTION_BYTES={option_bytes}", source, "-o", str(library), "-lm")
    for name in ("ok", "fail", "crash"):
        (tmp_path / name).write_text(name)
    entries = tuple(BenchModel(name, name) for name in ("ok", "fail", "absent", "crash"))
    run = run_on_host(command, BenchManifest("tflite", str(library), 3, 60, entries, TIMING), tmp_path)
    assert run.start is not None
    assert (run.start.runtime_version, run.start.delegate) == ("9.8.7", "xnnpack")
    assert "delegate with 3 threads, defaults kept" in run.log
    assert [result.id for result in run.results] == ["ok"]
    assert [error.id for error in run.errors] == ["fail", "absent"]
    assert run.end == BenchEnd("error", 1, 2, "killed by signal 11 in crash")


@pytest.mark.parametrize(
    ("runtime", "pattern", "version"), [("onnxruntime", "libonnxruntime.so*", ""), ("litert", "libLiteRt.so", "2.3.0")]
)
def test_the_real_runtimes_run_a_model(
    runtime: str, pattern: str, version: str, command: Command, tmp_path: Path
) -> None:
    found = sorted(arm64_sandbox.LIBRARIES.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {arm64_sandbox.LIBRARIES}: {arm64_sandbox.FETCH}")
    if runtime == "litert":
        pytest.importorskip("ai_edge_litert")
        tflite_model(tmp_path / "model")
    else:
        onnx_model(tmp_path / "model")
    (tmp_path / "broken").write_bytes(b"garbage" * 50)
    entries = (BenchModel("model", "model"), BenchModel("broken", "broken"))
    asked = BenchManifest(runtime, str(found[0]), 1, 120, entries, TIMING, runtime_version=version)
    run = run_on_host(command, asked, tmp_path)
    assert [(result.id, len(result.samples_ms)) for result in run.results] == [("model", 2)], run.log
    assert [error.id for error in run.errors] == ["broken"]
    assert run.end == BenchEnd("done", 1, 1, "")
