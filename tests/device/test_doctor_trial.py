"""`doctor` runs a tiny network on the phone with every library that was added."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from host_runner import build_host_runner, locate_library
from phone_fake.phone import FakePhone

from amc_mobile.device.libraries import BENCHMARK_MODEL, add_library
from amc_mobile.workflows.devices import tiny_model
from amc_mobile.workflows.workspace import Settings, Workspace

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
PROGRAM = Path(__file__).parent / "fake_benchmark_model.c"


def built(source: Path, output: Path, *options: str) -> Path:
    subprocess.run(["cc", str(source), "-o", str(output), *options], check=True, capture_output=True, timeout=60)
    return output


@pytest.fixture
def amc(phone: FakePhone, tmp_path: Path, user_home: Path) -> CommandLine:
    """A phone with this computer's processor, and its ONNX Runtime."""
    library = locate_library("onnxruntime")
    (added,) = add_library(library.path, user_home / "runtimes", version=library.version)
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
    phone.sandbox.edit("getprop.txt", "[arm64-v8a]", f"[{added.abi}]")
    runner = build_host_runner()
    return CommandLine(tmp_path, AMC_MOBILE_HOME=str(user_home), AMC_MOBILE_RUNNER=str(runner))


def examined(amc: CommandLine, *words: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What the trials gave, and the problems by name."""
    (phone,) = amc.document("doctor", *words, codes=(0, 1))["phones"]
    return phone["trials"], {problem["name"]: problem for problem in phone["problems"]}


def test_each_library_is_tried_and_the_broken_one_is_named(
    amc: CommandLine, phone: FakePhone, tmp_path: Path, user_home: Path
) -> None:
    (tmp_path / "missing.c").write_text("int missing(void) { return 1; }")
    (tmp_path / "broken.c").write_text("int missing(void);\nint OrtGetApiBase(void) { return missing(); }")
    missing = built(tmp_path / "missing.c", tmp_path / "libmissing.so", "-shared", "-fPIC")
    broken = built(
        tmp_path / "broken.c", tmp_path / "libonnxruntime-0.0.1.so", "-shared", "-fPIC", f"-L{tmp_path}", "-lmissing"
    )
    missing.unlink()
    add_library(broken, user_home / "runtimes")
    add_library(built(PROGRAM, tmp_path / "benchmark_model-2.18.0"), user_home / "runtimes")
    trials, problems = examined(amc, "--runtime", "onnxruntime")
    well = [label for label, outcome in trials.items() if outcome == "ran"]
    assert len(trials) == 3
    assert [label.split()[0] for label in well] == ["onnxruntime"]
    failed = problems["TRIAL_FAILED"]
    assert "libmissing.so" in str(trials)
    assert failed["remedy"]


def test_a_refused_core_shows_before_anything_is_measured(amc: CommandLine, phone: FakePhone) -> None:
    phone.sandbox.set_clusters({(0, 900): 2_000_000})  # core 900 is not there
    _, problems = examined(amc, "--runtime", "onnxruntime")
    assert "cores" in problems["TRIAL_FAILED"]["what"]


def test_doctor_asks_for_the_runtime_in_use(amc: CommandLine, tmp_path: Path) -> None:
    assert "NO_RUNTIME" in examined(amc)[1]  # the profile's default is tflite
    assert "NO_RUNTIME" not in examined(amc, "--runtime", "onnxruntime")[1]
    Workspace(tmp_path / "amc-workspace").remember(Settings(device="pixel", runtime="onnxruntime"))
    assert "NO_RUNTIME" not in examined(amc)[1]


def test_the_tiny_networks_run() -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(tiny_model("onnxruntime"))
    ones = np.ones((1, 4), np.float32)
    assert (session.run(None, {"a": ones, "b": ones})[0] == 2).all()
    interpreter: Any = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=tiny_model("tflite"))
    interpreter.allocate_tensors()
    for tensor in interpreter.get_input_details():
        interpreter.set_tensor(tensor["index"], np.ones(tensor["shape"], np.float32))
    interpreter.invoke()
    assert (interpreter.get_tensor(interpreter.get_output_details()[0]["index"]) == 2).all()
    assert tiny_model(BENCHMARK_MODEL) == tiny_model("tflite") == tiny_model("litert")
