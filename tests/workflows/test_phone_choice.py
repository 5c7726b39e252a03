"""Steps after the profile measure on the phone, in the state and with the runtime that they are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench_device import Bench

from amc_mobile.workflows.workspace import Settings

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "uniform", "--episodes", "2", "--calibration-images", "64", "--reward-images", "32")
CHOICE = ("--serial", "B", "--waive", "HOT", "--waive", "BUSY", "--clock-mode", "fixed_performance")


@pytest.fixture
def asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of every device that was opened."""
    found: list[Settings] = []

    def device_of(settings: Settings, *_: object) -> Bench:
        found.append(settings)
        return bench

    for module in ("profile", "export"):
        monkeypatch.setattr(f"amc_mobile.workflows.{module}.device_of", device_of)
    return found


def test_export_and_the_table_commands_choose_the_phone_and_waive(amc: Amc, asked: list[Settings]) -> None:
    code, _, err = amc(*SEARCH, "--latency-ratio", "0.7", "--quiet")
    assert code == 0, err
    for words in (("export", "--onnx"), ("table", "verify"), ("table", "adopt", "--device", "host")):
        asked.clear()
        code, _, err = amc(*words, *CHOICE, "--quiet")
        assert code == 0 or "already measured under these conditions" in err, err
        (settings,) = asked
        assert (settings.serial, settings.waived, settings.clock_mode) == ("B", ("HOT", "BUSY"), "fixed_performance")
    code, _, err = amc("export", "--onnx", "--waive", "WARM", "--quiet")
    assert code == 2 and "unknown problem 'WARM'" in err


def test_an_export_without_its_phone_advises_what_export_can_do(amc: Amc, monkeypatch: pytest.MonkeyPatch) -> None:
    from amc_mobile.device.phone import select_phone
    from amc_mobile.device.profiles import load_profiles

    class NoPhones:
        def settled_phones(self) -> tuple[()]:
            return ()

    profiles = load_profiles()

    def device_of(*_: object) -> Bench:
        select_phone(profiles["pixel"], profiles, server=NoPhones())  # type: ignore[arg-type]
        raise AssertionError

    code, _, err = amc(*SEARCH, "--latency-ratio", "0.7", "--quiet")
    assert code == 0, err
    monkeypatch.setattr("amc_mobile.workflows.export.device_of", device_of)
    code, _, err = amc("export", "--onnx", "--quiet")
    assert code == 1 and "no phone is attached" in err
    assert "--device host" not in err and "pass --offline" in err
