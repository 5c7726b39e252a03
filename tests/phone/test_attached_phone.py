"""Everything on whatever phone adb sees. Skipped without one; a phone that is not fit to measure on fails by name.

The user's own libraries are used (`amc-mobile runtime add`), and the runner of this package or AMC_MOBILE_RUNNER.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from command_line import CommandLine
from main_job import run_main_job

from amc_mobile.device.adb import PHONE_FOLDER, AdbPhone
from amc_mobile.device.device import Timing
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import PhoneDevice
from amc_mobile.device.phone_output import parse_core_list
from amc_mobile.device.phone_state import FIXED, PhoneFacts, clock_mode, held_mode
from amc_mobile.device.profiles import DeviceProfile
from amc_mobile.device.runner import BenchError, BenchModel, BenchResult, BenchStart

pytestmark = pytest.mark.phone
OLDEST_SDK = 24  # Android 7, the first with shell protocol v2
STAY_ON = "settings get global stay_on_while_plugged_in"


def test_the_phone_answers_all_that_is_asked(facts: PhoneFacts) -> None:
    assert facts.model != "unknown"
    assert facts.sdk >= OLDEST_SDK
    assert facts.abis
    assert facts.free_bytes > 0
    assert facts.state.celsius is not None
    assert -30 < facts.state.celsius < 100
    assert 0 <= facts.state.battery.percent <= 100
    assert facts.state.policies, "the core clusters are hidden"
    cores = [core for policy in facts.state.policies for core in policy.cores]
    assert len(cores) == len(set(cores))


def test_doctor_lists_the_phone_with_a_profile(amc: CommandLine, facts: PhoneFacts) -> None:
    document = amc.document("doctor", codes=(0, 1))
    (seen,) = [phone for phone in document["phones"] if phone["serial"] == facts.serial]
    assert (seen["state"], seen["model"]) == ("device", facts.model)
    assert seen["profiles"]
    assert all(problem["remedy"] for problem in seen["problems"])


def test_a_file_arrives_whole(adb: AdbPhone, tmp_path: Path) -> None:
    source, remote = tmp_path / "source", f"{PHONE_FOLDER}/amc-mobile-test-file"
    source.write_bytes(os.urandom(5_000_003))
    try:
        assert adb.push(source, remote) == 5_000_003
        assert adb.run("sha256sum", remote).split()[0] == hashlib.sha256(source.read_bytes()).hexdigest()
    finally:
        adb.run("rm", "-f", remote)


def test_the_runner_runs_on_the_cores_it_is_told(
    adb: AdbPhone, profile: DeviceProfile, library: RuntimeLibrary, runner: Path, model: Path
) -> None:
    device = PhoneDevice(adb, profile, library, runner, threads=1)
    entries = [BenchModel("model", "model"), BenchModel("broken", "broken")]
    files = {"model": model.read_bytes(), "broken": b"no model at all" * 20}
    with device.session():
        start, result, error, *_ = device.bench(entries, files, Timing(samples=5), deadline_s=120)
    assert isinstance(start, BenchStart)
    assert start.cores_seen
    if device.cores:
        assert set(parse_core_list(start.cores_seen)) == set(device.cores)
    assert isinstance(result, BenchResult)
    assert len(result.samples_ms) == 5
    assert isinstance(error, BenchError)
    assert error.id == "broken"


def test_a_file_measured_twice_has_one_latency(
    amc: CommandLine, adb: AdbPhone, profile: DeviceProfile, model: Path, runner: Path
) -> None:
    words = ("measure", str(model), "--device", profile.name, "--serial", adb.serial, "--quiet")
    first, second = amc.document(*words), amc.document(*words)
    assert first["conditions"] == second["conditions"]
    # Within what each says of its own spread, and a tenth more: the clocks of phones step.
    assert min(first["samples_ms"]) / 1.1 <= second["p50_ms"] <= max(first["samples_ms"]) * 1.1
    assert min(second["samples_ms"]) / 1.1 <= first["p50_ms"] <= max(second["samples_ms"]) * 1.1


def test_clocks_are_held_and_settings_given_back(adb: AdbPhone, facts: PhoneFacts) -> None:
    before = adb.shell(STAY_ON, what="reading the screen setting").text
    with clock_mode(adb, facts.sdk, FIXED) as held:
        assert held == held_mode(FIXED, facts.sdk)
        assert adb.shell(STAY_ON, what="reading the screen setting").text.strip() not in ("0", "null")
    assert adb.shell(STAY_ON, what="reading the screen setting").text == before


def test_the_main_job_runs(
    amc: CommandLine, adb: AdbPhone, profile: DeviceProfile, runtime: str, runner: Path, model: Path
) -> None:
    run_main_job(amc, runtime, "--device", profile.name, "--serial", adb.serial)
    left = adb.shell(f"ls {PHONE_FOLDER}/amc-mobile", what="listing our folder").text.split()
    assert all(name.startswith("keep-") for name in left), left
