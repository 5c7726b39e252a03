"""The executable for phones: what its ELF headers promise to Android's linker."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the package ziglang")

ROOT = Path(__file__).parents[2]
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS = 1, 2, 3, 7
DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_TEXTREL, DT_HASH, DT_GNU_HASH, DT_FLAGS_1 = 1, 5, 6, 22, 4, 0x6FFFFEF5, 0x6FFFFFFB
WRITE, EXECUTE = 2, 1


@dataclass(frozen=True)
class Segment:
    kind: int
    flags: int
    offset: int
    address: int
    file_bytes: int
    align: int


class Elf:
    """The headers of a 64-bit little-endian ELF file."""

    def __init__(self, content: bytes) -> None:
        assert content[:7] == b"\x7fELF\x02\x01\x01"
        self.content = content
        self.type, self.machine = struct.unpack_from("<HH", content, 16)
        self.entry, table = struct.unpack_from("<QQ", content, 24)
        size, count = struct.unpack_from("<HH", content, 54)
        self.segments = []
        for at in range(table, table + size * count, size):
            kind, flags, offset, address, _, file_bytes, _, align = struct.unpack_from("<IIQQQQQQ", content, at)
            self.segments.append(Segment(kind, flags, offset, address, file_bytes, align))
        self.dynamic = list(self._dynamic())

    def of_kind(self, kind: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.kind == kind]

    def bytes_of(self, segment: Segment) -> bytes:
        return self.content[segment.offset : segment.offset + segment.file_bytes]

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        for segment in self.of_kind(PT_DYNAMIC):
            for tag, value in struct.iter_unpack("<QQ", self.bytes_of(segment)):
                if tag == 0:
                    return
                yield tag, value

    def values(self, tag: int) -> list[int]:
        return [value for found, value in self.dynamic if found == tag]

    def _at_address(self, address: int) -> int:
        for segment in self.of_kind(PT_LOAD):
            if segment.address <= address < segment.address + segment.file_bytes:
                return address - segment.address + segment.offset
        raise AssertionError(f"{address:#x} is in no segment")

    def string(self, index: int) -> str:
        start = self._at_address(self.values(DT_STRTAB)[0]) + index
        return self.content[start : self.content.index(b"\0", start)].decode()

    def undefined_symbols(self) -> set[str]:
        start, end = self._at_address(self.values(DT_SYMTAB)[0]), self._at_address(self.values(DT_STRTAB)[0])
        hash_table = self._at_address(self.values(DT_HASH)[0])
        count = struct.unpack_from("<I", self.content, hash_table + 4)[0]
        assert start + 24 * count <= end
        names = set()
        for i in range(1, count):
            name, _, _, section = struct.unpack_from("<IBBH", self.content, start + 24 * i)
            if section == 0:
                names.add(self.string(name))
        return names


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("android") / "amc-bench"
    done = subprocess.run(
        [sys.executable, ROOT / "android_bench" / "build.py", "--output", output],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(output)
    return output


@pytest.fixture(scope="module")
def elf(executable: Path) -> Elf:
    return Elf(executable.read_bytes())


def test_it_is_a_position_independent_executable_for_arm64(elf: Elf) -> None:
    et_dyn, em_aarch64, df_1_pie = 3, 183, 0x08000000
    assert (elf.type, elf.machine) == (et_dyn, em_aarch64)
    assert elf.values(DT_FLAGS_1)[0] & df_1_pie
    assert elf.entry > 0
    assert elf.values(DT_TEXTREL) == []


def test_androids_linker_loads_it(elf: Elf) -> None:
    (interpreter,) = elf.of_kind(PT_INTERP)
    assert elf.bytes_of(interpreter) == b"/system/bin/linker64\0"
    assert elf.values(DT_HASH)
    assert elf.values(DT_GNU_HASH)


def test_it_fits_pages_of_16_kib(elf: Elf) -> None:
    loaded = elf.of_kind(PT_LOAD)
    assert len(loaded) >= 2
    for segment in loaded:
        assert segment.align == 16384
        assert segment.address % 16384 == segment.offset % 16384
        assert not (segment.flags & WRITE and segment.flags & EXECUTE)


def test_it_needs_nothing_but_bionic(elf: Elf) -> None:
    assert sorted(elf.string(index) for index in elf.values(DT_NEEDED)) == ["libc.so", "libdl.so"]


def test_it_uses_nothing_whose_abi_differs_between_c_libraries(elf: Elf) -> None:
    symbols = elf.undefined_symbols()
    assert {"__libc_init", "dlopen", "clock_gettime", "sched_setaffinity"} <= symbols
    assert not {name for name in symbols if "errno" in name or "stat" in name or "pthread" in name or "jmp" in name}
    assert not symbols & {"sigaction", "stdout", "stderr", "environ", "__stack_chk_guard", "__tls_get_addr"}
    assert elf.of_kind(PT_TLS) == []


def test_a_build_that_fails_says_why(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "sys.modules['ziglang'] = None  # as if it were not installed\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    build = str(ROOT / "android_bench" / "build.py")
    done = subprocess.run(
        [sys.executable, "-c", program, build, "--output", str(tmp_path / "x")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install ziglang" in done.stderr
    assert not (tmp_path / "x").exists()
