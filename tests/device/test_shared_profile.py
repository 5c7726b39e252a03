"""`profile` with two serials: two fake phones behind one adb server, whose latencies the stand-in runner makes up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benches import NETWORK, fake_runner
from command_line import CommandLine
from host_runner import locate_library
from phone_fake.phone import FakePhone

from amc_mobile.device.conditions import unit_of
from amc_mobile.device.libraries import add_library
from amc_mobile.latency.table import LatencyTable

WORDS = ("profile", "--device", "pixel", "--model", "net.py:build", "--input-size", "32", "--data", "digits",
         "--runtime", "onnxruntime", "--quiet")  # fmt: skip


@pytest.fixture
def phones(new_phone: Callable[..., FakePhone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FakePhone]:
    """Two of a kind; the second takes 1.25 times as long."""
    made = [new_phone(), new_phone()]
    library = locate_library("onnxruntime")
    (added,) = add_library(library.path, tmp_path / "home/runtimes", version=library.version)
    made[1].sandbox.edit("getprop.txt", "[ro.serialno]: [FAKE0001]", "[ro.serialno]: [FAKE0002]")
    for phone, slowness in zip(made, ("1.0", "1.25"), strict=True):
        phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
        phone.sandbox.edit("getprop.txt", "[arm64-v8a]", f"[{added.abi}]")
        phone.sandbox.write("slowness", slowness)
    monkeypatch.setenv("AMC_MOBILE_RUNNER", str(fake_runner(tmp_path)))
    return made


def test_two_phones_share_a_profile(phones: list[FakePhone], tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "net.py").write_text(NETWORK)
    amc = CommandLine(here)
    first, second = (phone.serial for phone in phones)
    document = amc.document(*WORDS, "--serial", first, "--serial", second)
    assert [phone["serial"] for phone in document["phones"]] == [first, second]
    assert [phone["ratio"] for phone in document["phones"]] == pytest.approx([1.0, 0.8])
    assert [phone["problem"] for phone in document["phones"]] == ["", ""]
    measured = [phone["kernels"] for phone in document["phones"]]
    assert sum(measured) == document["kernels"]
    # Both measured the eight anchors. How the rest falls to two phones that take no time is chance; with phones that
    # take some, tests/latency/test_sharing.py splits it.
    assert min(measured) >= 8
    with LatencyTable(here / "amc-workspace/table.sqlite") as table:
        own, unit = sorted(table.conditions(), key=lambda found: found.unit != unit_of("FAKE0001"))
        assert own.to_document() == document["conditions"]
        assert unit == replace(own, unit=unit_of("FAKE0002"))
        kernels, raw = table.kernels(own), table.kernels(unit)
        assert len(kernels) == document["kernels"]
        for key in raw:
            assert kernels[key].low_ms == pytest.approx(0.8 * raw[key].low_ms)
        assert all(len(kernel.passes) == 3 for kernel in kernels.values())
    # The next steps are the first phone's.
    assert json.loads((here / "amc-workspace/workspace.json").read_text())["settings"]["serial"] == first

    # The ratio goes where the table is taken: nothing is left to compare or to measure there.
    assert amc.document("table", "export", "table.jsonl")["adoptions"] == 1
    (here / "amc-workspace/table.sqlite").unlink()
    amc.document("table", "import", "table.jsonl")
    again = amc.document(*WORDS, "--serial", first, "--serial", second)
    assert [(phone["ratio"], phone["kernels"]) for phone in again["phones"]] == [(1.0, 0), (pytest.approx(0.8), 0)]

    phones[1].sandbox.edit("getprop.txt", "[ro.build.fingerprint]: [", "[ro.build.fingerprint]: [other/")
    refused = amc(*WORDS, "--serial", first, "--serial", second)
    assert refused.returncode == 1
    assert "the phones cannot share the work: os Android 14" in refused.stderr
    assert f"on {second}" in refused.stderr
    twice = amc(*WORDS, "--serial", first, "--serial", first)
    assert twice.returncode == 2
    assert "names a phone twice" in twice.stderr


def test_a_second_phone_of_one_model_is_not_told_the_first_ones_latencies(
    phones: list[FakePhone], tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    amc = CommandLine(tmp_path)
    first, second = (amc.document(*WORDS, "--serial", phone.serial) for phone in phones)
    assert second["original_p50_ms"] == pytest.approx(1.25 * first["original_p50_ms"])
    assert second["conditions"] == first["conditions"] | {"unit": unit_of("FAKE0002")}
    (compared,) = second["other_units"]
    assert compared["unit"] == first["conditions"]["unit"] == unit_of("FAKE0001")
    assert compared["ratio"] == pytest.approx(1.25)
    assert 0 < compared["kernels"] <= second["kernels"] - 8
    for phone, profiled in zip(phones, (first, second), strict=True):
        again = amc.document(*WORDS, "--serial", phone.serial)
        assert (again["original_p50_ms"], again["other_units"]) == (profiled["original_p50_ms"], [])
