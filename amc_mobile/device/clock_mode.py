"""The phone's clocks held steady while measuring, and its own settings given back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from amc_mobile.errors import DeviceError, InvalidConfig

if TYPE_CHECKING:  # brings adbutils, and every command looks at the modes
    from amc_mobile.device.adb import AdbPhone

FIXED = "fixed_performance"  # Android's sustainable clocks: steadier, but lower than what applications get
UNLOCKED = "unlocked"
MODES = (UNLOCKED, FIXED)
FIXED_PERFORMANCE_SDK = 30
RESTORE_TIMEOUT_S = 30.0
_STAY_ON = "settings {verb} global stay_on_while_plugged_in"


def held_mode(mode: str, sdk: int) -> str:
    """What `clock_mode` holds of the wanted mode."""
    return FIXED if mode == FIXED and sdk >= FIXED_PERFORMANCE_SDK else UNLOCKED


@contextmanager
def clock_mode(adb: AdbPhone, sdk: int, mode: str) -> Iterator[str]:
    """Holds the wanted mode and keeps the screen on: with it off, Android parks all threads on the small cores.

    Yields the mode that holds: Androids below 11 have no fixed performance mode and stay unlocked. Both settings are
    given back at the end, also after an error or Ctrl-C; DeviceError when that fails and nothing else has.
    """
    if mode not in MODES:
        raise InvalidConfig(f"clock mode {mode!r} is unknown", next_step=f"use one of {', '.join(MODES)}")
    stayed_on = adb.shell(_STAY_ON.format(verb="get"), what="reading the screen setting").text.strip()
    held = held_mode(mode, sdk)
    try:
        adb.shell("svc power stayon true; input keyevent KEYCODE_WAKEUP || true", what="keeping the screen on")
        if held == FIXED:
            adb.run("cmd", "power", "set-fixed-performance-mode-enabled", "true")
        yield held
    except BaseException:
        with contextlib.suppress(DeviceError):  # what ended the measuring says more
            _restore(adb, stayed_on, fixed=held == FIXED)
        raise
    _restore(adb, stayed_on, fixed=held == FIXED)


def _restore(adb: AdbPhone, stayed_on: str, *, fixed: bool) -> None:
    put = f"{_STAY_ON.format(verb='put')} {stayed_on}" if stayed_on.isdecimal() else _STAY_ON.format(verb="delete")
    script = put + ("\ncmd power set-fixed-performance-mode-enabled false" if fixed else "")
    try:
        adb.shell(script, what="giving the phone its settings back", timeout_s=RESTORE_TIMEOUT_S)
    except DeviceError as error:
        restore = "adb shell svc power stayon false" + (
            "; adb shell cmd power set-fixed-performance-mode-enabled false" if fixed else ""
        )
        message = f"the phone did not get its settings back: {error.message}"
        raise DeviceError(message, next_step=f"run: {restore}") from error
