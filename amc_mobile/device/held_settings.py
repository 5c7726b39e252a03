"""What must be given back to phones: written down before a setting is changed, so that it outlives a process killed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from amc_mobile.device.user_folder import held_settings_folder, phone_file_stem
from amc_mobile.errors import CorruptFile
from amc_mobile.store import read_json, write_json

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
