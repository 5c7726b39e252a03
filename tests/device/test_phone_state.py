"""What a phone says of itself, whether it is fit, and its settings held and given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from phone_fake.phone import FakePhone

from amc_mobile.cli import main
from amc_mobile.device import phone_state
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.phone_state import (
    FIXED,
    UNLOCKED,
    HeldSettings,
    PhoneFacts,
    PhoneState,
    clock_mode,
    give_back_left_over,
    phone_lock,
    read_facts,
    read_state,
)
from amc_mobile.device.profiles import held_settings_folder, load_profiles
from amc_mobile.errors import CorruptFile, DeviceError, InvalidConfig, PhoneBusy, PhoneUnfit

PROFILE = replace(load_profiles()["pixel"], cooldown_s=0.2)


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_state, "POLL_S", 0.005)


SKIN = "Temperature{mValue=27.5, mType=3"
HOT_SKIN = "Temperature{mValue=41.5, mType=3"


def problems(adb: AdbPhone) -> dict[str, str]:
    facts = read_facts(adb)
    return phone_state.problems(facts, facts.state, PROFILE)


def test_a_good_phone_has_no_problem(adb: AdbPhone) -> None:
    assert problems(adb) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "name", "said"),
    [
        ("dumpsys_battery.txt", "level: 77", "level: 24", phone_state.LOW_BATTERY, "24 %, below 25 %"),
        ("dumpsys_battery.txt", "temperature: 265", "temperature: 401", phone_state.HOT, "40.1 C, above 38 C"),
        ("dumpsys_thermalservice.txt", SKIN, HOT_SKIN, phone_state.HOT, "41.5 C"),
        ("dumpsys_thermalservice.txt", "Thermal Status: 0", "Thermal Status: 2", phone_state.THROTTLED, "status 2"),
        ("setting_low_power", "0", "1", phone_state.LOW_POWER_MODE, "battery saver"),
        ("getprop.txt", "[ro.hardware]: [shiba]", "[ro.hardware]: [ranchu]", phone_state.EMULATOR, "emulator"),
    ],
)
def test_each_problem_has_a_name_its_values_and_can_be_waived(
    adb: AdbPhone, phone: FakePhone, file: str, old: str, new: str, name: str, said: str
) -> None:
    phone.sandbox.edit(file, old, new)
    found = problems(adb)
    assert list(found) == [name]
    assert said in found[name]
    with pytest.raises(PhoneUnfit) as caught:
        phone_state.require_fit(found, [])
    assert list(caught.value.problems) == [name]
    assert phone_state.REMEDIES[name] in caught.value.next_step
    assert f"--waive {name}" in caught.value.next_step
    phone_state.require_fit(found, [name])


def test_an_unknown_waiver_is_refused() -> None:
    with pytest.raises(InvalidConfig) as caught:
        phone_state.check_waivers(["HOTT"])
    assert "HOT, " in caught.value.next_step


def test_a_phone_without_thermal_service_is_judged_by_its_battery(adb: AdbPhone, phone: FakePhone) -> None:
    (phone.sandbox.state / "dumpsys_thermalservice.txt").unlink()
    assert read_state(adb).thermal is None
    assert read_state(adb).celsius == 26.5
    assert problems(adb) == {}


def test_the_wait_ends_when_the_phone_is_cool(adb: AdbPhone, phone: FakePhone) -> None:
    phone.sandbox.edit("dumpsys_thermalservice.txt", SKIN, HOT_SKIN)
    seen = []

    def cool_it(found: Mapping[str, str], waited_s: float) -> None:
        seen.append(found)
        phone.sandbox.edit("dumpsys_thermalservice.txt", HOT_SKIN, SKIN)

    state = phone_state.wait_until_cool(lambda: read_state(adb), replace(PROFILE, cooldown_s=60), on_wait=cool_it)
    assert (seen, state.celsius) == ([{phone_state.HOT: "41.5 C, above 38 C"}], 27.5)


def test_the_wait_for_a_phone_that_stays_hot_has_an_end(adb: AdbPhone, phone: FakePhone) -> None:
    phone.sandbox.edit("dumpsys_thermalservice.txt", SKIN, HOT_SKIN)
    with pytest.raises(PhoneUnfit, match=r"41\.5 C, above 38 C after") as caught:
        phone_state.wait_until_cool(lambda: read_state(adb), PROFILE)
    assert list(caught.value.problems) == [phone_state.HOT]
    assert phone_state.wait_until_cool(lambda: read_state(adb), PROFILE, waived=[phone_state.HOT]).celsius == 41.5


def test_a_hot_phone_is_waited_for_until_it_is_clearly_cooler(adb: AdbPhone, phone: FakePhone) -> None:
    """Else a phone at the limit starts and stops with every tenth of a degree; one that charges stays just below it."""
    temperatures = iter([38.5, 37.5, 36.5, 35.5])
    seen = []

    def warm(celsius: float) -> PhoneState:
        return replace(read_state(adb), battery=replace(read_state(adb).battery, celsius=celsius))

    def next_state(found: Mapping[str, str], waited_s: float) -> None:
        seen.append(found[phone_state.HOT])

    state = phone_state.wait_until_cool(
        lambda: warm(next(temperatures)), replace(PROFILE, cooldown_s=60), on_wait=next_state
    )
    assert (seen, state.celsius) == (["38.5 C, above 38 C", "37.5 C, above 36 C", "36.5 C, above 36 C"], 35.5)
    assert (
        phone_state.wait_until_cool(lambda: warm(37.5), PROFILE).celsius == 37.5
    )  # never too hot: nothing to wait for


def test_a_phone_that_charges_and_stays_just_below_the_limit_is_measured(adb: AdbPhone) -> None:
    state = read_state(adb)
    temperatures = iter([38.5, *[37.5] * 1000])
    waited = phone_state.wait_until_cool(
        lambda: replace(state, battery=replace(state.battery, celsius=next(temperatures))),
        replace(PROFILE, cooldown_s=0.05),
    )
    assert waited.celsius == 37.5


def test_a_wait_for_clocks_is_not_called_cooling() -> None:
    assert phone_state.waiting_stage({phone_state.CLOCK_LIMITED: "1200 MHz"}) == "wait for the phone's clocks"
    assert (
        phone_state.waiting_stage({phone_state.CLOCK_DROPPED: "1200 MHz", phone_state.HOT: "41 C"})
        == "wait for the phone to cool"
    )


def test_a_lower_clock_limit_of_the_used_cores_is_drift(adb: AdbPhone, phone: FakePhone) -> None:
    before = read_state(adb)
    phone.sandbox.write("sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq", "1200000\n")
    now = read_state(adb)
    assert phone_state.drift(before, now, (8,), PROFILE) == {}
    found = phone_state.drift(before, now, (4, 5), PROFILE)
    assert found == {phone_state.CLOCK_DROPPED: "cores 4-7 may run at 1200 MHz, before 2360 MHz"}


def test_clocks_below_what_the_used_cores_are_built_for_are_a_problem(adb: AdbPhone, phone: FakePhone) -> None:
    assert phone_state.clock_limits(read_state(adb), ()) == {}
    phone.sandbox.write("sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq", "1200000\n")
    state = read_state(adb)
    assert phone_state.clock_limits(state, (8,)) == {}
    found = {phone_state.CLOCK_LIMITED: "cores 4-7 may run at 1200 MHz, built for 2360 MHz"}
    assert phone_state.clock_limits(state, (4,)) == phone_state.clock_limits(state, ()) == found


def settings(phone: FakePhone) -> tuple[str, str]:
    state = phone.sandbox.state
    stay_on = state / "setting_stay_on_while_plugged_in"
    return (state / "fixed_performance").read_text().strip(), stay_on.read_text().strip() if stay_on.exists() else "-"


@pytest.mark.parametrize(("before", "after"), [("3", "3"), ("0", "0"), (None, "-")])
def test_clocks_are_held_and_the_settings_given_back(
    adb: AdbPhone, phone: FakePhone, before: str | None, after: str
) -> None:
    path = phone.sandbox.state / "setting_stay_on_while_plugged_in"
    path.unlink() if before is None else path.write_text(before)
    with clock_mode(adb, 34, FIXED) as held:
        assert held == FIXED
        assert settings(phone) == ("true", "7")
    assert settings(phone) == ("false", after)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DeviceError])
def test_the_settings_come_back_after_errors_and_ctrl_c(
    adb: AdbPhone, phone: FakePhone, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), clock_mode(adb, 34, FIXED):
        assert settings(phone) == ("true", "7")
        raise kind("stop")
    assert settings(phone) == ("false", "0")


def test_the_settings_come_back_over_a_link_that_breaks(adb: AdbPhone, phone: FakePhone) -> None:
    with clock_mode(adb, 34, FIXED):
        phone.faults.add("disconnect", "settings put", after_bytes=3)
    assert settings(phone) == ("false", "0")


def test_settings_that_cannot_be_given_back_are_told(
    adb: AdbPhone, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_mobile.device.phone_state.RESTORE_TIMEOUT_S", 0.5)
    with pytest.raises(DeviceError, match="did not get its settings back") as caught, clock_mode(adb, 34, FIXED):
        phone.unplug()
    assert "amc-mobile doctor" in caught.value.next_step


def test_old_androids_stay_unlocked(adb: AdbPhone, phone: FakePhone) -> None:
    with clock_mode(adb, 29, FIXED) as held:
        assert held == UNLOCKED
        assert settings(phone) == ("false", "7")


def test_a_phone_is_held_by_one_process_and_freed_by_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path))
    program = (
        "import sys\nfrom amc_mobile.device.phone_state import phone_lock\n"
        "with phone_lock('a b/../c'):\n print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PhoneBusy, match=f"process {holder.pid} "), phone_lock("a b/../c"):
            pass
        with phone_lock("another"):
            holder.kill()
    with phone_lock("a b/../c"):
        assert [p.name for p in (tmp_path / "locks").iterdir() if "a_20b" in p.name] == ["a_20b_2f.._2fc.lock"]


def test_emulators_are_known_by_any_of_their_properties(adb: AdbPhone) -> None:
    facts: PhoneFacts = read_facts(adb)
    for key, value in (("ro.kernel.qemu", "1"), ("ro.boot.qemu", "1"), ("ro.hardware", "goldfish")):
        assert phone_state.is_emulator(replace(facts, properties={**facts.properties, key: value}))
    assert not phone_state.is_emulator(facts)


HOLD = """
import sys
from amc_mobile.device.adb import AdbPhone, choose_phone
from amc_mobile.device.adb import AdbServer
from amc_mobile.device.phone_state import FIXED, clock_mode, phone_lock

