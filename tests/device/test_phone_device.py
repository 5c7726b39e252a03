"""The phone as a device: a whole session, its conditions, and phones that are not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benches import fake_runner
from phone_fake.phone import FakePhone
from waiting_clock import WaitingClock

from amc_mobile.device import phone_runner, phone_state
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.clock_mode import FIXED
from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.device import Job, Timing
from amc_mobile.device.layout import questions, read
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import PhoneDevice
from amc_mobile.device.phone_runner import FOLDER
from amc_mobile.device.profiles import load_profiles
from amc_mobile.device.runner import BenchModel, BenchResult, BenchStart, BenchTiming
from amc_mobile.errors import DeadlineExceeded, InvalidConfig, PhoneBusy, PhoneUnfit
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.protocol import ProtocolConfig, measure_model, measure_pair

PROFILES = load_profiles()


@pytest.fixture
def library(tmp_path: Path) -> RuntimeLibrary:
    path = tmp_path / "libtensorflowlite_jni.so"
    path.write_bytes(b"\x7fELF not loaded by the stand-in")
    return RuntimeLibrary("tflite", "2.17.0", "arm64-v8a", "bionic", path, "ab" * 32)


@pytest.fixture
def device(adb: AdbPhone, library: RuntimeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PhoneDevice:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    return PhoneDevice(adb, PROFILES["pixel_8"], library, fake_runner(tmp_path), mode=FIXED)


def test_a_session_measures_and_gives_everything_back(device: PhoneDevice, phone: FakePhone) -> None:
    with device.session():
        assert (phone.sandbox.state / "fixed_performance").read_text() == "true\n"
        events = list(device.bench([BenchModel("a", "a b;c")], {"a b;c": b"ms=1.5"}, BenchTiming(), deadline_s=60))
        device.require_steady()
        with pytest.raises(PhoneBusy), device.session():
            pass
    start, result, _ = events
    assert isinstance(start, BenchStart)
    assert isinstance(result, BenchResult)
    assert (start.cores_seen, result.id, result.samples_ms[0]) == ("4-7", "a", 1.5)
    assert phone.sandbox.wait_until_idle() == []
    assert not list(phone.sandbox.local(FOLDER).glob("[!k]*"))
    assert (phone.sandbox.state / "fixed_performance").read_text() == "false\n"


class BuiltLate(dict[str, Callable[[], bytes]]):
    """Files by name, each built when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()


