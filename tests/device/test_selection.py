"""Which phone `--device` means, through the real adb server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import wait_for
from elf_files import ARM64, shared_library
from phone_fake.phone import FakePhone, PrivateAdbServer

from amc_mobile.device.libraries import add_library
from amc_mobile.device.phone import PhoneDevice, select_phone
from amc_mobile.device.phone_state import read_facts
from amc_mobile.device.profiles import load_profiles
from amc_mobile.errors import AmbiguousDevice, DeviceUnauthorized, DeviceUnavailable, PhoneOutputInvalid
from amc_mobile.workflows.devices import device_of
from amc_mobile.workflows.workspace import Settings

PROFILES = load_profiles()


def test_the_only_phone_that_fits_is_taken_and_known(new_phone: Callable[..., FakePhone]) -> None:
    pixel, galaxy = new_phone(), new_phone()
    galaxy.sandbox.edit("getprop.txt", "[Google]", "[samsung]")
    adb = select_phone(PROFILES["pixel"], PROFILES)
    assert adb.serial == pixel.serial
    assert select_phone(PROFILES["galaxy"], PROFILES).serial == galaxy.serial
    facts = read_facts(adb)
    assert (facts.model, facts.soc, facts.android, facts.sdk, facts.abis) == (
        "Pixel 8",
        "zuma",
        "14",
        34,
        ("arm64-v8a",),
    )
    assert facts.clusters == "0-3 at 1700 MHz, 4-7 at 2360 MHz, 8 at 2900 MHz"
    assert facts.state.celsius == 27.5
    assert facts.free_bytes == pixel.sandbox.free_bytes


def test_several_phones_ask_for_a_serial(new_phone: Callable[..., FakePhone]) -> None:
    first, second = new_phone(), new_phone()
    with pytest.raises(AmbiguousDevice) as caught:
        select_phone(PROFILES["pixel"], PROFILES)
    assert first.serial in caught.value.message
    assert second.serial in caught.value.message
    assert "--serial" in caught.value.next_step
    assert select_phone(PROFILES["pixel"], PROFILES, serial=second.serial).serial == second.serial


def test_no_phone_offers_the_host(adb_server: PrivateAdbServer) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        select_phone(PROFILES["pixel"], PROFILES)
    assert "--device host" in caught.value.next_step
    assert "USB debugging" in caught.value.next_step


def test_another_kind_of_phone_is_named_with_its_profile(phone: FakePhone) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        select_phone(PROFILES["galaxy"], PROFILES)
    assert "Pixel 8, which is pixel_8" in caught.value.message
    assert "--device pixel_8" in caught.value.next_step
    with pytest.raises(DeviceUnavailable, match="which is pixel_8"):
        select_phone(PROFILES["galaxy"], PROFILES, serial=phone.serial)


def test_an_unauthorized_phone_does_not_hide_another(
    new_phone: Callable[..., FakePhone], adb_server: PrivateAdbServer
) -> None:
    locked = new_phone(attach=False)
    locked.become("unauthorized")
    adb_server.attach(locked)
    wait_for(lambda: adb_server.state_of(locked) == "unauthorized")
    with pytest.raises(DeviceUnauthorized, match=locked.serial):
        select_phone(PROFILES["pixel"], PROFILES)
    ready = new_phone()
    assert select_phone(PROFILES["pixel"], PROFILES).serial == ready.serial
    with pytest.raises(DeviceUnavailable) as caught:
        select_phone(PROFILES["galaxy"], PROFILES)
    assert f"{locked.serial}: unauthorized" in caught.value.message
    assert "accept the dialog" in caught.value.next_step


@pytest.mark.parametrize("serial", ["a b", "'", "x;touch INJECTED", "$(touch INJECTED)", "host:kill"])
def test_a_hostile_serial_is_only_unknown(phone: FakePhone, serial: str) -> None:
    with pytest.raises(DeviceUnavailable, match="no phone with serial"):
        select_phone(PROFILES["pixel"], PROFILES, serial=serial)
    assert not [name for _, _, names in os.walk(phone.sandbox.folder) for name in names if name == "INJECTED"]


def test_a_phone_that_answers_nonsense_is_an_error_of_ours(phone: FakePhone) -> None:
    adb = select_phone(PROFILES["pixel"], PROFILES)
    (phone.sandbox.state / "dumpsys_battery.txt").write_bytes(b"\xff\x00 level: lots\n")
    with pytest.raises(PhoneOutputInvalid, match="battery"):
        read_facts(adb)


def test_pixel_on_a_pixel_8_keeps_off_its_big_core(phone: FakePhone, tmp_path: Path, user_home: Path) -> None:
    library = tmp_path / "libonnxruntime-1.29.0.so"
    library.write_bytes(shared_library(ARM64, ("libc.so",), ("OrtGetApiBase",)))
    add_library(library, user_home / "runtimes")
    (user_home / "amc-bench").write_bytes(b"a runner")
    stages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_MOBILE_RUNNER", str(user_home / "amc-bench"))
        device = device_of(Settings(device="pixel"), "onnxruntime", lambda stage, *_: stages.append(stage))
    assert isinstance(device, PhoneDevice)
    assert device.cores == (4, 5, 6, 7)
    assert any("device profile pixel_8" in stage for stage in stages)
