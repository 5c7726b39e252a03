"""Files written whole or not at all, files that one process holds, and JSON documents with their format version."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from amc_mobile.errors import AmcMobileError, CorruptFile

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes `path`'s place only when the block succeeds.

    A process killed at any moment leaves the old file or the new one, never half of either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are readable by their owner alone, whatever the umask allows.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    temporary.open("xb").close()
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held(path: Path, refusal: Callable[[str], AmcMobileError]) -> Iterator[None]:
    """Holds the lock file `path` for this process. The system lets go of it when the process ends, however it ends.

    Raises what `refusal` makes of the holder: "process 4711 on HOST".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                _lock(file)
            except OSError as error:
                file.seek(0)
                raise refusal(file.read(200).strip() or "another process") from error
            if not _is_at(path, file):
                continue  # the last holder deleted the file in between
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, document: dict[str, Any], *, format_version: int) -> None:
    """Writes `document` with its `format_version` first. NaN and infinity are refused (ValueError)."""
    versioned = {"format_version": format_version, **document}
    write_text(path, json.dumps(versioned, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *, format_version: int) -> dict[str, Any]:
    """Reads what `write_json` wrote. Raises CorruptFile for broken text and for newer versions."""
    try:
        document = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFile(path, f"not JSON ({error})", next_step="delete the file and run the step again") from error
    except OSError as error:
        raise CorruptFile(path, f"cannot be read ({error.strerror})") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version < 1:
        raise CorruptFile(path, "has no format_version", next_step="delete the file and run the step again")
    if version > format_version:
        raise CorruptFile(
            path, f"has format {version}, this version reads up to {format_version}", next_step="update amc-mobile"
        )
    return dict(document)