server = AdbServer()
adb = AdbPhone(server, choose_phone(server.phones(), sys.argv[1]))
with phone_lock(adb.serial), clock_mode(adb, 34, FIXED):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def killed(phone: FakePhone) -> None:
    """A process that held the phone was killed and could give nothing back."""
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, phone.serial],
        env={**os.environ, "PYTHONPATH": root}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert settings(phone) == ("true", "7")


@pytest.mark.parametrize("command", ["doctor", "devices"])
def test_the_next_command_gives_back_what_a_killed_process_held(
    killed: None, phone: FakePhone, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["amc-mobile", command])
    with pytest.raises(SystemExit):
        main()
    assert settings(phone) == ("false", "0")
    assert list(held_settings_folder().iterdir()) == []


def test_the_next_measurement_starts_from_the_phones_own_settings(
    killed: None, adb: AdbPhone, phone: FakePhone
) -> None:
    with clock_mode(adb, 34, FIXED):
        assert settings(phone) == ("true", "7")
        assert phone_state.noted(phone.serial) == HeldSettings(phone.serial, "0", True)
    assert settings(phone) == ("false", "0")


def test_what_another_process_holds_is_left_alone(adb: AdbPhone, phone: FakePhone) -> None:
    with phone_lock(phone.serial), clock_mode(adb, 34, FIXED):
        give_back_left_over(adb)
        assert settings(phone) == ("true", "7")


