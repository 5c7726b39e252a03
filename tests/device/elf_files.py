"""Shared libraries made by hand: just the headers that are read."""

from __future__ import annotations

import struct

ARM64, X86_64, ARM = 183, 62, 40


def shared_library(machine: int, needed: tuple[str, ...], exports: tuple[str, ...]) -> bytes:
    """An ELF file of 64 bits with one loaded segment, a table of strings and the dynamic entries."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*needed, *exports))
    at = 64 + 2 * 56
    address = 0x10000
    dynamic = b"".join(struct.pack("<qQ", 1, strings.index(name.encode())) for name in needed)
    dynamic += struct.pack("<qQ", 5, address + at) + struct.pack("<qQ", 0, 0)
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    size = at + len(strings) + len(dynamic)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096)
    place = at + len(strings)
    table = struct.pack("<IIQQQQQQ", 2, 6, place, address + place, address + place, len(dynamic), len(dynamic), 8)
    return header + load + table + strings + dynamic
