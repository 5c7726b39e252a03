"""One process at a time measures on a phone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from amc_mobile.device.user_folder import phone_file_stem
from amc_mobile.errors import PhoneBusy

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def phone_lock(serial: str, folder: Path) -> Iterator[None]:
    """Holds the phone for this process. The system lets go of it when the process ends, however it ends.

    Raises PhoneBusy naming the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{phone_file_stem(serial)}.lock"
    with path.open("a+") as file:
        try:
            _lock(file)
        except OSError as error:
            file.seek(0)
            holder = file.read(20).strip()
            raise PhoneBusy(
                f"the phone {serial} is in use by process {holder or 'unknown'} of this computer",
                next_step="wait for it to finish, or use another phone with --serial",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
