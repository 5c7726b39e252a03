"""Shared libraries made by hand: just the headers that are read."""

from __future__ import annotations

import struct

ARM64, X86_64, ARM = 183, 62, 40


def shared_library(
    machine: int, needed: tuple[str, ...], exports: tuple[str, ...], imports: tuple[str, ...] = ()
) -> bytes:
    """An ELF file of 64 bits with one loaded segment: strings, symbols, hashes and the dynamic entries."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*needed, *exports, *imports))
    address = 0x10000
    symbols = bytes(24)
    for names, section in ((imports, 0), (exports, 7)):
        for name in names:
            symbols += struct.pack("<IBBHQQ", strings.index(b"\0" + name.encode() + b"\0") + 1, 0x12, 0, section, 0, 0)
    hashes = struct.pack("<III", 0, len(symbols) // 24, 0)
    at_strings = 64 + 2 * 56
    at_symbols = at_strings + len(strings)
    at_hashes = at_symbols + len(symbols)
    at_dynamic = at_hashes + len(hashes)
    dynamic = b"".join(struct.pack("<qQ", 1, strings.index(name.encode())) for name in needed)
    for tag, at in ((5, at_strings), (6, at_symbols), (4, at_hashes)):
        dynamic += struct.pack("<qQ", tag, address + at)
    dynamic += struct.pack("<qQ", 0, 0)
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    size = at_dynamic + len(dynamic)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096)
    place = address + at_dynamic
    table = struct.pack("<IIQQQQQQ", 2, 6, at_dynamic, place, place, len(dynamic), len(dynamic), 8)
    return header + load + table + strings + symbols + hashes + dynamic
