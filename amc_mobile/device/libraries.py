"""The inference libraries for phones that the user added: taken out of an AAR, a wheel, or given as a .so file.

TFLite's own benchmark program counts as one: it has the library inside.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.formats import BENCHMARK_MODEL, LITERT, MAVEN, PHONE_RUNTIMES, TFLITE
from amc_mobile.store import is_file, is_file_name, read_bytes, read_json, replacing, write_json

ABI_OF_MACHINE = {183: "arm64-v8a", 62: "x86_64", 40: "armeabi-v7a", 3: "x86"}
AGAIN = "download the library again"
GLIBC = "glibc"  # the C library of Linux computers; Android has its own
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
            return GLIBC
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
        """The number of symbols, which only the hash tables hold."""
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

    def _place_of(self, tag_sought: int) -> int | None:
        """Where in the file the table lies that the entry points to."""
        address = next((value for tag, value in self._entries if tag == tag_sought), None)
        if address is None:
            return None
        for virtual, place, size in self._loads:
            if virtual <= address < virtual + size:
                return int(place + address - virtual)
        raise ValueError("its names lie outside the file")

    def _text(self, start: int) -> bytes:
        return self._content[start : self._content.index(b"\0", start)]


FORMAT_VERSION = 1  # 1: runtime, version, abi, libc, file, sha256
# What the program prints in its two formats, and a flag that both versions take.
_BENCHMARK_TEXTS = (b"Inference timings in us", b"BENCHMARK RESULTS")
_BENCHMARK_FLAG = b"warmup_runs"
MAX_LIBRARY_BYTES = 512 << 20
MAX_MEMBERS = 20_000
_MEMBER = re.compile(r"(?:jni/[\w-]+/|[\w.-]+/(?:[\w.-]+/)*)(lib[\w.+-]{1,80}\.so(?:\.[\w.]{1,20})?)")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_VERSION_TEXT = re.compile(r"\d{1,5}\.\d{1,5}\.\d{1,5}", re.ASCII)


@dataclass(frozen=True)
class RuntimeLibrary:
    """One library for one processor.

    `runtime`: one of PHONE_RUNTIMES, by the interface that the library has.
    """

    runtime: str
    version: str
    abi: str
    libc: str  # "bionic": Android's
    path: Path
    sha256: str

    @property
    def label(self) -> str:
        return f"{self.runtime} {self.version} {self.abi}"


def add_library(source: Path, folder: Path, *, version: str | None = None) -> list[RuntimeLibrary]:
    """Adds the libraries in an .aar, a .whl or an .so file to `folder`, or a benchmark_model; equal ones are replaced.

    `version`: needed where neither the file's name nor a wheel's has it. Raises InvalidInput for files that hold no
    library we can drive, CorruptFile for broken archives.
    """
    if not is_file(source):
        raise InvalidInput(f"no file {source}", next_step=f"download an AAR from Maven: {MAVEN}")
    version = version or _version_in_name(source.name)
    if not _VERSION_TEXT.fullmatch(version):
        raise InvalidConfig(f"version {version!r} is not of the form 1.2.3", next_step="pass --version X.Y.Z")
    added: list[RuntimeLibrary] = []
    unreadable: list[InvalidInput] = []  # an archive may hold other libraries that can be read
    for name, content in _libraries_in(source):
        try:
            elf = read_elf(content)
        except InvalidInput as error:
            unreadable.append(error)
            continue
        runtime = _runtime_of(content, elf)
        if runtime is not None:
            added.append(_store(folder, name, content, runtime, version, elf))
    if not added:
        raise InvalidInput(
            f"{source}: no library of ONNX Runtime, TFLite or LiteRT in it, and no benchmark_model"
            + (f": {unreadable[0].message}" if unreadable else ""),
            next_step=f"use one of these AARs: {MAVEN}",
        )
    return added


def list_libraries(folder: Path) -> list[RuntimeLibrary]:
    """Raises CorruptFile for entries that cannot be read or whose library is not the one that was added."""
    return [_read(path) for path in sorted(folder.glob("*/library.json"))] if folder.is_dir() else []


def choose_library(libraries: Sequence[RuntimeLibrary], runtime: str, abis: Sequence[str]) -> RuntimeLibrary:
    """The newest library for a phone with these ABIs, the phone's favourite first; TFLite also takes LiteRT.

    benchmark_model serves TFLite where there is no library. Raises InvalidInput saying what to add.
    """
    preferences = ((runtime, LITERT), (BENCHMARK_MODEL,)) if runtime == TFLITE.runtime else ((runtime,),)
    for runtimes, abi in itertools.product(preferences, abis):
        fitting = [library for library in libraries if library.runtime in runtimes and library.abi == abi]
        if fitting:
            # Libraries for other C libraries do not load on Android; they serve phones imitated by a Linux computer.
            return max(
                fitting,
                key=lambda library: (
                    library.libc == "bionic",
                    tuple(map(int, library.version.split("."))),
                    library.runtime,
                ),
            )
    have = ", ".join(library.label for library in libraries) or "none"
    raise InvalidInput(
        f"no {runtime} library for a phone with {'/'.join(abis) or 'an unknown processor'}; added so far: {have}",
        next_step=f"download an AAR ({MAVEN}), then `amc-mobile runtime add FILE.aar`",
    )


def _version_in_name(name: str) -> str:
    versions = _VERSION.findall(name)
    if len(set(versions)) != 1:
        raise InvalidConfig(
            f"the name {name!r} holds no single version such as 1.2.3", next_step="pass --version X.Y.Z"
        )
    return str(versions[0])


def _libraries_in(source: Path) -> Iterator[tuple[str, bytes]]:
    """File name and content of each library. Only names are taken from archives, never paths."""
    if source.suffix not in (".aar", ".whl", ".zip"):
        if source.stat().st_size > MAX_LIBRARY_BYTES:
            raise InvalidInput(f"{source}: larger than {MAX_LIBRARY_BYTES >> 20} MiB")
        yield source.name, source.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise InvalidInput(f"{source}: {len(members)} files are too many for a library's archive")
            for member in members:
                match = _MEMBER.fullmatch(member.filename)
                if match is None or ".." in member.filename:
                    continue
                # The size in the directory may lie, so what is read is bounded as well.
                with archive.open(member) as file:
                    content = file.read(MAX_LIBRARY_BYTES + 1)
                if len(content) > MAX_LIBRARY_BYTES:
                    raise InvalidInput(f"{source}: {member.filename} is larger than {MAX_LIBRARY_BYTES >> 20} MiB")
                yield match[1], content
    except AmcMobileError:
        raise
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds: zlib.error, LZMAError, EOFError ...
        raise CorruptFile(source, f"not a readable archive ({error})", next_step="download it again") from error


def _runtime_of(content: bytes, elf: ElfFacts) -> str | None:
    """By the symbols it defines: a JNI library only imports its runtime's. A program by what it prints."""
    looks_like_program = _BENCHMARK_FLAG in content and any(text in content for text in _BENCHMARK_TEXTS)
    if looks_like_program and elf.is_program:
        return BENCHMARK_MODEL
    return next((name for name, kind in PHONE_RUNTIMES.items() if kind.symbol and kind.symbol in elf.exports), None)


