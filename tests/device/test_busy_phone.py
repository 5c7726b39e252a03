"""Other programs on a phone: waited for, told, and those that come while a batch is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benches import fake_runner
from phone_fake.phone import FakePhone

from amc_mobile.device import device as neighbours
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.device import Job, Neighbours, Timing
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import PhoneDevice
from amc_mobile.device.phone_state import BUSY, read_neighbours
from amc_mobile.device.profiles import load_profiles
from amc_mobile.latency.measurement import BUSY as FLAG
from amc_mobile.latency.measurement import ModelRequest
from amc_mobile.latency.protocol import ProtocolConfig, measure_models

TIMING = Timing(samples=4, min_sample_ms=0.1, warmup_runs=1, max_s=1.0)


@pytest.fixture
def passes(adb: AdbPhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PhoneDevice]:
    monkeypatch.setattr(neighbours, "POLL_S", 0.01)
    path = tmp_path / "libtensorflowlite_jni.so"
    path.write_bytes(b"\x7fELF not loaded by the stand-in")
    library = RuntimeLibrary("tflite", "2.17.0", "arm64-v8a", "bionic", path, "ab" * 32)

    def make(quiet_wait_s: float = 0.1, **settings: Any) -> PhoneDevice:
        profile = replace(load_profiles()["pixel_8"], quiet_wait_s=quiet_wait_s)
        return PhoneDevice(adb, profile, library, fake_runner(tmp_path), **settings)

    return make


def jobs(*models: str) -> list[Job]:
    return [Job(text, text, text.encode, TIMING) for text in models]


def test_a_phone_whose_other_program_ends_is_waited_for(passes: Callable[..., PhoneDevice], phone: FakePhone) -> None:
    phone.sandbox.set_neighbours(80)
    told: list[str] = []

    def on_neighbours(found: Neighbours, waited_s: float) -> None:
        told.append(found.text())
        phone.sandbox.set_neighbours(3)

    device = passes(60, on_neighbours=on_neighbours)
    with device.session():
        assert device.neighbours() == Neighbours(0.03)
    assert told == ["other programs take 0.80 processor cores"]


def test_a_phone_that_stays_busy_is_measured_and_flagged(passes: Callable[..., PhoneDevice], phone: FakePhone) -> None:
    phone.sandbox.set_neighbours(80)
    device = passes()
    models = {r.key: r for r in (ModelRequest("net", (n,), f"ms={n}.5".encode) for n in (1, 2))}
    found = measure_models(device, models, config=ProtocolConfig(model_passes=3))
    assert {FLAG in model.flags for model in found.values()} == {True}
    assert {model.low_ms for model in found.values()} == {1.5, 2.5}
    assert device.most_neighbours() == Neighbours(0.8)
    phone.sandbox.set_neighbours(3)
    found = measure_models(device, models, config=ProtocolConfig(model_passes=3))
    assert {FLAG in model.flags for model in found.values()} == {False}


def test_a_waived_neighbour_is_neither_waited_for_nor_flagged(
    passes: Callable[..., PhoneDevice], phone: FakePhone
) -> None:
    phone.sandbox.set_neighbours(80)
    device = passes(60, waived=[BUSY], on_neighbours=lambda found, waited_s: pytest.fail("waited"))
    with device.session():
        assert device.neighbours() is None


def test_a_program_that_comes_while_a_batch_is_measured_is_told_from_the_runner(
    passes: Callable[..., PhoneDevice], phone: FakePhone
) -> None:
    phone.sandbox.set_neighbours(3)
    device = passes()
    stat = phone.sandbox.local("/proc/stat")
    with device.session():
        assert device.is_steady()
        phone.sandbox.write("proc/stat", "cpu0 0 0 0 1000 0\ncpu1 0 0 0 1000 0\n")
        made = device.passes(jobs("ms=1.5", "ms=2.5"))
        pause_at = phone.sandbox.state / "pause_at"
        pause_at.write_text("1")  # without it, the phone might tell of both only when the runner has ended
        first = next(made)
        stat.write_text("cpu0 0 0 0 11000 0\ncpu1 4000 0 0 7000 0\n")
        pause_at.unlink()
        assert [one.samples_ms[0] for one in (first, *made)] == [1.5, 2.5]
        assert not device.is_steady()
        found = device.neighbours()
        assert found is not None
        assert 0.38 < found.cores < 0.4  # what the stand-in for the runner took, a few of 10000 ticks, is its own
        phone.sandbox.set_neighbours(3)
        device.settle()
        assert device.is_steady()


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "Permission denied\n",
        "cpu0 1 2\n",
        "cpu0 1 2 3 4\ncpu0 1 2 3 4\n",
        f"cpu0 {'9' * 500} 1 1 1\n",
        "then\nown\n",
    ],
)
def test_a_phone_that_hides_its_counts_is_measured_as_unknown(
    passes: Callable[..., PhoneDevice], phone: FakePhone, counts: str
) -> None:
    phone.sandbox.write("proc/stat", counts)
    device = passes(60, on_neighbours=lambda found, waited_s: pytest.fail("waited"))
    with device.session():
        assert [one.samples_ms[0] for one in device.passes(jobs("ms=1.5"))] == [1.5]
        assert device.is_steady()
    assert (device.neighbours(), device.most_neighbours()) == (None, None)


def test_a_phone_without_counts_is_unknown(adb: AdbPhone) -> None:
    assert read_neighbours(adb) is None
