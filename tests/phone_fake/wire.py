"""The messages between adb server and adbd."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

MAX_DATA = 1 << 20
VERSION = 0x01000001  # since this one the checksum is not looked at
HEADER = struct.Struct("<6I")


def command(name: bytes) -> int:
    return int.from_bytes(name, "little")


CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (command(n) for n in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))


@dataclass(frozen=True)
class Message:
    command: int
    arg0: int
    arg1: int
    data: bytes | bytearray = b""

    def encoded(self) -> bytes:
        header = HEADER.pack(self.command, self.arg0, self.arg1, len(self.data), 0, self.command ^ 0xFFFFFFFF)
        return header + self.data


def read_exactly(connection: socket.socket, size: int) -> bytearray:
    """Raises ConnectionError when the other side ends before."""
    content = bytearray(size)
    missing = memoryview(content)
    while missing:
        count = connection.recv_into(missing)
        if not count:
            raise ConnectionError("the other side closed")
        missing = missing[count:]
    return content


def read_message(connection: socket.socket) -> Message:
    name, arg0, arg1, size, _, magic = HEADER.unpack(read_exactly(connection, HEADER.size))
    if magic != name ^ 0xFFFFFFFF or size > MAX_DATA:
        raise ConnectionError(f"not a message of adb: {name:08x} with {size} bytes")
    return Message(name, arg0, arg1, read_exactly(connection, size))
