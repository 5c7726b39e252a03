"""Runtime libraries taken out of archives, from strangers."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from elf_files import ARM, ARM64, X86_64, shared_library

from amc_mobile.device.libraries import RuntimeLibrary, add_library, choose_library, list_libraries, read_elf
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput

ORT_ARM64 = shared_library(ARM64, ("libdl.so", "libc.so"), ("OrtGetApiBase",))
ORT_X86 = shared_library(X86_64, ("libc.so.6",), ("OrtGetApiBase",))
TFLITE = shared_library(ARM64, ("libc.so",), ("TfLiteInterpreterCreate",))
LITERT = shared_library(ARM64, ("libc.so",), ("LiteRtCreateEnvironment", "TfLiteInterpreterCreate"))


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_an_aar_gives_a_library_per_processor(tmp_path: Path) -> None:
    aar = archive(
        tmp_path / "onnxruntime-android-1.29.0.aar",
        {
            "jni/arm64-v8a/libonnxruntime.so": ORT_ARM64,
            "jni/x86_64/libonnxruntime.so": ORT_X86,
            "jni/arm64-v8a/libonnxruntime4j_jni.so": shared_library(ARM64, ("libc.so",), (), ("OrtGetApiBase",)),
            "classes.jar": b"java",
        },
    )
    folder = tmp_path / "runtimes"
    added = add_library(aar, folder)
    assert [(lib.label, lib.libc) for lib in added] == [
        ("onnxruntime 1.29.0 arm64-v8a", "bionic"),
        ("onnxruntime 1.29.0 x86_64", "glibc"),
    ]
    assert list_libraries(folder) == added
    assert added[0].path.read_bytes() == ORT_ARM64
    assert add_library(aar, folder) == added
    assert choose_library(added, "onnxruntime", ("arm64-v8a", "armeabi-v7a")) == added[0]


COMPILER = shlex.split(os.environ.get("CC", "")) or ["cc"]


def compiled(source: str, output: Path, *options: str) -> bytes:
    code = output.with_suffix(".c")
    code.write_text(source)
    command = [*COMPILER, "-shared", "-fPIC", str(code), "-o", str(output), f"-Wl,-soname,{output.name}", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return output.read_bytes()


@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"needs a C compiler ({COMPILER[0]})")
@pytest.mark.parametrize("hashes", ["gnu", "sysv", "both"])
def test_the_jni_library_of_mavens_aar_is_not_taken_for_the_runtime(tmp_path: Path, hashes: str) -> None:
    style = f"-Wl,--hash-style={hashes}"
    runtime = compiled("int OrtGetApiBase(void) { return 1; }", tmp_path / "libonnxruntime.so", style)
    jni = compiled(
        "int OrtGetApiBase(void);\nint Java_ai_onnxruntime_OnnxRuntime_init(void) { return OrtGetApiBase(); }",
        tmp_path / "libonnxruntime4j_jni.so",
        style, f"-L{tmp_path}", "-lonnxruntime",
    )  # fmt: skip
    assert b"\0OrtGetApiBase\0" in jni
    aar = archive(
        tmp_path / "onnxruntime-android-1.29.0.aar",
        {
            "AndroidManifest.xml": b"<manifest/>",
            "classes.jar": b"java",
            "headers/onnxruntime_c_api.h": b"// C",
            "jni/x86_64/libonnxruntime.so": runtime,
            "jni/x86_64/libonnxruntime4j_jni.so": jni,
        },
    )
    (added,) = add_library(aar, tmp_path / "r")
    assert added.path.name == "libonnxruntime.so"
    assert added.path.read_bytes() == runtime
    assert list_libraries(tmp_path / "r") == [added]
    assert read_elf(jni).exports == {"Java_ai_onnxruntime_OnnxRuntime_init"}


def test_files_of_one_runtime_and_version_keep_an_entry_each(tmp_path: Path) -> None:
    aar = archive(tmp_path / "a-1.0.0.aar", {"jni/a/libonnxruntime.so": ORT_ARM64, "jni/a/libother.so": ORT_ARM64})
    added = add_library(aar, tmp_path / "r")
    assert [library.path.name for library in added] == ["libonnxruntime.so", "libother.so"]
    assert list_libraries(tmp_path / "r") == added
    assert add_library(aar, tmp_path / "r") == added


def test_a_jni_library_stored_as_a_runtime_is_named_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "libonnxruntime-1.29.0.so"
    file.write_bytes(ORT_ARM64)
    (library,) = add_library(file, tmp_path / "r")
    jni = shared_library(ARM64, ("libonnxruntime.so", "libc.so"), (), ("OrtGetApiBase",))
    entry = library.path.parent / "library.json"
    (library.path.parent / "libonnxruntime4j_jni.so").write_bytes(jni)
    document = json.loads(entry.read_text())
    document |= {"file": "libonnxruntime4j_jni.so", "sha256": hashlib.sha256(jni).hexdigest()}
    entry.write_text(json.dumps(document))
    with pytest.raises(CorruptFile, match="no onnxruntime library") as caught:
        list_libraries(tmp_path / "r")
    assert "runtime add" in caught.value.next_step
    assert add_library(file, tmp_path / "r") == [library]
    assert list_libraries(tmp_path / "r") == [library]


def test_libraries_for_other_processors_do_not_hide_the_rest(tmp_path: Path) -> None:
    riscv = shared_library(243, ("libc.so",), ("OrtGetApiBase",))
    aar = archive(tmp_path / "a-1.0.0.aar", {"jni/riscv64/liba.so": riscv, "jni/arm64-v8a/liba.so": ORT_ARM64})
    assert [library.abi for library in add_library(aar, tmp_path / "r")] == ["arm64-v8a"]
    with pytest.raises(InvalidInput, match="ELF machine 243"):
        add_library(archive(tmp_path / "b-1.0.0.aar", {"jni/riscv64/liba.so": riscv}), tmp_path / "r")


def test_a_plain_library_needs_its_version_in_name_or_flag(tmp_path: Path) -> None:
    file = tmp_path / "libtensorflowlite_jni.so"
    file.write_bytes(TFLITE)
    with pytest.raises(InvalidConfig) as caught:
        add_library(file, tmp_path / "r")
    assert "--version" in caught.value.next_step
    with pytest.raises(InvalidConfig, match="newest"):
        add_library(file, tmp_path / "r", version="newest")
    assert add_library(file, tmp_path / "r", version="2.17.0")[0].label == "tflite 2.17.0 arm64-v8a"


def test_a_wheels_library_is_found_and_litert_is_told_from_tflite(tmp_path: Path) -> None:
    wheel = archive(
        tmp_path / "ai_edge_litert-2.3.0-cp311-manylinux_2_27_aarch64.whl", {"ai_edge_litert/libLiteRt.so": LITERT}
    )
    with pytest.raises(InvalidConfig, match="holds no single version"):
        add_library(archive(tmp_path / "ai_edge_litert.whl", {"a/libLiteRt.so": LITERT}), tmp_path / "r")
    assert add_library(wheel, tmp_path / "r")[0].runtime == "litert"


def test_paths_in_an_archive_reach_nothing_outside(tmp_path: Path) -> None:
    evil = archive(
        tmp_path / "evil-1.0.0.aar",
        {
            "../../libonnxruntime.so": ORT_ARM64,
            "jni/../../../libonnxruntime.so": ORT_ARM64,
            "/tmp/libonnxruntime.so": ORT_ARM64,
            "jni/arm64-v8a/lib..\\..\\x.so": ORT_ARM64,
            "jni/arm64-v8a/libgood.so": ORT_ARM64,
        },
    )
    folder = tmp_path / "deep" / "runtimes"
    (library,) = add_library(evil, folder)
    assert library.path == folder / "onnxruntime-1.0.0-arm64-v8a" / "libgood.so"
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path != evil}
    assert written == {library.path, library.path.parent / "library.json"}


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc_mobile.device.libraries.MAX_LIBRARY_BYTES", 1000)
    bomb = tmp_path / "bomb-1.0.0.aar"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("jni/arm64-v8a/libonnxruntime.so", ORT_ARM64 + bytes(1_000_000))
    with pytest.raises(InvalidInput, match="larger than"):
        add_library(bomb, tmp_path / "r")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a-1.0.0.aar", b"no zip", CorruptFile),
        ("lib-1.0.0.so", b"\x7fELF but short", InvalidInput),
        ("lib-1.0.0.so", shared_library(ARM64, (), ()), InvalidInput),
        ("lib-1.0.0.so", shared_library(8, (), ("OrtGetApiBase",)), InvalidInput),
    ],
)
def test_what_is_no_runtime_is_refused(tmp_path: Path, name: str, content: bytes, kind: type[AmcMobileError]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind):
        add_library(tmp_path / name, tmp_path / "r")
    assert list_libraries(tmp_path / "r") == []


def test_a_missing_file_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        add_library(tmp_path / "none.aar", tmp_path / "r")
    assert "onnxruntime-android" in caught.value.next_step


def library(runtime: str, version: str, abi: str = "arm64-v8a", libc: str = "bionic") -> RuntimeLibrary:
    return RuntimeLibrary(runtime, version, abi, libc, Path("lib.so"), "0" * 64)


def test_the_newest_fitting_library_is_chosen() -> None:
    old, new = library("tflite", "2.9.0"), library("tflite", "2.17.0")
    desktop, litert = library("tflite", "3.0.0", libc="glibc"), library("litert", "2.3.0")
    short = library("tflite", "9.0.0", abi="armeabi-v7a")
    assert choose_library([old, new, desktop, short], "tflite", ("arm64-v8a", "armeabi-v7a")) == new
    assert choose_library([old, litert], "tflite", ("arm64-v8a",)) == old
    assert choose_library([litert], "tflite", ("arm64-v8a",)) == litert
    assert choose_library([short], "tflite", ("arm64-v8a", "armeabi-v7a")) == short
    program = library("benchmark_model", "3.0.0")
    assert choose_library([program, short], "tflite", ("arm64-v8a", "armeabi-v7a")) == short
    assert choose_library([program, old], "benchmark_model", ("arm64-v8a",)) == program
    assert choose_library([program, desktop], "tflite", ("arm64-v8a",)) == desktop
    assert choose_library([program], "tflite", ("arm64-v8a",)) == program
    with pytest.raises(InvalidInput, match=r"no onnxruntime library.*added so far: litert 2.3.0") as caught:
        choose_library([litert], "onnxruntime", ("arm64-v8a",))
    assert "runtime add" in caught.value.next_step


@pytest.mark.parametrize("damage", ["library", "document", "version"])
def test_a_damaged_store_is_told(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "libtflite-1.0.0.so"
    file.write_bytes(TFLITE)
    (added,) = add_library(file, tmp_path / "r")
    document = added.path.parent / "library.json"
    if damage == "library":
        added.path.write_bytes(b"other")
    elif damage == "document":
        document.write_text("{")
    else:
        document.write_text(document.read_text().replace('"1.0.0"', '"1.x"'))
    with pytest.raises(CorruptFile):
        list_libraries(tmp_path / "r")


def test_the_headers_of_a_real_library_are_read() -> None:
    facts = read_elf(Path(sys.executable).resolve().read_bytes())
    assert facts.libc in ("glibc", "none")
    assert read_elf(ORT_ARM64).needed == ("libdl.so", "libc.so")
    assert read_elf(shared_library(ARM, (), ())).abi == "armeabi-v7a"
