"""`devices`, `doctor` and `runtime` as typed, with phones in every state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benches import fake_runner
from command_line import CommandLine
from elf_files import ARM64, shared_library
from host_runner import build_host_runner, locate_library
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.libraries import BENCHMARK_MODEL, add_library
from amc_mobile.device.phone_state import phone_lock
from amc_mobile.workflows.devices import tiny_model
from amc_mobile.workflows.workspace import Settings, Workspace

ROOT = Path(__file__).parent.parent.parent
AAR = "tensorflow-lite-2.17.0.aar"


@pytest.fixture
def amc(adb_server: PrivateAdbServer, tmp_path: Path) -> CommandLine:
    fake_runner(tmp_path)
    runner = str(tmp_path / "amc-bench")
    return CommandLine(tmp_path, AMC_MOBILE_HOME=str(tmp_path / "home"), AMC_MOBILE_RUNNER=runner)


def test_doctor_cleans_what_is_ours_and_nothing_else(amc: CommandLine, new_phone: Callable[..., FakePhone]) -> None:
    phone = new_phone()
    ours, others = phone.sandbox.local("/data/local/tmp/amc-mobile"), phone.sandbox.local("/data/local/tmp/mine")
    for path in (ours / "keep-0123" / "lib.so", ours / "models" / "m", others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(3 << 20))
    (found,) = json.loads(amc("doctor", "--json").stdout)["phones"]
    assert "removed_bytes" not in found
    assert ours.exists()
    done = amc("doctor", "--clean", "--json")
    (found,) = json.loads(done.stdout)["phones"]
    assert 6 << 20 <= found["removed_bytes"] < 7 << 20
    assert not ours.exists()
    assert others.exists()
    assert f"{phone.serial}: removed 0 MiB of amc-mobile's files" in amc("doctor", "--clean").stdout


def test_doctor_does_not_clean_a_phone_that_is_measured_on(
    amc: CommandLine, new_phone: Callable[..., FakePhone], tmp_path: Path
) -> None:
    phone = new_phone()
    ours = phone.sandbox.local("/data/local/tmp/amc-mobile")
    ours.mkdir(parents=True)
    with phone_lock(phone.serial):
        (found,) = json.loads(amc("doctor", "--clean", "--json").stdout)["phones"]
    assert "NOT_CLEANED" in names(found)
    assert ours.exists()


def aar(folder: Path) -> Path:
    with zipfile.ZipFile(folder / AAR, "w") as file:
        content = shared_library(ARM64, ("libc.so",), ("TfLiteInterpreterCreate",))
        file.writestr("jni/arm64-v8a/libtensorflowlite_jni.so", content)
    return folder / AAR


def names(phone: dict[str, Any]) -> list[str]:
    return [problem["name"] for problem in phone["problems"]]


def test_a_new_user_is_led_to_a_phone_that_measures(
    amc: CommandLine, new_phone: Callable[..., FakePhone], tmp_path: Path
) -> None:
    nothing = amc("doctor")
    assert nothing.returncode == 0  # for work on this computer
    assert "USB debugging" in nothing.stdout and "--device host" in nothing.stdout
    phone = new_phone()
    lacking = amc("doctor")
    assert lacking.returncode == 1
    assert "amc-mobile runtime add FILE.aar" in lacking.stdout
    added = amc("runtime", "add", str(aar(tmp_path)))
    assert "tflite 2.17.0 arm64-v8a bionic" in " ".join(added.stdout.split())
    assert json.loads(amc("runtime", "list", "--json").stdout)["runtimes"][0]["version"] == "2.17.0"
    well = amc("doctor")
    assert (well.returncode, well.stderr) == (0, "")
    assert "all is well" in well.stdout
    for word in (phone.serial, "Pixel 8", "zuma", "4-7 at 2360 MHz", "27.5", "77 %", "57.5 GB", "pixel_8, pixel"):
        assert word in well.stdout


def test_doctor_tells_of_other_programs_on_a_phone_and_on_this_computer(
    amc: CommandLine, phone: FakePhone, tmp_path: Path
) -> None:
    amc("runtime", "add", str(aar(tmp_path)))
    document = json.loads(amc("doctor", "--json").stdout)
    assert document["phones"][0]["neighbours"] is None
    here = document["this_computer"]
    busy = here["neighbours"] is not None and here["neighbours"]["cores"] > 0.25
    assert [problem["name"] for problem in here["problems"]] == (["BUSY"] if busy else [])
    phone.sandbox.set_neighbours(60)
    done = amc("doctor")
    assert done.returncode == 1
    assert f"{phone.serial}: other programs take 0.60 processor cores [BUSY]" in done.stdout
    assert "--waive BUSY" in done.stdout


def test_devices_says_what_is_wrong_with_each_phone(
    amc: CommandLine,
    new_phone: Callable[..., FakePhone],
    adb_server: PrivateAdbServer,
) -> None:
    locked, stalled, bad = new_phone(attach=False), new_phone(), new_phone()
    locked.become("unauthorized")
    adb_server.attach(locked)
    stalled.faults.add("close", "shell", times=99)
    bad.sandbox.edit("dumpsys_battery.txt", "level: 77", "level: 3")
    bad.sandbox.edit("getprop.txt", "arm64-v8a", "mips")
    bad.sandbox.edit("getprop.txt", "[Google]", "[Nobody]")
    bad.sandbox.free_bytes = 100 << 20
    done = amc("devices", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {row["device"] for row in document["devices"]} == {"host"}
    phones = {phone["serial"]: phone for phone in document["phones"]}
    assert names(phones[locked.serial]) == ["NOT_READY"]
    assert "accept the dialog" in phones[locked.serial]["problems"][0]["remedy"]
    assert names(phones[stalled.serial]) == ["NO_ANSWER"]
    assert names(phones[bad.serial]) == ["NO_PROFILE", "LITTLE_SPACE"]
    text = amc("devices").stdout
    assert f"{locked.serial}: adb says unauthorized [NOT_READY]" in text


def test_a_library_for_linux_computers_is_not_taken_for_androids(
    amc: CommandLine, phone: FakePhone, tmp_path: Path
) -> None:
    file = tmp_path / "libtensorflowlite_c-2.17.0.so"
    file.write_bytes(shared_library(ARM64, ("libc.so.6",), ("TfLiteInterpreterCreate",)))
    assert "not on Android" in amc("runtime", "add", str(file)).stdout
    (document,) = json.loads(amc("doctor", "--json").stdout)["phones"]
    assert names(document) == ["FOREIGN_RUNTIME"]


def test_without_adb_this_computer_is_still_listed(amc: CommandLine, tmp_path: Path) -> None:
    done = CommandLine(tmp_path, ADBUTILS_ADB_PATH=str(tmp_path / "none"), ANDROID_ADB_SERVER_PORT="9")("devices")
    assert done.returncode == 0, done.stderr
    assert "host" in done.stdout
    assert "platform-tools" in done.stdout


def test_a_broken_profile_of_the_user_is_named(amc: CommandLine, phone: FakePhone, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "device_profiles"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("sumary = 'x'\n")
    done = amc("devices")
    assert done.returncode == 2
    assert "mine.toml: unknown key 'sumary'" in done.stderr


def test_what_is_no_library_is_refused(amc: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "x-1.0.0.aar").write_text("no zip")
    done = amc("runtime", "add", "x-1.0.0.aar")
    assert done.returncode == 1
    assert "not a readable archive" in done.stderr
    assert "next: download it again" in done.stderr


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
PROGRAM = Path(__file__).parent / "fake_benchmark_model.c"


def built(source: Path, output: Path, *options: str) -> Path:
    subprocess.run(["cc", str(source), "-o", str(output), *options], check=True, capture_output=True, timeout=60)
    return output


@pytest.fixture
def fitted(phone: FakePhone, tmp_path: Path, user_home: Path) -> CommandLine:
    """A phone with this computer's processor, and its ONNX Runtime."""
    library = locate_library("onnxruntime")
    (added,) = add_library(library.path, user_home / "runtimes", version=library.version)
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
    phone.sandbox.edit("getprop.txt", "[arm64-v8a]", f"[{added.abi}]")
    runner = build_host_runner()
    return CommandLine(tmp_path, AMC_MOBILE_HOME=str(user_home), AMC_MOBILE_RUNNER=str(runner))


