"""What only the real adbd can show: its shell, its file transfers and its errors, and our runner behind it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import adbd_sandbox
import arm64_sandbox
import pytest
from adbd_sandbox import RealAdbd
from command_line import CommandLine
from onnx_files import convolution
from phone_fake.phone import PrivateAdbServer

from amc_mobile.device import phone_runner
from amc_mobile.device.adb import AdbPhone, AdbServer, choose_phone
from amc_mobile.device.benchmark_model import BenchmarkModelDevice
from amc_mobile.device.device import Job, Timing
from amc_mobile.device.libraries import add_library
from amc_mobile.device.phone_runner import InstalledFile, PhoneRunner
from amc_mobile.device.phone_state import read_facts
from amc_mobile.device.profiles import load_profiles
from amc_mobile.device.runner import BenchManifest, BenchModel
from amc_mobile.errors import DeadlineExceeded, DeviceDisconnected, PhoneCommandFailed, PhoneDiskFull

pytestmark = pytest.mark.skipif(bool(adbd_sandbox.missing()), reason=adbd_sandbox.missing() or "complete")
FOLDER = "/data/local/tmp"
LIMIT_S = 20.0
DISK_MIB = 4
needs_onnxruntime = pytest.mark.skipif(
    not list(arm64_sandbox.LIBRARIES.glob("libonnxruntime.so.*")),
    reason=f"no libonnxruntime.so in {arm64_sandbox.LIBRARIES}: {arm64_sandbox.FETCH}",
)


@pytest.fixture
def full_phone(tmp_path: Path, adb_server: PrivateAdbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbPhone]:
    """Its disk has room for DISK_MIB."""
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb_server.port))
    phone = RealAdbd(tmp_path / "phone", disk_mib=DISK_MIB)
    adb_server.attach(phone)
    server = AdbServer()
    yield AdbPhone(server, choose_phone(server.settled_phones(), phone.serial))
    adb_server.detach(phone)
    phone.stop()


def running(adb: AdbPhone, word: str) -> str:
    """The processes of the phone whose command line holds `word`, this question left out."""
    script = f"ps -A -o PID,ARGS | grep '[{word[0]}]{word[1:]}'"
    return adb.shell(script, what="listing processes", check=False).text


def test_the_phone_has_arm64_programs_and_the_facts_of_a_phone(adb: AdbPhone, tmp_path: Path) -> None:
    program = arm64_sandbox.build("--linux-arm64", output=tmp_path / "program")
    adb.push(program, f"{FOLDER}/program", mode=0o755)
    done = adb.shell(f"{FOLDER}/program", what="running an arm64 program", check=False)
    assert done.exit_code == 2
    assert "usage: amc-bench" in done.stderr
    facts = read_facts(adb)
    assert (facts.model, facts.sdk, facts.abis) == ("Pixel 7", 34, ("arm64-v8a",))
    assert facts.free_bytes > 0
    assert facts.state.celsius == 27.5


def test_output_exit_code_and_streams_come_apart(adb: AdbPhone) -> None:
    output = adb.shell("seq 1 60000; echo problem >&2; exit 7", what="counting", check=False)
    assert output.text == "".join(f"{n}\n" for n in range(1, 60001))
    assert (output.stderr, output.exit_code) == ("problem\n", 7)


@pytest.mark.parametrize("word", ["~root", "=ls", "$(id)", "a'b\"c", "*", "-n", "%s\\n", "é\n"])
def test_the_real_shell_leaves_quoted_words_alone(adb: AdbPhone, word: str) -> None:
    assert adb.run("printf", "%s", word) == word


def test_a_file_arrives_whole(adb: AdbPhone, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(bytes(range(256)) * 40_000)  # many chunks
    assert adb.push(source, f"{FOLDER}/a/new/folder/model", mode=0o755) == 10_240_000
    assert adb.run("stat", "-c", "%a", f"{FOLDER}/a/new/folder/model") == "755\n"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert adb.run("sha256sum", f"{FOLDER}/a/new/folder/model").split()[0] == digest


def test_a_place_that_cannot_be_written_is_named(adb: AdbPhone, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(bytes(3_000_000))
    with pytest.raises(PhoneCommandFailed, match=r"copying model to the phone.*/proc/cpuinfo"):
        adb.push(tmp_path / "model", "/proc/cpuinfo/model")
    assert adb.run("echo", "still there") == "still there\n"


def test_a_full_disk_is_named_and_frees_again(full_phone: AdbPhone, tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(bytes((DISK_MIB + 4) << 20))
    small.write_bytes(bytes(1 << 20))
    with pytest.raises(PhoneDiskFull, match=r"^the phone has \d+ MiB free: .*/large does not fit$"):
        full_phone.push(large, f"{FOLDER}/large")
    full_phone.run("rm", "-f", f"{FOLDER}/large")
    assert full_phone.push(small, f"{FOLDER}/small") == 1 << 20


def test_models_that_do_not_fit_are_named_once(
    full_phone: AdbPhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free is believed for a minute: here tar meets the full disk, and says so for every file."""
    monkeypatch.setattr(phone_runner, "SPARE_BYTES", -(1 << 30))
    (tmp_path / "runner").write_text("never started")
    file = InstalledFile(tmp_path / "runner", "ab" * 32)
    runner = PhoneRunner(full_phone, file, file)
    runner.open()
    runner.keep(bytes([number]) * (1 << 20) for number in range(DISK_MIB + 4))
    with pytest.raises(PhoneDiskFull) as caught:
        list(runner.run(BenchManifest("tflite", "never read", 1, 60, (BenchModel("m", "m"),))))
    assert caught.value.message == "the phone has 0 MiB free: the models of a batch do not fit"
    assert "free some space on the phone" in caught.value.next_step


