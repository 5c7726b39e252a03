"""The phone's clocks held steady while measuring, and its own settings given back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amc_mobile.device.profiles import clock_caps_folder, held_settings_folder, locks_folder, phone_file_stem
from amc_mobile.errors import (
    CorruptFile,
    DeviceDisconnected,
    DeviceError,
    DeviceUnavailable,
    InvalidConfig,
    InvalidInput,
    PhoneBusy,
)
from amc_mobile.store import held, read_json, write_json

if TYPE_CHECKING:  # brings adbutils, and every command looks at the modes
    from amc_mobile.device.adb import AdbPhone


def phone_lock(serial: str) -> AbstractContextManager[None]:
    """Holds the phone for this process. Raises PhoneBusy naming the process that holds it."""
    return held(
        locks_folder() / f"{phone_file_stem(serial)}.lock",
        lambda holder: PhoneBusy(
            f"the phone {serial} is in use by {holder}",
            next_step="wait for it to finish, or use another phone with --serial",
        ),
    )


FORMAT_VERSION = 1  # 1: serial, stayed_on, fixed_performance


@dataclass(frozen=True)
class HeldSettings:
    """The settings of a phone as they were. `stayed_on`: Android's number, or "null" where it was never set.

    `fixed_performance`: whether the mode was switched on by us, so that it must be switched off.
    """

    serial: str
    stayed_on: str
    fixed_performance: bool


def note(held: HeldSettings) -> None:
    """Writes down what must be given back, before anything is changed."""
    write_json(_path(held.serial), asdict(held), format_version=FORMAT_VERSION)


def noted(serial: str) -> HeldSettings | None:
    """What an earlier process did not give back to a phone. Raises CorruptFile."""
    path = _path(serial)
    if not path.exists():
        return None
    document = read_json(path, format_version=FORMAT_VERSION)
    stayed_on, fixed = document.get("stayed_on"), document.get("fixed_performance")
    if document.get("serial") != serial or not isinstance(stayed_on, str) or not isinstance(fixed, bool):
        raise CorruptFile(path, "not the settings of this phone", next_step="delete the file")
    return HeldSettings(serial, stayed_on, fixed)


def forget(serial: str) -> None:
    """After the phone has its settings back."""
    _path(serial).unlink(missing_ok=True)


def _path(serial: str) -> Path:
    return held_settings_folder() / f"{phone_file_stem(serial)}.json"


FIXED = "fixed_performance"  # Android's sustainable clocks: steadier, but lower than what applications get
UNLOCKED = "unlocked"
MODES = (UNLOCKED, FIXED)
FIXED_PERFORMANCE_SDK = 30
CAPS_FORMAT_VERSION = 1  # 1: caps
RESTORE_TIMEOUT_S = 30.0
_KEEP_ON = "svc power stayon true; input keyevent KEYCODE_WAKEUP || true"
_FIX_PERFORMANCE = "\ncmd power set-fixed-performance-mode-enabled true"
_STAY_ON = "settings {verb} global stay_on_while_plugged_in"


def held_mode(mode: str, sdk: int) -> str:
    """The mode that `clock_mode` holds when asked for `mode`."""
    return FIXED if mode == FIXED and sdk >= FIXED_PERFORMANCE_SDK else UNLOCKED


@contextmanager
def clock_mode(
    adb: AdbPhone, sdk: int, mode: str, *, run: Callable[[str], object] | None = None, at_end: str = ""
) -> Iterator[str]:
    """Holds a clock mode and keeps the screen on: with it off, Android parks all threads on the small cores.

    Yields the mode that holds: Androids below 11 have no fixed performance mode and stay unlocked. Both settings are
    given back at the end, also after an error or Ctrl-C; DeviceError when that fails and nothing else has. What is not
    given back, since the process was killed or the link gone, the next `give_back` does. The caller holds the phone.
    `run`: runs the script that changes the settings, with whatever else the phone is asked in that breath. `at_end`: a
    script that the phone runs after it has got its settings back; whether it fails does not matter.
    """
    if mode not in MODES:
        raise InvalidConfig(f"clock mode {mode!r} is unknown", next_step=f"use one of {', '.join(MODES)}")
    give_back(adb)
    stayed_on = adb.shell(_STAY_ON.format(verb="get"), what="reading the screen setting").text.strip()
    held = held_mode(mode, sdk)
    note(HeldSettings(adb.serial, stayed_on, held == FIXED))
    try:
        script = _KEEP_ON + (_FIX_PERFORMANCE if held == FIXED else "")
        if run:
            run(script)
        else:
            adb.shell(script, what="holding the phone's clocks")
        yield held
    except (DeviceDisconnected, DeviceUnavailable):
        raise  # nothing reaches the phone now, and waiting for it again helps nobody
    except BaseException:
        with contextlib.suppress(DeviceError):  # what ended the measuring says more
            give_back(adb, at_end)
        raise
    give_back(adb, at_end)


def note_caps(serial: str, caps: Mapping[str, int]) -> None:
    """Writes down the limits of a phone's clocks that are always there: as `4-7` -> MHz."""
    write_json(_caps_path(serial), {"caps": dict(caps)}, format_version=CAPS_FORMAT_VERSION)


def noted_caps(serial: str) -> dict[str, int]:
    """What `note_caps` wrote; empty where it wrote nothing, or the file is damaged: then they are measured again."""
    path = _caps_path(serial)
    if path.exists():
        with contextlib.suppress(InvalidInput, CorruptFile):
            caps = read_json(path, format_version=CAPS_FORMAT_VERSION).get("caps")
            if isinstance(caps, dict) and all(type(mhz) is int for mhz in caps.values()):
                return caps
    return {}


def _caps_path(serial: str) -> Path:
    return clock_caps_folder() / f"{phone_file_stem(serial)}.json"


def give_back(adb: AdbPhone, and_then: str = "") -> None:
    """Gives the phone the settings back that a process changed and has not given back. The caller holds the phone.

    `and_then`: a script that runs in the same breath; its failure is none of this.
    """
    held = noted(adb.serial)
    if held is None:
        return
    has_value = held.stayed_on.isascii() and held.stayed_on.isdecimal()
    script = f"{_STAY_ON.format(verb='put')} {held.stayed_on}" if has_value else _STAY_ON.format(verb="delete")
    if held.fixed_performance:
        script += "\ncmd power set-fixed-performance-mode-enabled false"
    script += f"\ncode=$?\n( {and_then}\n) >/dev/null 2>&1\nexit $code" if and_then else ""
    try:
        adb.shell(script, what="giving the phone its settings back", timeout_s=RESTORE_TIMEOUT_S)
    except DeviceError as error:
        message = f"the phone did not get its settings back: {error.message}"
        raise DeviceError(message, next_step="attach it and run `amc-mobile doctor`, which gives them back") from error
    forget(adb.serial)


def give_back_left_over(adb: AdbPhone) -> None:
    """As `give_back`, for callers that do not hold the phone: nothing is done while another process measures on it."""
    if noted(adb.serial) is None:
        return
    with contextlib.suppress(PhoneBusy), phone_lock(adb.serial):
        give_back(adb)
