"""Settings that a killed process changed on a phone are given back by the next command that opens it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from phone_fake.phone import FakePhone

from amc_mobile.cli import main
from amc_mobile.device import clock_mode as clock_module
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.clock_mode import FIXED, HeldSettings, clock_mode, give_back_left_over, phone_lock
from amc_mobile.device.profiles import held_settings_folder
from amc_mobile.errors import CorruptFile, DeviceError

HOLD = """
import sys
from amc_mobile.device.adb import AdbPhone, choose_phone
from amc_mobile.device.adb import AdbServer
from amc_mobile.device.clock_mode import FIXED, clock_mode
from amc_mobile.device.clock_mode import phone_lock

server = AdbServer()
adb = AdbPhone(server, choose_phone(server.phones(), sys.argv[1]))
with phone_lock(adb.serial), clock_mode(adb, 34, FIXED):
    print("held", flush=True)
    sys.stdin.read()
"""


def settings(phone: FakePhone) -> tuple[str, str]:
    state = phone.sandbox.state
    stay_on = state / "setting_stay_on_while_plugged_in"
    return (state / "fixed_performance").read_text().strip(), stay_on.read_text().strip() if stay_on.exists() else "-"


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
        assert clock_module.noted(phone.serial) == HeldSettings(phone.serial, "0", True)
    assert settings(phone) == ("false", "0")


def test_what_another_process_holds_is_left_alone(adb: AdbPhone, phone: FakePhone) -> None:
    with phone_lock(phone.serial), clock_mode(adb, 34, FIXED):
        give_back_left_over(adb)
        assert settings(phone) == ("true", "7")


def test_a_setting_that_was_never_set_is_taken_away_again(adb: AdbPhone, phone: FakePhone) -> None:
    clock_module.note(HeldSettings(phone.serial, "null", False))
    (phone.sandbox.state / "setting_stay_on_while_plugged_in").write_text("7\n")
    give_back_left_over(adb)
    assert settings(phone) == ("false", "-")


def test_settings_stay_noted_until_the_phone_has_them(
    adb: AdbPhone, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_mobile.device.clock_mode.RESTORE_TIMEOUT_S", 0.5)
    clock_module.note(HeldSettings(phone.serial, "3", True))
    phone.unplug()
    with pytest.raises(DeviceError, match="did not get its settings back"):
        give_back_left_over(adb)
    phone.plug_in()
    adb.wait_until_back(20)
    give_back_left_over(adb)
    assert settings(phone) == ("false", "3")


@pytest.mark.parametrize("text", ["{", '{"format_version": 1, "serial": "other", "stayed_on": "1; reboot"}'])
def test_a_note_that_cannot_be_read_is_named_and_not_obeyed(adb: AdbPhone, phone: FakePhone, text: str) -> None:
    clock_module.note(HeldSettings(phone.serial, "3", True))
    (file,) = held_settings_folder().iterdir()
    file.write_text(text)
    with pytest.raises(CorruptFile, match=file.name):
        give_back_left_over(adb)
    assert settings(phone) == ("false", "0")
