"""Where the user's own device profiles, runtime libraries and what belongs to phones live on this computer."""

from __future__ import annotations

import os
import re
from pathlib import Path


def user_folder() -> Path:
    """AMC_MOBILE_HOME, or `~/.amc-mobile`. It may not exist yet."""
    return Path(os.environ.get("AMC_MOBILE_HOME") or Path.home() / ".amc-mobile")


def profiles_folder() -> Path:
    return user_folder() / "device_profiles"


def runtimes_folder() -> Path:
    return user_folder() / "runtimes"


def locks_folder() -> Path:
    return user_folder() / "locks"


def held_settings_folder() -> Path:
    return user_folder() / "held_settings"


def clock_caps_folder() -> Path:
    return user_folder() / "clock_caps"


def layouts_folder() -> Path:
    return user_folder() / "layouts"


def phone_file_stem(serial: str) -> str:
    """A phone's serial as a part of a file name: serials of wireless phones hold colons."""
    return re.sub(r"[^A-Za-z0-9.-]", lambda match: f"_{ord(match[0]):x}", serial)[:100]