def _store(folder: Path, name: str, content: bytes, runtime: str, version: str, elf: ElfFacts) -> RuntimeLibrary:
    file = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")
    label = f"{runtime}-{version}-{elf.abi}"
    # Other files of the same runtime and version, as of another C library, keep their entries.
    taken = _file_of_entry(folder / label) not in ("", file)
    target = folder / (f"{label}-{file}" if taken else label)
    target.mkdir(parents=True, exist_ok=True)
    library = RuntimeLibrary(runtime, version, elf.abi, elf.libc, target / file, hashlib.sha256(content).hexdigest())
    with replacing(library.path) as temporary:
        temporary.write_bytes(content)
    document = {key: value for key, value in asdict(library).items() if key != "path"}
    write_json(target / "library.json", {**document, "file": file}, format_version=FORMAT_VERSION)
    return library


def _file_of_entry(target: Path) -> str:
    """The file name of the library that is stored in this folder; "" where there is none that can be used."""
    try:
        return _read(target / "library.json").path.name
    except CorruptFile:
        return ""


def _read(path: Path) -> RuntimeLibrary:
    again = f"delete {path.parent} and run `amc-mobile runtime add` again"
    document = read_json(path, format_version=FORMAT_VERSION, next_step=again)
    texts = {key: document[key] for key in ("runtime", "version", "abi", "libc", "sha256", "file")}
    fits = all(isinstance(value, str) for value in texts.values()) and _VERSION_TEXT.fullmatch(texts["version"])
    if not fits or not is_file_name(texts["file"]):
        raise CorruptFile(path, "holds values of a wrong kind", next_step=again)
    library = path.parent / texts.pop("file")
    content = read_bytes(library, MAX_LIBRARY_BYTES) if is_file(library) else b""
    if hashlib.sha256(content).hexdigest() != texts["sha256"]:
        raise CorruptFile(library, "is not the library that was added", next_step=again)
    try:
        runtime = _runtime_of(content, read_elf(content))
    except InvalidInput as error:
        raise CorruptFile(library, error.message, next_step=again) from error
    if runtime != texts["runtime"]:  # versions before stored JNI libraries as runtimes
        raise CorruptFile(library, f"is no {texts['runtime']} library", next_step=again)
    return RuntimeLibrary(path=library, **texts)
