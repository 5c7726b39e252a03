"""`measure --device pixel` as typed, through the real adb server, with the real runner, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import wait_for
from command_line import Command, CommandLine
from host_runner import build_host_runner, locate_library
from onnx_files import convolution
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.adb import AdbServer
from amc_mobile.device.libraries import add_library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with this computer's ONNX Runtime added as the phone's."""
    folder = tmp_path_factory.mktemp("home")
    found = locate_library("onnxruntime")
    added = add_library(found.path, folder / "runtimes", version=found.version)
    assert [(library.runtime, library.abi) for library in added] == [("onnxruntime", "x86_64")]
    return folder


@pytest.fixture
def command(adb_server: PrivateAdbServer, phone: FakePhone, home: Path, tmp_path: Path) -> Callable[..., Command]:
    phone.sandbox.edit("getprop.txt", "arm64-v8a", "x86_64")
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2000000})
    (tmp_path / "model.onnx").write_bytes(convolution(32))
    runner = build_host_runner()
    line = CommandLine(tmp_path, AMC_MOBILE_HOME=str(home), AMC_MOBILE_RUNNER=str(runner))
    return lambda *words: line.start("measure", "model.onnx", "--device", "pixel", "--json", *words)


def finish(process: Command) -> tuple[int, str, str]:
    code = process.wait(timeout_s=120)
    return code, process.stdout, process.stderr


def test_a_file_is_measured_on_the_phone(command: Callable[..., Command], phone: FakePhone) -> None:
    code, out, err = finish(command())
    assert code == 0, err
    document = json.loads(out)
    conditions = document["conditions"]
    assert (conditions["device"], conditions["runtime"], conditions["clock_mode"]) == (
        "Google Pixel 8", "onnxruntime", "unlocked schedutil",
    )  # fmt: skip
    assert len(document["samples_ms"]) == 10
    assert min(document["load_ms"], document["first_ms"]) > 0
    assert 1000 < document["peak_rss_kb"] < 10_000_000
    assert {one["peak_rss_kb"] > 1000 for one in document["records"]} == {True}
    assert document["p50_ms"] > 0
    assert phone.sandbox.wait_until_idle() == []


def test_a_busy_phone_is_measured_with_a_warning(command: Callable[..., Command], phone: FakePhone, home: Path) -> None:
    profiles = home / "device_profiles"
    profiles.mkdir(exist_ok=True)
    own = (ROOT / "device_profiles" / "pixel.toml").read_text()
    (profiles / "pixel.toml").write_text("quiet_wait_s = 0.1\n" + own)
    phone.sandbox.set_neighbours(90)
    code, out, err = finish(command())
    assert code == 0, err
    document = json.loads(out)
    assert document["neighbours"] == {"cores": 0.9, "program": None}
    assert "BUSY" in document["flags"]
    code, out, err = finish(command("--waive", "BUSY"))
    assert code == 0, err
    assert json.loads(out)["neighbours"] is None


def test_a_sustained_measurement_shows_latency_heat_and_clock_limit_over_time(
    command: Callable[..., Command],
) -> None:
    code, out, err = finish(command("--sustained-s", "1"))
    assert code == 0, err
    document = json.loads(out)["sustained"]
    assert document["conditions"]["device"] == "Google Pixel 8"
    windows = document["windows"]
    assert len(windows) == 4
    assert all(window["runs"] >= 4 and 0 < window["p50_ms"] <= window["p90_ms"] for window in windows)
    ends = [window["ended_s"] for window in windows]
    assert ends == sorted(ends)
    assert document["seconds"] == ends[-1]
    assert all(20 < window["celsius"] < 60 and window["clock_limit_mhz"] == 2000 for window in windows)
    assert document["slowdown_at_end"] == windows[-1]["p50_ms"] / min(window["p50_ms"] for window in windows)
    code, out, err = finish(command("--sustained-s", "0"))
    assert (code, "--sustained-s 0 is not between 1 and 3600 seconds" in err) == (2, True)


