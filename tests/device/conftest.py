"""A private adb server per module, a fake phone per test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.adb import AdbPhone, AdbServer, choose_phone


@pytest.fixture(autouse=True)
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What belongs to the fake phones never reaches the folder of the user who runs the tests."""
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def shared_adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateAdbServer]:
    server = PrivateAdbServer(tmp_path_factory.mktemp("adb_home"))
    yield server
    server.stop()


@pytest.fixture
def adb_server(shared_adb_server: PrivateAdbServer, monkeypatch: pytest.MonkeyPatch) -> PrivateAdbServer:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(shared_adb_server.port))
    return shared_adb_server


@pytest.fixture
def new_phone(adb_server: PrivateAdbServer, tmp_path: Path) -> Iterator[Callable[..., FakePhone]]:
    """new_phone(kind, attach=True) makes a phone; all of them go away with the test."""
    made: list[FakePhone] = []

    def make(kind: str = "pixel_8", *, attach: bool = True) -> FakePhone:
        phone = FakePhone(tmp_path / f"phone{len(made)}", kind)
        made.append(phone)
        if attach:
            said = adb_server.attach(phone)
            assert "connected" in said, said
        return phone

    yield make
    for phone in made:
        phone.stop()
        adb_server.detach(phone)


@pytest.fixture
def phone(new_phone: Callable[..., FakePhone]) -> FakePhone:
    return new_phone()


@pytest.fixture
def adb(phone: FakePhone) -> AdbPhone:
    server = AdbServer()
    return AdbPhone(server, choose_phone(server.phones(), phone.serial))
