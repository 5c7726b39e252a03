"""The probe through the command line, and what a search makes of it, on a device with known steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_device import Bench

from amc_mobile.latency.probe import probe_widths

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "random", "--episodes", "3", "--calibration-images", "64", "--reward-images", "32",
          "--latency-ratio", "0.8", "--json", "--quiet")  # fmt: skip


def slower_outside_16(in_channels: int, out_channels: int) -> float:
    return (0.05 + in_channels * out_channels * 1e-3) * (1.4 if out_channels % 16 else 1.0)


def answer(amc: Amc, *words: str) -> dict[str, Any]:
    code, out, err = amc(*words)
    assert code == 0, err
    return dict(json.loads(out))


def found_steps(document: dict[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(row["name"], row["axis"]): (row["tile"], row["aligned"]) for row in document["steps"]}


def test_the_probe_finds_tiles_shows_them_and_goes_on_where_it_was(amc: Amc, bench: Bench) -> None:
    shown = answer(amc, "table", "show", "--json")
    assert shown["conditions"][0]["steps"] == []
    document = answer(amc, "table", "probe", "--json", "--quiet")
    assert found_steps(document) == {
        ("conv 3x3", "out"): (16, 1), ("conv 3x3/2", "in"): (1, 1), ("conv 3x3/2", "out"): (16, 1),
        **{key: (1, 1) for key in found_steps(document) if not key[0].startswith("conv")},
    }  # fmt: skip
    assert document["kernels"] >= len(probe_widths(64)) + 2 * len(probe_widths(32))
    assert document["multiple"] == 8
    assert 0 < document["new_kernels"] < document["kernels"]  # the profile had some of them
    assert document["wall_s"] > 0 and document["cpu_s"] > 0
    shown = answer(amc, "table", "show", "--json")
    assert shown["conditions"][0]["steps"] == document["steps"]
    assert "multiples of 16" in amc("table", "show")[1]
    bench.cost = lambda *_: 1 / 0  # everything is known: nothing is measured again
    code, out, err = amc("table", "probe", "--quiet")
    assert code == 0, err
    assert "filled up to" in out
    assert f"{document['kernels']} kernels around multiples of 4 to 64 channels, 0 of them measured now, in " in out
    assert "kept channels are multiples of 8: the probe found no kernel that is slower" in out


def test_a_search_keeps_multiples_that_run_no_slower_code(amc: Amc, bench: Bench) -> None:
    before = answer(amc, *SEARCH, "--run", "before")
    assert (before["multiple"]["used"], before["multiple"]["why"].split(";")[0]) == (8, "the default")
    bench.cost = slower_outside_16
    Path("amc-workspace/table.sqlite").unlink()
    assert amc("profile", "--quiet")[0] == 0
    document = answer(amc, "table", "probe", "--json", "--quiet")
    assert found_steps(document)["conv 3x3/2", "out"] == (1, 16)
    assert document["multiple"] == 16
    probed = answer(amc, *SEARCH, "--run", "probed")
    assert probed["multiple"]["used"] == 16
    assert "conv 3x3/2 (out) is" in probed["multiple"]["why"]
    assert "slower outside multiples of 16" in probed["multiple"]["why"]
    plan = probed["plan"]
    wide = [kept for name, kept in plan["kept_channels"].items() if plan["channels"][name] == 64]
    assert len(wide) == 1
    assert wide[0] % 16 == 0
    settings = json.loads(Path("amc-workspace/runs/probed/settings.json").read_text())
    assert settings["search"]["multiple"] == 16
    asked = answer(amc, *SEARCH, "--run", "asked", "--multiple", "8")
    assert asked["multiple"] == {"used": 8, "why": "--multiple", "groups": {}}
    # What began before the probe goes on as it began.
    assert answer(amc, *SEARCH, "--run", "before")["multiple"] == before["multiple"]
    shown = amc(*(word for word in SEARCH if word != "--json"), "--run", "probed")[1]
    assert f"kept channels are multiples of 16 or all: {probed['multiple']['why']}" in shown


def test_networks_too_narrow_for_the_multiple_keep_to_8(amc: Amc, bench: Bench) -> None:
    bench.cost = lambda i, o: (0.05 + i * o * 1e-3) * (1.6 if o % 32 else 1.0)
    Path("net.py").write_text(Path("net.py").read_text().replace("64", "40"))
    Path("amc-workspace/table.sqlite").unlink()
    document = answer(amc, "table", "probe", "--model", "net.py:build", "--input-size", "32", "--json", "--quiet")
    assert found_steps(document)["conv 3x3/2", "out"] == (1, 32)
    assert document["multiple"] == 8
    assert "no group is wide enough for multiples of 32, though conv 3x3" in document["multiple_why"]


def test_a_network_without_channels_to_vary_is_refused(amc: Amc) -> None:
    Path("net.py").write_text(Path("net.py").read_text().replace("64", "8").replace("32", "8"))
    code, out, err = amc("table", "probe", "--model", "net.py:build", "--input-size", "32", "--quiet")
    assert (code, out) == (1, "")
    assert "no kernel of this network has channels enough to be probed" in err


def test_a_finer_multiple_warns_until_such_widths_were_measured(amc: Amc, caplog: pytest.LogCaptureFixture) -> None:
    search = ("search", "--latency-ratio", "0.8", "--policy", "uniform", "--episodes", "1", "--multiple", "1",
              "--calibration-images", "16", "--reward-images", "8")  # fmt: skip
    code, out, err = amc(*search)
    assert code == 0, err
    assert "`amc-mobile table probe` first" in caplog.text and "were never measured" in out
    caplog.clear()
    assert amc("table", "probe", "--quiet")[0] == 0
    code, out, err = amc(*search, "--run", "probed")
    assert code == 0, err
    assert "table probe" not in caplog.text and "never measured" not in out