@pytest.mark.parametrize("when", ["copying", "starting", "measuring"])
def test_a_frozen_phone_is_named_within_a_minute(
    device: PhoneDevice, phone: FakePhone, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    clock = WaitingClock(monkeypatch)
    said: list[str] = []
    device.adb.server.on_wait = lambda what, waited_s, limit_s: said.append(what)
    push = device.adb.push

    def freeze() -> bytes:
        phone.freeze()
        clock.hurry()
        return b"ms=1.5"

    def push_frozen(*words: Any, **options: Any) -> int:
        freeze()
        return push(*words, **options)

    if when == "copying":
        monkeypatch.setattr(device.adb, "push", push_frozen)
    model = freeze if when == "starting" else lambda: b"ms=1.5 wait=99"
    with pytest.raises(DeadlineExceeded, match="the phone does not answer") as caught, device.session():
        events = device.bench([BenchModel("a", "a")], BuiltLate(a=model), BenchTiming(), deadline_s=600)
        next(events)
        freeze()
        list(events)
    phone.thaw()
    assert 0 < clock.waited_s <= 60
    assert "plug" in caught.value.next_step
    assert said[0] in caught.value.message


def onnx_phone(adb: AdbPhone, library: RuntimeLibrary, folder: Path) -> PhoneDevice:
    return PhoneDevice(adb, PROFILES["pixel_8"], replace(library, runtime="onnxruntime"), fake_runner(folder))


def test_the_layout_is_asked_of_each_build_once(
    adb: AdbPhone, library: RuntimeLibrary, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    (phone.sandbox.state / "graph").write_bytes(questions())
    first = onnx_phone(adb, library, tmp_path)
    assert first.conditions().layout == read(questions()).text()
    with first.session():
        assert first.conditions().layout == first.layout()
    (phone.sandbox.state / "graph").unlink()  # what is known is not asked again
    assert onnx_phone(adb, library, tmp_path).layout() == first.layout()
    other = replace(library, sha256="cd" * 32)
    assert onnx_phone(adb, other, tmp_path).layout() == ""  # this build writes no graph


def test_the_layout_can_be_asked_within_a_session(
    adb: AdbPhone, library: RuntimeLibrary, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    (phone.sandbox.state / "graph").write_bytes(questions())
    device = onnx_phone(adb, library, tmp_path)
    with device.session():
        assert device.layout() == read(questions()).text()
        (result,) = [
            event
            for event in device.bench([BenchModel("a", "a")], {"a": b"ms=1.5"}, BenchTiming(), deadline_s=60)
            if isinstance(event, BenchResult)
        ]
    assert result.samples_ms[0] == 1.5


def test_conditions_say_all_that_changes_a_latency(device: PhoneDevice) -> None:
    with device.session():
        conditions = device.conditions()
    assert conditions == Conditions(
        device="Google Pixel 8",
        soc="zuma",
        os="Android 14 google/shiba/shiba:14/FAKE.000000.001/1234567:user/release-keys",
        runtime="tflite",
        runtime_version="2.17.0",
        library_sha256=conditions.library_sha256,
        delegate="XNNPACK",
        threads=1,
        cores="4-7",
        clock_mode="fixed_performance sched_pixel",
        unit=unit_of("FAKE0001"),
    )
    assert len(conditions.library_sha256) == 64


def test_another_runner_makes_other_conditions(device: PhoneDevice, library: RuntimeLibrary, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    runner = fake_runner(other)
    runner.write_text(runner.read_text() + "# another build\n")
    changed = PhoneDevice(device.adb, device.profile, library, runner, mode=FIXED).conditions()
    assert set(changed.differences(device.conditions())) == {"library_sha256"}


def test_an_unfit_phone_is_not_measured_unless_waived(
    device: PhoneDevice, phone: FakePhone, library: RuntimeLibrary, tmp_path: Path
) -> None:
    phone.sandbox.edit("dumpsys_battery.txt", "level: 77", "level: 7")
    phone.sandbox.edit("setting_low_power", "0", "1")
    with pytest.raises(PhoneUnfit) as caught, device.session():
        pass
    assert set(caught.value.problems) == {phone_state.LOW_BATTERY, phone_state.LOW_POWER_MODE}
    waiving = PhoneDevice(
        device.adb,
        device.profile,
        library,
        tmp_path / "amc-bench",
        waived=[phone_state.LOW_BATTERY, phone_state.LOW_POWER_MODE],
    )
    with waiving.session():
        assert waiving.adb.run("echo", "measured") == "measured\n"


def test_heat_during_a_session_is_told(device: PhoneDevice, phone: FakePhone) -> None:
    with device.session():
        phone.sandbox.write("sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq", "1200000\n")
        phone.sandbox.edit("dumpsys_thermalservice.txt", "Thermal Status: 0", "Thermal Status: 1")
        with pytest.raises(PhoneUnfit) as caught:
            device.require_steady()
    assert set(caught.value.problems) == {phone_state.CLOCK_DROPPED, phone_state.THROTTLED}


def limit_clock(phone: FakePhone, mhz: int) -> None:
    phone.sandbox.write("sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq", f"{mhz}000\n")


@pytest.fixture
def unlocked(
    adb: AdbPhone, library: RuntimeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PhoneDevice]:
    """A device without a held clock mode that waits for 0.1 s at most, or as told."""
    monkeypatch.setattr(phone_state, "POLL_S", 0.01)

    def make(cooldown_s: float = 0.1, **settings: Any) -> PhoneDevice:
        limits = {"cap_wait_s": settings.pop("cap_wait_s", 60.0)}
        profile = replace(PROFILES["pixel_8"], cooldown_s=cooldown_s, **limits)
        return PhoneDevice(adb, profile, library, fake_runner(tmp_path), **settings)

    return make


def test_a_phone_whose_clocks_are_limited_is_waited_for_and_then_named(
    unlocked: Callable[..., PhoneDevice], phone: FakePhone
) -> None:
    limit_clock(phone, 1200)
    with pytest.raises(PhoneUnfit, match="1200 MHz, built for 2360 MHz after") as caught, unlocked().session():
        pass
    assert set(caught.value.problems) == {phone_state.CLOCK_LIMITED}
    with unlocked(waived=[phone_state.CLOCK_LIMITED]).session() as device:
        assert device.adb.run("echo", "measured") == "measured\n"
    with unlocked(60, on_wait=lambda found, waited_s: limit_clock(phone, 2360)).session() as device:
        device.require_steady()


def test_clocks_that_are_always_limited_are_a_condition(
    unlocked: Callable[..., PhoneDevice], phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_state, "CAP_POLL_S", 0.01)
    stay_on = phone.sandbox.state / "setting_stay_on_while_plugged_in"
    waits: list[tuple[str, str]] = []

    def waiting(found: Mapping[str, str], waited_s: float) -> None:
        waits.append((*found, stay_on.read_text().strip()))

    limit_clock(phone, 1200)
    device = unlocked(60, cap_wait_s=0.05, on_wait=waiting)
    assert device.conditions().clock_mode == "unlocked sched_pixel 4-7<=1200MHz"
    assert set(waits) == {(phone_state.CLOCK_LIMITED, "7")}  # with the screen on: off it limits the clocks too
    assert stay_on.read_text().strip() == "0"
    with device.session():
        device.require_steady()
    waits.clear()
    again = unlocked(60, cap_wait_s=60, on_wait=waiting)  # another process, which need not find that out again
    with again.session():
        assert again.conditions() == device.conditions()
    assert waits == []
    hasty = unlocked(0.1)
    assert hasty.conditions() == device.conditions()
    limit_clock(phone, 1500)
    with pytest.raises(PhoneUnfit, match="1500 MHz, when the command began at 1200 MHz") as caught, hasty.session():
        pass
    assert set(caught.value.problems) == {phone_state.CLOCK_LIMITED}
    limit_clock(phone, 2360)
    assert unlocked().conditions().clock_mode == "unlocked sched_pixel"


def test_a_cap_of_a_hot_phone_is_not_its_own(unlocked: Callable[..., PhoneDevice], phone: FakePhone) -> None:
    limit_clock(phone, 1200)
    phone.sandbox.edit("dumpsys_battery.txt", "temperature: 265", "temperature: 401")
    with pytest.raises(PhoneUnfit, match="may run at 1200 MHz, built for 2360 MHz after"):
        unlocked(0.1, cap_wait_s=0.0).conditions()


def test_clocks_that_drop_in_a_session_are_waited_for(unlocked: Callable[..., PhoneDevice], phone: FakePhone) -> None:
    with unlocked().session() as device:
        limit_clock(phone, 1200)
        with pytest.raises(PhoneUnfit, match="CLOCK_DROPPED"):
            device.cool_down()
        limit_clock(phone, 2360)
        device.cool_down()


def test_wrong_threads_and_waivers_are_refused(device: PhoneDevice, library: RuntimeLibrary, tmp_path: Path) -> None:
    runner = tmp_path / "amc-bench"
    with pytest.raises(InvalidConfig, match="threads"):
        PhoneDevice(device.adb, device.profile, library, runner, threads=0)
    with pytest.raises(InvalidConfig, match="COLD"):
        PhoneDevice(device.adb, device.profile, library, runner, waived=["COLD"])


@pytest.mark.parametrize("screen", ["Awake", "Dozing"])
def test_a_measurement_tells_what_the_phone_did_meanwhile(device: PhoneDevice, phone: FakePhone, screen: str) -> None:
    if screen != "Awake":
        phone.sandbox.edit("dumpsys_power.txt", "mWakefulness=Awake", f"mWakefulness={screen}")
    config = ProtocolConfig(model_passes=3, model_samples=4, pair_rounds=2)
    alone = measure_model(device, b"ms=1.5", config)
    pair = measure_pair(device, b"ms=1.5", b"ms=0.5", config)
    for measured in (alone, pair.before, pair.after):
        document = measured.to_document()
        told = [document[key] for key in ("mean_mhz", "top_clock_share", "switches_per_sample", "screen")]
        assert told == [2250, 0.75, 0.5, screen]
        assert ModelMeasurement.from_document(document).to_document() == document


def test_a_model_is_built_only_while_it_is_not_on_the_phone(
    device: PhoneDevice, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_runner, "KEEP_BYTES", 12)
    built: list[str] = []

    def measure(*names: str) -> list[tuple[str, float]]:
        def build(name: str) -> bytes:
            built.append(name)
            return f"ms={name[1:]}".encode()

        timing = Timing(samples=2, min_sample_ms=0.1, warmup_runs=1, max_s=1.0)
        jobs = [Job(name, name, partial(build, name), timing) for name in names]
        return [(name, one.samples_ms[0]) for name, one in zip(names, device.passes(jobs), strict=True)]

    with device.session():
        assert measure("k1", "k2", "k1") == [("k1", 1.0), ("k2", 2.0), ("k1", 1.0)]
        assert measure("k2", "k3") == [("k2", 2.0), ("k3", 3.0)]
        assert built == ["k1", "k2", "k3"]
        assert measure("k3", "k4") == [("k3", 3.0), ("k4", 4.0)]  # the first two make room, and the third with them
        assert built == ["k1", "k2", "k3", "k4", "k3"]
        assert measure("k1") == [("k1", 1.0)]
    assert built == ["k1", "k2", "k3", "k4", "k3", "k1"]
