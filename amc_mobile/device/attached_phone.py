"""The phones that adb lists, the states they can be in, and what to do about each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from amc_mobile.errors import DeviceUnauthorized, DeviceUnavailable

_TRANSPORT = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class AttachedPhone:
    """A line of `adb devices -l`. `path`: where it is plugged in, such as `usb:1-4`, empty for wireless ones."""

    serial: str
    state: str
    transport_id: int
    path: str = ""

    @property
    def is_ready(self) -> bool:
        return self.state == "device"

    def raise_unless_ready(self) -> None:
        if self.state == "unauthorized":
            raise DeviceUnauthorized(self.serial)
        if not self.is_ready:
            raise DeviceUnavailable(
                f"the phone {self.serial} cannot be used (adb says {self.state})", next_step=remedy(self.state)
            )


def remedy(state: str) -> str:
    """What to do about a phone in a state that adb reports."""
    return {
        "unauthorized": "unlock the phone and accept the dialog 'Allow USB debugging?'",
        "offline": "plug the cable in again, or switch USB debugging off and on; wireless: adb connect again",
        "authorizing": "wait a moment: adb and the phone are still agreeing on a key",
        "connecting": "wait a moment: adb is still connecting",
        "no": "this user may not open the USB device: install udev rules for Android (the line says no permissions)",
        "recovery": "start the phone into Android: adb reboot",
        "sideload": "start the phone into Android: adb reboot",
        "bootloader": "start the phone into Android: fastboot reboot",
    }.get(state, "start Android on the phone and switch on USB debugging in its developer options")


def parse_devices(answer: str) -> list[AttachedPhone]:
    """The lines of `adb devices -l`; lines in another form are left out."""
    found = []
    for line in answer.splitlines():
        # Serials may hold blanks at the end only as adb prints them, padded: fields are what blanks leave.
        words = line.split()
        tags = dict(word.split(":", 1) for word in words[2:] if ":" in word)
        if len(words) < 2 or not _TRANSPORT.fullmatch(tags.get("transport_id", "")):
            continue
        path = next((word for word in words[2:] if word.startswith("usb:")), "")
        found.append(AttachedPhone(words[0], words[1], int(tags["transport_id"]), path))
    return found
