"""Files to and from the phone over adb's sync service.

Our own framing over adbutils' connection: adbutils sends 4 KiB at a time with send(), which may stop half way on a
socket with a time limit, waits for ever on a phone that stalls, and drops the reason that the phone gives.
"""

from __future__ import annotations

import socket
import stat as stat_modes
import struct
import time
from dataclasses import dataclass
from typing import BinaryIO

from amc_mobile.device.adb_server import AdbServer, read_exactly
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_output import phone_text
from amc_mobile.errors import DeviceDisconnected, DeviceError, InvalidInput, PhoneCommandFailed

CHUNK_BYTES = 64 * 1024  # the most that the protocol allows
MAX_PATH_BYTES = 1024


@dataclass(frozen=True)
class RemoteFile:
    mode: int
    size_bytes: int  # modulo 2^32

    @property
    def exists(self) -> bool:
        return self.mode != 0

    @property
    def is_file(self) -> bool:
        return stat_modes.S_ISREG(self.mode)


def stat_file(server: AdbServer, transport_id: int, path: str, deadline: Deadline) -> RemoteFile:
    """Mode 0 says that there is no such file."""
    with server.service(transport_id, "sync:", deadline) as connection:
        with server.answering(transport_id, deadline) as first:
            _send(connection, b"STAT", _encoded(path), first)
            answer = read_exactly(connection, 16, first)
        server.heard(transport_id)
        if answer[:4] != b"STAT":
            raise DeviceDisconnected(f"{deadline.what}: unexpected answer {answer[:4]!r} to STAT")
        mode, size, _ = struct.unpack("<III", answer[4:])
        _quit(connection)
    return RemoteFile(mode, size)


def push_file(server: AdbServer, transport_id: int, source: BinaryIO, path: str, mode: int, deadline: Deadline) -> int:
    """Writes `source` to `path`; returns its size in bytes. Raises PhoneCommandFailed with the reason.

    The phone says only at the end, or when it closes, why it did not take a file.
    """
    total = 0
    with server.service(transport_id, "sync:", deadline) as connection:
        _send(connection, b"SEND", _encoded(path) + f",{stat_modes.S_IFREG | mode}".encode(), deadline)
        try:
            while chunk := source.read(CHUNK_BYTES):
                with server.answering(transport_id, deadline) as taking:
                    _send(connection, b"DATA", chunk, taking)
                total += len(chunk)
            deadline.limit(connection)
            connection.sendall(b"DONE" + struct.pack("<I", int(time.time())))
        except (BrokenPipeError, ConnectionResetError) as error:
            _raise_pending_failure(connection, path, deadline, error)
        with server.answering(transport_id, deadline) as last:
            _expect(connection, b"OKAY", path, last)
        _quit(connection)
    return total


def pull_file(server: AdbServer, transport_id: int, path: str, target: BinaryIO, deadline: Deadline) -> int:
    """Copies the phone's file into `target` and returns its size in bytes. Raises PhoneCommandFailed when it cannot."""
    total = 0
    with server.service(transport_id, "sync:", deadline) as connection:
        _send(connection, b"RECV", _encoded(path), deadline)
        while True:
            with server.answering(transport_id, deadline) as next_answer:
                kind, size = _header(connection, next_answer)
            if kind == b"DONE":
                break
            if kind != b"DATA":
                raise _failure(kind, size, connection, path, deadline)
            if size > CHUNK_BYTES:
                raise DeviceDisconnected(f"{deadline.what}: a chunk of {size} bytes is not possible")
            target.write(read_exactly(connection, size, deadline))
            total += size
        _quit(connection)
    return total


def _encoded(path: str) -> bytes:
    encoded = path.encode()
    if not path.startswith("/") or len(encoded) > MAX_PATH_BYTES or b"\0" in encoded:
        raise InvalidInput(f"{path!r} is no path on a phone: absolute, at most {MAX_PATH_BYTES} bytes")
    return encoded


def _send(connection: socket.socket, kind: bytes, content: bytes, deadline: Deadline) -> None:
    deadline.limit(connection)
    connection.sendall(kind + struct.pack("<I", len(content)) + content)


def _header(connection: socket.socket, deadline: Deadline) -> tuple[bytes, int]:
    answer = read_exactly(connection, 8, deadline)
    return answer[:4], int.from_bytes(answer[4:], "little")


def _expect(connection: socket.socket, wanted: bytes, path: str, deadline: Deadline) -> None:
    kind, size = _header(connection, deadline)
    if kind != wanted:
        raise _failure(kind, size, connection, path, deadline)


def _failure(kind: bytes, size: int, connection: socket.socket, path: str, deadline: Deadline) -> DeviceError:
    if kind != b"FAIL":
        return DeviceDisconnected(f"{deadline.what}: unexpected answer {kind!r}")
    reason = phone_text(read_exactly(connection, min(size, CHUNK_BYTES), deadline))
    return PhoneCommandFailed(f"transfer of {path}", 1, reason)


def _raise_pending_failure(connection: socket.socket, path: str, deadline: Deadline, error: OSError) -> None:
    """The phone closed while we were sending: it has usually said why."""
    try:
        _expect(connection, b"OKAY", path, deadline)
    except DeviceDisconnected:
        raise error from None
    raise error


def _quit(connection: socket.socket) -> None:
    """Ends the service politely; the work is done, so a link that breaks now does not matter."""
    try:
        connection.sendall(b"QUIT" + struct.pack("<I", 0))
    except OSError:
        return