def test_a_file_is_measured_at_a_cadence_on_the_phone(command: Callable[..., Command]) -> None:
    code, out, err = finish(command("--cadence-fps", "200"))
    assert code == 0, err
    document = json.loads(out)
    assert (document["cadence_fps"], document["warmup_runs"]) == (200, 100)
    assert [len(samples) for samples in document["samples_ms"]] == [200] * 10
    every = [value for samples in document["samples_ms"] for value in samples]
    assert document["late_share"] == sum(value > 5 for value in every) / 2000
    code, out, err = finish(command("--cadence-fps", "0.5"))
    assert (code, "--cadence-fps 0.5 is not between 1 and 1000 runs a second" in err) == (2, True)


FAULTS: dict[str, tuple[Callable[[FakePhone], object], str]] = {
    "a cable pulled in an answer": (
        lambda phone: phone.faults.add("disconnect", "sleep.*tail -c", after_bytes=90),
        "",
    ),
    "a cable pulled in a copy": (lambda phone: phone.faults.add("disconnect", "cat >", after_bytes=5000), ""),
    "garbage on stdout": (lambda phone: phone.faults.add("garbage", "shell", times=999), ""),
    "a hot phone": (
        lambda phone: phone.sandbox.edit("dumpsys_thermalservice.txt", "Status: 0", "Status: 3"),
        "--waive THROTTLED",
    ),
    "a low battery": (lambda phone: phone.sandbox.edit("dumpsys_battery.txt", "level: 77", "level: 5"), "5 %"),
    "a full disk": (lambda phone: setattr(phone.sandbox, "free_bytes", 1 << 20), "MiB free"),
    "an unauthorized phone": (lambda phone: phone.become("unauthorized"), "accept the dialog"),
    "no shell v2": (lambda phone: setattr(phone, "features", "cmd"), "shell protocol v2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_survived_or_named_and_mended(
    command: Callable[..., Command], phone: FakePhone, adb_server: PrivateAdbServer, home: Path, fault: str
) -> None:
    strike, said = FAULTS[fault]
    profiles = home / "device_profiles"
    profiles.mkdir(exist_ok=True)
    patient = (ROOT / "device_profiles" / "pixel.toml").read_text()
    (profiles / "pixel.toml").write_text("cooldown_s = 0.1\n" + patient)
    strike(phone)
    if fault == "an unauthorized phone":  # which adb calls offline until it has asked again
        wait_for(lambda: (phone.serial, "unauthorized") in [(seen.serial, seen.state) for seen in AdbServer().phones()])
    if fault == "no shell v2":  # adb asks for the features when it connects, and is done before the command begins
        adb_server.detach(phone)
        adb_server.attach(phone)
    began = time.monotonic()
    code, out, err = finish(command())
    assert "Traceback" not in err
    if said:
        assert (code, json.loads(out)["error"]["exit_code"]) == (1, 1), err
        assert said in err
        assert "\nnext: " in err
    else:
        assert code == 0, err
        assert len(json.loads(out)["samples_ms"]) == 10
    print(f"{fault:28} exit {code} after {time.monotonic() - began:.1f} s  {err.splitlines()[-2:] if said else ''}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_phone_back(
    command: Callable[..., Command], phone: FakePhone, number: signal.Signals
) -> None:
    phone.faults.add("stall", "sleep.*tail -c", after_bytes=0, times=99)
    process = command("--clock-mode", "fixed_performance")
    end = time.monotonic() + 60
    setting = phone.sandbox.state / "fixed_performance"
    while not (setting.read_text() == "true\n" and phone.sandbox.local("/data/local/tmp/amc-mobile").is_dir()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out) == (128 + number, ""), err
    assert err.splitlines()[-1] == "stopped; the same command goes on where it was"
    assert setting.read_text() == "false\n"
    assert phone.sandbox.wait_until_idle() == []
