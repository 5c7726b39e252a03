"""The phone as a device: sessions, conditions, phones that are not fit or busy, and the real runner on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benches import fake_runner
from host_runner import build_host_runner, locate_library
from onnx_files import convolution
from phone_fake.phone import FakePhone
from waiting_clock import WaitingClock

from amc_mobile.device import device as neighbours
from amc_mobile.device import phone_runner, phone_state
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.device import Job, Neighbours, Timing
from amc_mobile.device.layout import questions, read
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone import PhoneDevice
from amc_mobile.device.phone_runner import FOLDER
from amc_mobile.device.phone_state import BUSY, FIXED, read_neighbours
from amc_mobile.device.profiles import load_profiles
from amc_mobile.device.runner import BenchEnd, BenchError, BenchModel, BenchPair, BenchResult, BenchStart
from amc_mobile.errors import DeadlineExceeded, DeviceError, InvalidConfig, PhoneBusy, PhoneUnfit, RunnerFailed
from amc_mobile.latency.measurement import BUSY as FLAG
from amc_mobile.latency.measurement import ModelMeasurement, ModelRequest
from amc_mobile.latency.protocol import ProtocolConfig, measure_model, measure_models, measure_pair

PROFILES = load_profiles()


@pytest.fixture
def library(tmp_path: Path) -> RuntimeLibrary:
    path = tmp_path / "libtensorflowlite_jni.so"
    path.write_bytes(b"\x7fELF not loaded by the stand-in")
    return RuntimeLibrary("tflite", "2.17.0", "arm64-v8a", "bionic", path, "ab" * 32)


@pytest.fixture
def device(adb: AdbPhone, library: RuntimeLibrary, tmp_path: Path) -> PhoneDevice:
    return PhoneDevice(adb, PROFILES["pixel_8"], library, fake_runner(tmp_path), mode=FIXED)


def test_a_session_measures_and_gives_everything_back(device: PhoneDevice, phone: FakePhone) -> None:
    with device.session():
        assert (phone.sandbox.state / "fixed_performance").read_text() == "true\n"
        events = list(device.bench([BenchModel("a", "a b;c")], {"a b;c": b"ms=1.5"}, Timing(samples=20), deadline_s=60))
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
        events = device.bench([BenchModel("a", "a")], BuiltLate(a=model), Timing(samples=20), deadline_s=600)
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
    adb: AdbPhone, library: RuntimeLibrary, phone: FakePhone, tmp_path: Path
) -> None:
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
    adb: AdbPhone, library: RuntimeLibrary, phone: FakePhone, tmp_path: Path
) -> None:
    (phone.sandbox.state / "graph").write_bytes(questions())
    device = onnx_phone(adb, library, tmp_path)
    with device.session():
        assert device.layout() == read(questions()).text()
        (result,) = [
            event
            for event in device.bench([BenchModel("a", "a")], {"a": b"ms=1.5"}, Timing(samples=20), deadline_s=60)
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


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
BENCH_TIMING = Timing(warmup_runs=1, samples=5)


def real_device(adb: AdbPhone, phone: FakePhone, monkeypatch: pytest.MonkeyPatch) -> PhoneDevice:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(phone.sandbox.folder / "home"))
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2000000})
    return PhoneDevice(adb, load_profiles()["pixel"], locate_library("onnxruntime"), build_host_runner())


@needs_compiler
def test_models_are_measured_through_the_cable(
    adb: AdbPhone, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = real_device(adb, phone, monkeypatch)
    models = {"small.onnx": convolution(8), "large.onnx": convolution(64), "broken.onnx": b"no model"}
    small, large = BenchModel("small", "small.onnx"), BenchModel("large", "large.onnx")
    entries = [small, BenchModel("broken", "broken.onnx"), large, BenchPair(small, large)]
    with device.session():
        start, *middle, end = device.bench(entries, models, BENCH_TIMING, deadline_s=60)
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
    adb: AdbPhone, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = real_device(adb, phone, monkeypatch)
    entries = [BenchModel(f"m{n}", "a.onnx") for n in range(60)]
    with device.session():
        got = []
        faults = [phone.faults.add("disconnect", "sleep.*tail -c", after_bytes=after) for after in (150, 400)]
        timing = Timing(warmup_runs=1, samples=20, min_sample_ms=1.0)
        for event in device.bench(entries, {"a.onnx": convolution(64)}, timing, deadline_s=60):
            got.append(event)
    assert [fault.struck for fault in faults] == [1, 1]
    assert [event.id for event in got if isinstance(event, BenchResult)] == [entry.id for entry in entries]


@needs_compiler
def test_a_library_that_does_not_load_is_told(
    adb: AdbPhone, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = real_device(adb, phone, monkeypatch)
    bad = tmp_path / "libonnxruntime.so"
    bad.write_bytes(b"\x7fELF and no more")
    library = RuntimeLibrary("onnxruntime", "1.0.0", "x86_64", "glibc", bad, "cd" * 32)
    device = PhoneDevice(adb, device.profile, library, build_host_runner())
    with device.session(), pytest.raises((RunnerFailed, DeviceError), match="libonnxruntime"):
        list(device.bench([BenchModel("a", "a.onnx")], {"a.onnx": b""}, BENCH_TIMING, deadline_s=60))


def test_cores_that_the_kernel_does_not_grant_are_told(adb: AdbPhone, phone: FakePhone, tmp_path: Path) -> None:
    runner = fake_runner(tmp_path)
    runner.write_text(runner.read_text().replace('cores_seen=values.get("cores", "")', 'cores_seen="0-8"'))
    file = tmp_path / "lib.so"
    file.write_bytes(b"library")
    library = RuntimeLibrary("tflite", "2.17.0", "arm64-v8a", "bionic", file, "ef" * 32)
    device = PhoneDevice(adb, load_profiles()["pixel_8"], library, runner)
    with device.session(), pytest.raises(DeviceError, match="on cores 0-8, not on 4-7"):
        list(device.bench([BenchModel("a", "a.tflite")], {"a.tflite": b"ms=1"}, BENCH_TIMING, deadline_s=60))
    assert phone.sandbox.wait_until_idle() == []
