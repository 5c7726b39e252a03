"""The phone that adb sees, as it is. ANDROID_SERIAL chooses where there are several; no adb server is started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from command_line import CommandLine

from amc_mobile.device.adb import AdbPhone, AdbServer, choose_phone
from amc_mobile.device.libraries import RuntimeLibrary, choose_library, list_libraries
from amc_mobile.device.phone_state import PhoneFacts, read_facts
from amc_mobile.device.profiles import DeviceProfile, load_profiles, matching_profiles, profiles_folder, runtimes_folder
from amc_mobile.device.runner import runner_program
from amc_mobile.errors import DeviceError, InvalidInput

RUNTIMES = ("tflite", "onnxruntime")


@pytest.fixture(scope="session")
def adb() -> AdbPhone:
    server = AdbServer()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", server.port)):
            pytest.skip(f"no adb server at port {server.port}: plug a phone in, then `adb devices`")
    attached = server.settled_phones()
    serial = os.environ.get("ANDROID_SERIAL", "")
    if serial:
        return AdbPhone(server, choose_phone(attached, serial))
    ready = [phone for phone in attached if phone.is_ready]
    if not ready:
        pytest.skip(f"adb sees no phone that is ready: {', '.join(p.state for p in attached) or 'none at all'}")
    if len(ready) > 1:
        pytest.skip(f"several phones; choose one with ANDROID_SERIAL: {', '.join(phone.serial for phone in ready)}")
    return AdbPhone(server, ready[0])


@pytest.fixture(scope="session")
def facts(adb: AdbPhone) -> PhoneFacts:
    return read_facts(adb)


@pytest.fixture(scope="session")
def profile(facts: PhoneFacts) -> DeviceProfile:
    fitting = matching_profiles(load_profiles(profiles_folder()), facts.properties)
    if not fitting:
        pytest.skip(f"no device profile fits {facts.model}")
    return fitting[0]


@pytest.fixture(scope="session", params=RUNTIMES)
def library(request: pytest.FixtureRequest, facts: PhoneFacts) -> RuntimeLibrary:
    """Each runtime that the user has added for this phone."""
    try:
        return choose_library(list_libraries(runtimes_folder()), request.param, facts.abis)
    except InvalidInput as error:
        pytest.skip(f"{error}; {error.next_step}")


@pytest.fixture(scope="session")
def runtime(library: RuntimeLibrary) -> str:
    """The format of models that the library runs, as `--runtime` names it."""
    return "onnxruntime" if library.runtime == "onnxruntime" else "tflite"


@pytest.fixture(scope="session")
def runner(library: RuntimeLibrary) -> Path:
    try:
        return runner_program(library.abi)
    except DeviceError as error:
        pytest.skip(f"{error}; {error.next_step}")


@pytest.fixture(scope="session")
def model(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two convolutions."""
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()).eval()
    folder = tmp_path_factory.mktemp("model")
    if runtime == "tflite":
        pytest.importorskip("litert_torch")
        from amc_mobile.export.converters import to_tflite

        to_tflite(network, (1, 3, 24, 24), folder / "model.tflite")
        return folder / "model.tflite"
    from amc_mobile.export.converters import to_onnx

    to_onnx(network, (1, 3, 24, 24), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def amc(adb: AdbPhone, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)
