"""The whole job on the fake phone through the real adb server, with the real runner and the real ONNX Runtime.

The latencies are those of this computer and mean nothing; that every step goes through the cable does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from command_line import CommandLine
from host_runner import build_host_runner, locate_library
from phone_fake.phone import FakePhone, PrivateAdbServer
from phone_suite import run_phone_suite
from stored_passes import stored_passes, stored_rows

from amc_mobile.device.host import layout_here
from amc_mobile.device.libraries import add_library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
NETWORK = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
SMALL = ("--calibration-images", "64", "--reward-images", "32", "--episodes", "8", "--policy", "random")


@pytest.fixture
def amc(phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Runs the command in a folder of its own, as a user with this phone on the cable would."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    (here / "net.py").write_text(NETWORK)
    monkeypatch.setenv("AMC_MOBILE_HOME", str(home))
    # The fake phone executes on this computer, so it has its processor, its cores and its libraries.
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
    library = locate_library("onnxruntime")
    (added,) = add_library(library.path, home / "runtimes", version=library.version)
    phone.sandbox.edit("getprop.txt", "[arm64-v8a]", f"[{added.abi}]")
    monkeypatch.setenv("AMC_MOBILE_RUNNER", str(build_host_runner()))

    return CommandLine(here)


def ok(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_profile_search_export_measure_and_report_run_on_the_phone(
    amc: CommandLine, phone: FakePhone, tmp_path: Path
) -> None:
    network = ("--model", "net.py:build", "--input-size", "32", "--data", "digits", "--runtime", "onnxruntime")
    profiled = ok(amc("profile", "--device", "pixel", *network, "--json", "--quiet"))
    assert profiled["conditions"]["device"] == "Google Pixel 8"  # type: ignore[index]
    assert profiled["conditions"]["os"].startswith("Android 14")  # type: ignore[index]
    # Asked through the runner once, for all steps, and of the library that is on the phone.
    assert profiled["conditions"]["layout"] == layout_here("onnxruntime")  # type: ignore[index]
    assert len(list((tmp_path / "home" / "layouts").iterdir())) == 1
    found = ok(amc("search", "--latency-ratio", "0.6", *SMALL, "--json", "--quiet"))
    assert found["measured_ms"] is not None
    exported = amc("export", "--onnx", "--json", "--quiet")
    assert exported.returncode in (0, 3), exported.stderr  # this computer may be busy: the gate is not the point
    (file,) = json.loads(exported.stdout)["files"]
    assert file["pair"]["after"]["conditions"]["device"] == "Google Pixel 8"
    model = str(tmp_path / "here" / file["path"])
    measured = ok(amc("measure", model, "--device", "pixel", "--serial", phone.serial, "--json", "--quiet"))
    assert measured["conditions"] == file["pair"]["after"]["conditions"]
    phone.unplug()  # reading needs no phone
    reported = ok(amc("report", "--json"))
    assert reported["conditions"]["device"] == "Google Pixel 8"  # type: ignore[index]
    for side in ("original", "pruned"):
        told = reported[side]["latency"]  # type: ignore[index]
        assert min(told["load_ms"], told["first_ms"], told["peak_rss_kb"]) > 0
        assert told["switches_per_sample"] >= 0
        assert told["screen"] == "Awake"
    assert phone.sandbox.wait_until_idle() == []
    assert [path for path in phone.sandbox.local("/data/local/tmp").rglob("batch-*") if path.is_dir()] == []


def test_a_profile_that_a_reboot_ends_goes_on_and_measures_nothing_twice(
    amc: CommandLine, phone: FakePhone, adb_server: PrivateAdbServer, tmp_path: Path
) -> None:
    words = ("profile", "--device", "pixel", "--model", "net.py:build", "--input-size", "32", "--data", "digits",
             "--runtime", "onnxruntime", "--json", "--quiet")  # fmt: skip
    table = tmp_path / "here/amc-workspace/table.sqlite"
    ended: list[subprocess.CompletedProcess[str]] = []
    running = threading.Thread(target=lambda: ended.append(amc(*words)))
    running.start()
    end = time.monotonic() + 120
    batches = phone.sandbox.local("/data/local/tmp/amc-mobile")
    while not list(batches.glob("batch-*/results.jsonl")) and running.is_alive() and time.monotonic() < end:
        time.sleep(0.002)
    phone.reboot()  # while the runner is at work
    before_s = time.monotonic()
    while running.is_alive() and time.monotonic() < before_s + 200:
        adb_server.attach(phone)
        time.sleep(0.5)
    running.join(1)
    assert ended, "the command hangs after the reboot"
    assert ended[0].returncode == 1, ended[0].stderr
    assert "Traceback" not in ended[0].stderr
    assert "run the same command again" in ended[0].stderr
    before = stored_passes(table)
    ok(amc(*words))
    after = stored_passes(table)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    # The protocol's most, over both calls. Passes made under load do not count: a busy computer has them made again.
    quiet = Counter(subject for _, subject, _, busy in stored_rows(table) if not busy)
    assert max(quiet.values(), default=0) <= 10


def test_a_pulled_cable_does_not_end_a_profile(amc: CommandLine, phone: FakePhone) -> None:
    fault = phone.faults.add("disconnect", "sleep.*tail -c", after_bytes=90)
    ok(amc("profile", "--device", "pixel", "--model", "net.py:build", "--input-size", "32", "--data", "digits",
           "--runtime", "onnxruntime", "--json", "--quiet"))  # fmt: skip
    assert fault.struck == 1


def test_without_the_phone_the_error_names_what_adb_sees(amc: CommandLine, phone: FakePhone) -> None:
    phone.become("unauthorized")
    done = amc("profile", "--device", "pixel", "--model", "net.py:build", "--input-size", "32", "--data", "digits")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "accept the dialog" in done.stderr


@pytest.mark.slow
def test_the_suite_for_real_phones_passes_on_the_fake_one(amc: CommandLine, phone: FakePhone) -> None:
    phone.sandbox.edit("getprop.txt", "[Pixel 8]", "[Pixel 7]")  # whose profile names no cores that are lacking here
    phone.sandbox.edit("getprop.txt", "[shiba]", "[panther]")
    # What needs no runtime, and with ONNX Runtime all that does not judge latencies, which are this computer's.
    assert run_phone_suite(phone.serial, "-k", "not one_latency") == 6
