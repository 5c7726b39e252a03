"""Where the user's own device profiles, runtime libraries and the locks of phones live on this computer."""

from __future__ import annotations

import os
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