def test_what_outlives_its_deadline_is_killed_with_its_children(adb: AdbPhone) -> None:
    with pytest.raises(DeadlineExceeded, match="not done within 1 s"):
        adb.shell("sleep 771 & sleep 772", what="sleeping", timeout_s=1)
    end = time.monotonic() + LIMIT_S
    while (left := running(adb, "sleep 77")) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == ""


def test_a_pulled_cable_is_waited_for(adb: AdbPhone, phone: RealAdbd) -> None:
    phone.unplug()
    with pytest.raises(DeviceDisconnected):
        adb.shell("echo hello", what="hello", timeout_s=1)
    timer = threading.Timer(0.5, phone.plug_in)
    timer.start()
    assert adb.shell("echo hello", what="hello", timeout_s=30).text == "hello\n"
    timer.join()


@needs_onnxruntime
def test_a_new_user_sees_the_phone_and_measures_a_file(amc: CommandLine, phone: RealAdbd, adb: AdbPhone) -> None:
    (seen,) = amc.document("devices")["phones"]
    assert (seen["serial"], seen["state"], seen["model"]) == (phone.serial, "device", "Pixel 7")
    # Exit code 1: these libraries are for Linux, which doctor says.
    (examined,) = amc.document("doctor", codes=(1,))["phones"]
    # The emulated phone is as busy as the computer that it is on.
    assert {problem["name"] for problem in examined["problems"]} - {"BUSY"} == {"FOREIGN_RUNTIME"}
    (amc.folder / "model.onnx").write_bytes(convolution(4))
    measured = amc.document("measure", "model.onnx", "--device", "pixel", "--quiet")
    assert measured["conditions"]["device"] == "Google Pixel 7"
    assert measured["conditions"]["runtime"] == "onnxruntime"
    assert measured["p50_ms"] > 0
    assert phone.sandbox.local(FOLDER).joinpath("amc-mobile").is_dir()
    assert running(adb, "manifest.txt") == ""
    assert (phone.sandbox.state / "setting_stay_on_while_plugged_in").read_text() == "0\n"  # given back


def test_benchmark_model_runs_on_the_cores_it_is_told(
    adb: AdbPhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    source = Path(__file__).parents[1] / "device" / "fake_benchmark_model.c"
    arm64_sandbox.zig(str(source), "-o", str(tmp_path / "benchmark_model-2.18.0"))
    (library,) = add_library(tmp_path / "benchmark_model-2.18.0", tmp_path / "runtimes")
    assert (library.runtime, library.abi) == ("benchmark_model", "arm64-v8a")
    passes = BenchmarkModelDevice(adb, load_profiles()["pixel"], library, library.path)
    timing = Timing(samples=20, min_sample_ms=0.2, warmup_runs=4, max_s=1.0)
    with passes.session():  # in which toybox's taskset sets the cores, and the kernel tells them
        (made,) = passes.passes([Job("a", "a", lambda: b"classic 1500.25", timing)])
    assert made.samples_ms == (pytest.approx(1.50025),)