def examined(fitted: CommandLine, *words: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What the trials gave, and the problems by name."""
    (phone,) = fitted.document("doctor", *words, codes=(0, 1))["phones"]
    return phone["trials"], {problem["name"]: problem for problem in phone["problems"]}


@needs_compiler
def test_each_library_is_tried_and_the_broken_one_is_named(
    fitted: CommandLine, phone: FakePhone, tmp_path: Path, user_home: Path
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
    trials, problems = examined(fitted, "--runtime", "onnxruntime")
    well = [label for label, outcome in trials.items() if outcome == "ran"]
    assert len(trials) == 3
    assert [label.split()[0] for label in well] == ["onnxruntime"]
    failed = problems["TRIAL_FAILED"]
    assert "libmissing.so" in str(trials)
    assert failed["remedy"]


@needs_compiler
def test_a_refused_core_shows_before_anything_is_measured(fitted: CommandLine, phone: FakePhone) -> None:
    phone.sandbox.set_clusters({(0, 900): 2_000_000})  # core 900 is not there
    _, problems = examined(fitted, "--runtime", "onnxruntime")
    assert "cores" in problems["TRIAL_FAILED"]["what"]


@needs_compiler
def test_doctor_asks_for_the_runtime_in_use(fitted: CommandLine, tmp_path: Path) -> None:
    assert "NO_RUNTIME" in examined(fitted)[1]  # the profile's default is tflite
    assert "NO_RUNTIME" not in examined(fitted, "--runtime", "onnxruntime")[1]
    Workspace(tmp_path / "amc-workspace").remember(Settings(device="pixel", runtime="onnxruntime"))
    assert "NO_RUNTIME" not in examined(fitted)[1]


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
