"""benchmark_model on the phone."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import CommandLine
from phone_fake.phone import FakePhone

from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.benchmark_model import RUNTIME, BenchmarkModelDevice, flags
from amc_mobile.device.device import Job, Timing
from amc_mobile.device.libraries import BENCHMARK_MODEL, RuntimeLibrary, add_library
from amc_mobile.device.phone_runner import FOLDER
from amc_mobile.device.profiles import load_profiles
from amc_mobile.errors import DeviceError, InvalidConfig, InvalidInput, PhoneOutputInvalid

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
SOURCE = Path(__file__).parent / "fake_benchmark_model.c"
TIMING = Timing(samples=20, min_sample_ms=0.2, warmup_runs=4, max_s=1.0)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("program") / "linux_x86-64_benchmark_model"
    subprocess.run(["cc", str(SOURCE), "-o", str(built)], check=True, timeout=60)
    return built


@pytest.fixture
def library(program: Path, tmp_path: Path, phone: FakePhone) -> RuntimeLibrary:
    """The program in a user's folder, and a phone that has this computer's processor and cores."""
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
    (added,) = add_library(program, tmp_path / "home" / "runtimes", version="2.18.0")
    phone.sandbox.edit("getprop.txt", "[arm64-v8a]", f"[{added.abi}]")
    return added


@pytest.fixture
def passes(adb: AdbPhone, library: RuntimeLibrary) -> BenchmarkModelDevice:
    return BenchmarkModelDevice(adb, load_profiles()["pixel"], library, library.path)


def job(model: str) -> Job:
    return Job(model, f"the model {model!r}", model.encode, TIMING)


def test_the_program_is_known_by_what_it_is(library: RuntimeLibrary, program: Path, tmp_path: Path) -> None:
    assert (library.runtime, library.version) == (BENCHMARK_MODEL, "2.18.0")
    script = tmp_path / "script-1.0.0"
    script.write_text("echo Inference timings in us --warmup_runs")
    with pytest.raises(InvalidInput):
        add_library(script, tmp_path / "other")
    other = tmp_path / "true-1.0.0"
    shutil.copy(shutil.which("true") or "", other)
    with pytest.raises(InvalidInput, match="no benchmark_model"):
        add_library(other, tmp_path / "other")


@pytest.mark.parametrize(("model", "average_ms"), [("classic 1500.25", 1.50025), ("litert 1.50", 1.5)])
def test_a_pass_is_one_average_of_either_format(passes: BenchmarkModelDevice, model: str, average_ms: float) -> None:
    with passes.session():
        made = list(passes.passes([job(model), job(model)]))
    assert [one.samples_ms for one in made] == [(pytest.approx(average_ms),)] * 2


def test_two_models_alternate_in_processes_of_their_own(passes: BenchmarkModelDevice, phone: FakePhone) -> None:
    with passes.session():
        rounds = list(passes.alternate(job("classic 2000"), job("litert 1.00"), 3))
        models = phone.sandbox.local(f"{FOLDER}/models")
        assert len(list(models.iterdir())) == 2  # each copied once
    assert [(one.samples_ms, other.samples_ms) for one, other in rounds] == [((2.0, 2.0), (1.0, 1.0))] * 3
    assert not models.exists()


def test_conditions_say_that_only_averages_are_known(passes: BenchmarkModelDevice) -> None:
    conditions = passes.conditions()
    assert (conditions.runtime, conditions.delegate, conditions.runtime_version) == (RUNTIME, "XNNPACK", "2.18.0")
    assert "averages" in conditions.runtime


def test_a_pass_is_timed_as_the_protocol_says() -> None:
    assert flags(TIMING, 2) == [
        "--num_threads=2", "--use_xnnpack=true", "--warmup_runs=4", "--warmup_min_secs=0", "--num_runs=50",
        "--min_secs=0.004", "--max_secs=1",
    ]  # fmt: skip


def test_runs_at_a_cadence_are_refused(passes: BenchmarkModelDevice) -> None:
    spaced = replace(job("classic 2000"), timing=replace(TIMING, period_ms=33.3))
    with passes.session(), pytest.raises(InvalidConfig, match="back to back only"):
        list(passes.passes([spaced]))


def test_a_model_that_fails_is_named_with_what_was_said(passes: BenchmarkModelDevice) -> None:
    with passes.session(), pytest.raises(DeviceError, match=r"the model 'broken': .* code 1: .*Failed to load model"):
        list(passes.passes([job("broken")]))


def test_an_average_that_was_rounded_away_is_refused(passes: BenchmarkModelDevice) -> None:
    with passes.session(), pytest.raises(PhoneOutputInvalid, match="off by more than 1%"):
        list(passes.passes([job("litert 0.12")]))


def test_cores_that_the_kernel_does_not_grant_are_told(passes: BenchmarkModelDevice, phone: FakePhone) -> None:
    taskset = phone.sandbox.local("/bin/taskset")
    taskset.write_text('#!/bin/sh\nshift\nexec "$@"\n')  # takes the mask and ignores it
    taskset.chmod(0o755)
    phone.sandbox.set_clusters({(900,): 2_000_000})
    with passes.session(), pytest.raises(DeviceError, match=r"on cores .*, not on 900"):
        list(passes.passes([job("classic 1500")]))


def test_it_measures_through_the_command_line(library: RuntimeLibrary, phone: FakePhone, tmp_path: Path) -> None:
    amc = CommandLine(tmp_path)
    (tmp_path / "model.tflite").write_text("classic 1500.25")
    measured = amc.document("measure", "model.tflite", "--device", "pixel", "--runtime", "benchmark_model", "--quiet")
    assert measured["p50_ms"] == pytest.approx(1.50025)
    assert measured["conditions"]["runtime"] == RUNTIME
    refused = amc("measure", "model.tflite", "--device", "host", "--runtime", "benchmark_model")
    assert refused.returncode == 2
    assert "on phones only" in refused.stderr
    (tmp_path / "model.onnx").write_text("classic 1500.25")
    refused = amc("measure", "model.onnx", "--device", "pixel", "--runtime", "benchmark_model")
    assert refused.returncode == 2
    assert "does not run .onnx" in refused.stderr


def test_doctor_wants_no_runner_beside_it(adb: AdbPhone, library: RuntimeLibrary, tmp_path: Path) -> None:
    document = CommandLine(tmp_path, AMC_MOBILE_RUNNER=str(tmp_path / "absent")).document("doctor", codes=(0, 1))
    (phone,) = document["phones"]
    assert phone["runtimes"] == [library.label]
    assert "NO_RUNNER" not in [problem["name"] for problem in phone["problems"]]