def test_a_setting_that_was_never_set_is_taken_away_again(adb: AdbPhone, phone: FakePhone) -> None:
    phone_state.note(HeldSettings(phone.serial, "null", False))
    (phone.sandbox.state / "setting_stay_on_while_plugged_in").write_text("7\n")
    give_back_left_over(adb)
    assert settings(phone) == ("false", "-")


def test_settings_stay_noted_until_the_phone_has_them(
    adb: AdbPhone, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_mobile.device.phone_state.RESTORE_TIMEOUT_S", 0.5)
    phone_state.note(HeldSettings(phone.serial, "3", True))
    phone.unplug()
    with pytest.raises(DeviceError, match="did not get its settings back"):
        give_back_left_over(adb)
    phone.plug_in()
    adb.wait_until_back(20)
    give_back_left_over(adb)
    assert settings(phone) == ("false", "3")


@pytest.mark.parametrize("text", ["{", '{"format_version": 1, "serial": "other", "stayed_on": "1; reboot"}'])
def test_a_note_that_cannot_be_read_is_named_and_not_obeyed(adb: AdbPhone, phone: FakePhone, text: str) -> None:
    phone_state.note(HeldSettings(phone.serial, "3", True))
    (file,) = held_settings_folder().iterdir()
    file.write_text(text)
    with pytest.raises(CorruptFile, match=file.name):
        give_back_left_over(adb)
    assert settings(phone) == ("false", "0")
