"""One process at a time measures on a phone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from amc_mobile.device.user_folder import phone_file_stem
from amc_mobile.errors import PhoneBusy
from amc_mobile.store import held


def phone_lock(serial: str, folder: Path) -> AbstractContextManager[None]:
    """Holds the phone for this process. Raises PhoneBusy naming the process that holds it."""
    return held(
        folder / f"{phone_file_stem(serial)}.lock",
        lambda holder: PhoneBusy(
            f"the phone {serial} is in use by {holder}",
            next_step="wait for it to finish, or use another phone with --serial",
        ),
    )
