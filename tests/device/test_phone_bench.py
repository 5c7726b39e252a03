"""The real runner with the real ONNX Runtime on the fake phone: the numbers mean nothing, the path does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from benches import fake_runner
from host_runner import build_host_runner, locate_library
from onnx_files import convolution
from phone_fake.phone import FakePhone

from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import PhoneDevice
from amc_mobile.device.profiles import load_profiles
from amc_mobile.device.runner import BenchEnd, BenchError, BenchModel, BenchPair, BenchResult, BenchStart, BenchTiming
from amc_mobile.errors import DeviceError, RunnerFailed

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
TIMING = BenchTiming(warmup_runs=1, samples=5)


@pytest.fixture(scope="module")
def host_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host_runner()


def real_device(adb: AdbPhone, phone: FakePhone, runner: Path, monkeypatch: pytest.MonkeyPatch) -> PhoneDevice:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(phone.sandbox.folder / "home"))
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2000000})
    return PhoneDevice(adb, load_profiles()["pixel"], locate_library("onnxruntime"), runner)


@needs_compiler
def test_models_are_measured_through_the_cable(
    adb: AdbPhone, phone: FakePhone, host_runner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = real_device(adb, phone, host_runner, monkeypatch)
    models = {"small.onnx": convolution(8), "large.onnx": convolution(64), "broken.onnx": b"no model"}
    small, large = BenchModel("small", "small.onnx"), BenchModel("large", "large.onnx")
    entries = [small, BenchModel("broken", "broken.onnx"), large, BenchPair(small, large)]
    with device.session():
        start, *middle, end = device.bench(entries, models, TIMING, deadline_s=60)
    assert isinstance(start, BenchStart)
    assert (start.runtime, start.runtime_version) == ("onnxruntime", device.library.version)
    assert start.cores_seen == device.conditions().cores
    assert isinstance(end, BenchEnd)
    assert [(type(event), event.id) for event in middle] == [  # type: ignore[union-attr]
        (BenchResult, "small"), (BenchError, "broken"), (BenchResult, "large"), (BenchResult, "small"),
        (BenchResult, "large"),
    ]  # fmt: skip
    assert {len(event.samples_ms) for event in middle if isinstance(event, BenchResult)} <= {4, 5, 6}


@needs_compiler
def test_a_cable_pulled_in_the_middle_loses_no_row(
    adb: AdbPhone, phone: FakePhone, host_runner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = real_device(adb, phone, host_runner, monkeypatch)
    entries = [BenchModel(f"m{n}", "a.onnx") for n in range(60)]
    with device.session():
        got = []
        faults = [phone.faults.add("disconnect", "sleep.*tail -c", after_bytes=after) for after in (150, 400)]
        timing = BenchTiming(warmup_runs=1, samples=20, min_sample_ms=1.0)
        for event in device.bench(entries, {"a.onnx": convolution(64)}, timing, deadline_s=60):
            got.append(event)
    assert [fault.struck for fault in faults] == [1, 1]
    assert [event.id for event in got if isinstance(event, BenchResult)] == [entry.id for entry in entries]


@needs_compiler
def test_a_library_that_does_not_load_is_told(
    adb: AdbPhone, phone: FakePhone, host_runner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = real_device(adb, phone, host_runner, monkeypatch)
    bad = tmp_path / "libonnxruntime.so"
    bad.write_bytes(b"\x7fELF and no more")
    library = RuntimeLibrary("onnxruntime", "1.0.0", "x86_64", "glibc", bad, "cd" * 32)
    device = PhoneDevice(adb, device.profile, library, host_runner)
    with device.session(), pytest.raises((RunnerFailed, DeviceError), match="libonnxruntime"):
        list(device.bench([BenchModel("a", "a.onnx")], {"a.onnx": b""}, TIMING, deadline_s=60))


def test_cores_that_the_kernel_does_not_grant_are_told(
    adb: AdbPhone, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    runner = fake_runner(tmp_path)
    runner.write_text(runner.read_text().replace('cores_seen=values.get("cores", "")', 'cores_seen="0-8"'))
    file = tmp_path / "lib.so"
    file.write_bytes(b"library")
    library = RuntimeLibrary("tflite", "2.17.0", "arm64-v8a", "bionic", file, "ef" * 32)
    device = PhoneDevice(adb, load_profiles()["pixel_8"], library, runner)
    with device.session(), pytest.raises(DeviceError, match="on cores 0-8, not on 4-7"):
        list(device.bench([BenchModel("a", "a.tflite")], {"a.tflite": b"ms=1"}, TIMING, deadline_s=60))
    assert phone.sandbox.wait_until_idle() == []
