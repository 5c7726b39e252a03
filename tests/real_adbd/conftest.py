"""A phone with the real adbd, and a private adb server that it is attached to."""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import adbd_sandbox
import arm64_sandbox
import pytest
from adbd_sandbox import RealAdbd
from command_line import CommandLine
from phone_fake.phone import PrivateAdbServer

from amc_mobile.device.adb import AdbPhone, AdbServer, choose_phone


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateAdbServer]:
    server = PrivateAdbServer(tmp_path_factory.mktemp("adb_home"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_phone(tmp_path_factory: pytest.TempPathFactory, adb_server: PrivateAdbServer) -> Iterator[RealAdbd]:
    if adbd_sandbox.missing():
        pytest.skip(adbd_sandbox.missing())
    phone = RealAdbd(tmp_path_factory.mktemp("real") / "phone")
    yield phone
    adb_server.detach(phone)
    phone.stop()


@pytest.fixture
def phone(shared_phone: RealAdbd, adb_server: PrivateAdbServer, monkeypatch: pytest.MonkeyPatch) -> RealAdbd:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb_server.port))
    said = adb_server.attach(shared_phone)
    assert "connected" in said, said
    return shared_phone


@pytest.fixture
def adb(phone: RealAdbd) -> AdbPhone:
    server = AdbServer()
    return AdbPhone(server, choose_phone(server.settled_phones(), phone.serial))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder to which `runtime add` gave the arm64 libraries, and the runner for phones in it."""
    folder = tmp_path_factory.mktemp("home")
    amc = CommandLine(folder, AMC_MOBILE_HOME=str(folder))
    for library in arm64_sandbox.LIBRARIES.glob("libonnxruntime.so.*"):
        (added,) = amc.document("runtime", "add", str(official_aar(library, folder)))["runtimes"]
        assert added["runtime"] == "onnxruntime"
    for library in arm64_sandbox.LIBRARIES.glob(
        "libLiteRt.so"
    ):  # its name tells no version: the pinned one was fetched
        amc.document("runtime", "add", str(library), "--version", importlib.metadata.version("ai-edge-litert"))
    arm64_sandbox.build(output=folder / "amc-bench")
    return folder


def official_aar(library: Path, folder: Path) -> Path:
    """ONNX Runtime as Maven has it: the JNI library stands by the runtime, whose symbol it imports."""
    (folder / "jni.c").write_text(
        "void *OrtGetApiBase(void);\nvoid *Java_ai_onnxruntime_OnnxRuntime_init(void) { return OrtGetApiBase(); }\n"
    )
    jni = folder / "libonnxruntime4j_jni.so"
    arm64_sandbox.zig("-shared", "-fPIC", str(folder / "jni.c"), str(library), "-o", str(jni))
    assert b"\0OrtGetApiBase\0" in jni.read_bytes()
    aar = folder / f"onnxruntime-android-{library.name.removeprefix('libonnxruntime.so.')}.aar"
    with zipfile.ZipFile(aar, "w") as archive:
        archive.writestr("AndroidManifest.xml", "<manifest/>")
        archive.writestr("classes.jar", b"")
        archive.writestr("headers/onnxruntime_c_api.h", "")
        archive.write(library, "jni/arm64-v8a/libonnxruntime.so")
        archive.write(jni, "jni/arm64-v8a/libonnxruntime4j_jni.so")
    return aar


@pytest.fixture
def amc(phone: RealAdbd, home: Path, tmp_path: Path) -> CommandLine:
    """The command of a user who has this phone on the cable."""
    return CommandLine(tmp_path, AMC_MOBILE_HOME=str(home), AMC_MOBILE_RUNNER=str(home / "amc-bench"))
