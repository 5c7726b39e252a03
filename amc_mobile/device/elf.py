"""What an ELF file's headers say: for which processor it is built, what it needs and what it exports."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from amc_mobile.errors import InvalidInput

ABI_OF_MACHINE = {183: "arm64-v8a", 62: "x86_64", 40: "armeabi-v7a", 3: "x86"}
AGAIN = "download the library again"
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_EXECUTABLE = 2  # the type of programs that are not position-independent
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRTAB_SIZE, _GNU_HASH = 1, 4, 5, 6, 10, 0x6FFFFEF5
MAX_SYMBOLS = 1 << 20
_GLOBAL, _WEAK = 1, 2


@dataclass(frozen=True)
class ElfFacts:
    """`abi`: Android's name of the processor. `needed`: the shared libraries it asks for.

    `is_program`: it can be started; a shared library is loaded by a program. `exports`: the dynamic symbols that it
    defines; those that it takes from other libraries are left out.
    """

    abi: str
    needed: tuple[str, ...]
    is_program: bool = False
    exports: frozenset[str] = frozenset()

    @property
    def libc(self) -> str:
        """Whose C library it is built for: "bionic" is Android's."""
        if "libc.so.6" in self.needed:
            return "glibc"
        return "bionic" if "libc.so" in self.needed else "none"


def read_elf(content: bytes) -> ElfFacts:
    """Raises InvalidInput for what is no ELF file of a known processor, or a broken one."""
    if content[:4] != b"\x7fELF" or len(content) < 64 or content[5] != 1:
        raise InvalidInput("not a shared library of Android or Linux (no little-endian ELF file)", next_step=AGAIN)
    kind, machine = struct.unpack_from("<HH", content, 16)
    if machine not in ABI_OF_MACHINE:
        raise InvalidInput(f"a library for a processor that no phone has (ELF machine {machine})", next_step=AGAIN)
    try:
        headers = _program_headers(content, is_64=content[4] == 2)
        is_program = kind == _EXECUTABLE or any(header[0] == _INTERPRETER for header in headers)
        dynamic = _Dynamic(content, headers, is_64=content[4] == 2)
        return ElfFacts(ABI_OF_MACHINE[machine], dynamic.needed(), is_program, dynamic.exports())
    except (struct.error, ValueError, OverflowError) as error:
        raise InvalidInput(f"a damaged shared library: {error}", next_step=AGAIN) from error


def _program_headers(content: bytes, *, is_64: bool) -> list[tuple[int, int, int, int]]:
    offset, entry_size, count = (
        (*struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54))
        if is_64
        else (*struct.unpack_from("<I", content, 28), *struct.unpack_from("<HH", content, 42))
    )
    return [_program_header(content, offset + index * entry_size, is_64) for index in range(count)]


def _program_header(content: bytes, at: int, is_64: bool) -> tuple[int, int, int, int]:
    """Kind, offset in the file, virtual address, size in the file."""
    if is_64:
        kind, _, place, virtual, _, size = struct.unpack_from("<IIQQQQ", content, at)
    else:
        kind, place, virtual, _, size = struct.unpack_from("<IIIII", content, at)
    return kind, place, virtual, size


class _Dynamic:
    """The dynamic section: what the loader reads. Raises ValueError and struct.error for places outside the file."""

    def __init__(self, content: bytes, headers: list[tuple[int, int, int, int]], *, is_64: bool) -> None:
        self._content = content
        self._is_64 = is_64
        self._loads = [(virtual, place, size) for kind, place, virtual, size in headers if kind == _LOAD]
        step, form = (16, "<qQ") if is_64 else (8, "<iI")
        place, size = next(((place, size) for kind, place, _, size in headers if kind == _DYNAMIC), (0, 0))
        self._entries = [struct.unpack_from(form, content, place + at * step) for at in range(size // step)]

    def needed(self) -> tuple[str, ...]:
        offsets = [value for tag, value in self._entries if tag == _NEEDED]
        start = self._place_of(_STRTAB)
        if start is None:
            return ()
        return tuple(self._text(start + offset).decode() for offset in offsets)

    def exports(self) -> frozenset[str]:
        """The names of the symbols with a section of their own; names that are no UTF-8 are left out."""
        strings, symbols = self._place_of(_STRTAB), self._place_of(_SYMTAB)
        if strings is None or symbols is None:
            return frozenset()
        names = set()
        step, form = (24, "<IBBH") if self._is_64 else (16, "<I8xBBH")
        for index in range(self._count()):
            name, info, _, section = struct.unpack_from(form, self._content, symbols + index * step)
            if name and section != 0 and info >> 4 in (_GLOBAL, _WEAK):
                names.add(self._text(strings + name).decode(errors="ignore"))
        return frozenset(names)

    def _count(self) -> int:
        """The number of symbols, which only the hash tables tell."""
        count = 0
        if (place := self._place_of(_HASH)) is not None:
            (count,) = struct.unpack_from("<I", self._content, place + 4)
        elif (place := self._place_of(_GNU_HASH)) is not None:
            buckets, first, bloom = struct.unpack_from("<III", self._content, place)
            if max(buckets, first, bloom) > MAX_SYMBOLS:
                raise ValueError("its table of symbols is too large")
            place += 16 + bloom * (8 if self._is_64 else 4)
            last = max(struct.unpack_from(f"<{buckets}I", self._content, place), default=0)
            place += 4 * buckets
            if last >= first:  # the last chain ends with an odd hash
                count = last
                while not struct.unpack_from("<I", self._content, place + 4 * (count - first))[0] & 1:
                    count += 1
                count += 1
        if count > MAX_SYMBOLS:
            raise ValueError("it has too many symbols")
        return count

    def _place_of(self, wanted: int) -> int | None:
        """Where in the file the table lies that the entry points to."""
        address = next((value for tag, value in self._entries if tag == wanted), None)
        if address is None:
            return None
        for virtual, place, size in self._loads:
            if virtual <= address < virtual + size:
                return int(place + address - virtual)
        raise ValueError("its names lie outside the file")

    def _text(self, start: int) -> bytes:
        return self._content[start : self._content.index(b"\0", start)]
