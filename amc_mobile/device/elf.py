"""What an ELF file's headers say: for which processor it is built and what it needs."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from amc_mobile.errors import InvalidInput

ABI_OF_MACHINE = {183: "arm64-v8a", 62: "x86_64", 40: "armeabi-v7a", 3: "x86"}
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_EXECUTABLE = 2  # the type of programs that are not position-independent
_NEEDED, _STRTAB = 1, 5


@dataclass(frozen=True)
class ElfFacts:
    """`abi`: Android's name of the processor. `needed`: the shared libraries it asks for.

    `is_program`: it can be started; a shared library is loaded by a program.
    """

    abi: str
    needed: tuple[str, ...]
    is_program: bool = False

    @property
    def libc(self) -> str:
        """Whose C library it is built for: "bionic" is Android's."""
        if "libc.so.6" in self.needed:
            return "glibc"
        return "bionic" if "libc.so" in self.needed else "none"


def read_elf(content: bytes) -> ElfFacts:
    """Raises InvalidInput for what is no ELF file of a known processor, or a broken one."""
    if content[:4] != b"\x7fELF" or len(content) < 64 or content[5] != 1:
        raise InvalidInput("not a shared library of Android or Linux (no little-endian ELF file)")
    kind, machine = struct.unpack_from("<HH", content, 16)
    if machine not in ABI_OF_MACHINE:
        raise InvalidInput(f"a library for a processor that no phone has (ELF machine {machine})")
    try:
        headers = _program_headers(content, is_64=content[4] == 2)
        is_program = kind == _EXECUTABLE or any(header[0] == _INTERPRETER for header in headers)
        return ElfFacts(ABI_OF_MACHINE[machine], _needed(content, headers, content[4] == 2), is_program)
    except (struct.error, ValueError, OverflowError) as error:
        raise InvalidInput(f"a damaged shared library: {error}") from error


def _program_headers(content: bytes, *, is_64: bool) -> list[tuple[int, int, int, int]]:
    offset, entry_size, count = (
        (*struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54))
        if is_64
        else (*struct.unpack_from("<I", content, 28), *struct.unpack_from("<HH", content, 42))
    )
    return [_program_header(content, offset + index * entry_size, is_64) for index in range(count)]


def _needed(content: bytes, headers: list[tuple[int, int, int, int]], is_64: bool) -> tuple[str, ...]:
    loads = [(virtual, place, size) for kind, place, virtual, size in headers if kind == _LOAD]
    for kind, place, _, size in headers:
        if kind == _DYNAMIC:
            return _names(content, place, size, loads, is_64)
    return ()


def _program_header(content: bytes, at: int, is_64: bool) -> tuple[int, int, int, int]:
    """Kind, offset in the file, virtual address, size in the file."""
    if is_64:
        kind, _, place, virtual, _, size = struct.unpack_from("<IIQQQQ", content, at)
    else:
        kind, place, virtual, _, size = struct.unpack_from("<IIIII", content, at)
    return kind, place, virtual, size


def _names(content: bytes, place: int, size: int, loads: list[tuple[int, int, int]], is_64: bool) -> tuple[str, ...]:
    step = 16 if is_64 else 8
    entries = [
        struct.unpack_from("<qQ" if is_64 else "<iI", content, place + index * step) for index in range(size // step)
    ]
    tables = [value for tag, value in entries if tag == _STRTAB]
    if not tables:
        return ()
    start = next((place + tables[0] - virtual for virtual, place, n in loads if virtual <= tables[0] < virtual + n), -1)
    if start < 0:
        raise ValueError("its names lie outside the file")
    found = []
    for tag, value in entries:
        if tag == _NEEDED:
            end = content.index(b"\0", start + value)
            found.append(content[start + value : end].decode())
    return tuple(found)
