"""verify, adopt and plot through the command line, on a device whose speed the test sets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench_device import CONDITIONS, Bench

from amc_mobile.device.conditions import Conditions
from amc_mobile.latency.sharing import ANCHORS
from amc_mobile.latency.table import LatencyTable

Amc = Callable[..., tuple[int, str, str]]


def kernels(conditions: Conditions) -> dict[str, float]:
    with LatencyTable(Path("amc-workspace/table.sqlite")) as table:
        return {key: kernel.low_ms for key, kernel in table.kernels(conditions).items()}


def test_verify_agrees_with_a_device_that_stayed_the_same_and_stores_nothing(amc: Amc, bench: Bench) -> None:
    before = kernels(CONDITIONS)
    bench.slowdown = lambda label: 1.04
    code, out, err = amc("table", "verify", "--json", "--quiet")
    assert code == 0, err
    verdict = json.loads(out)
    assert verdict["action"] == "accept"
    assert list(verdict["ratios"].values()) == pytest.approx([1.04] * ANCHORS)
    assert len({label.split()[0] for label in verdict["ratios"]}) > 1  # not all of one type
    assert kernels(CONDITIONS) == before


def test_verify_ends_with_exit_1_where_the_device_no_longer_agrees(amc: Amc, bench: Bench) -> None:
    bench.slowdown = lambda label: 1.2
    code, out, err = amc("table", "verify", "--quiet")
    assert (code, out) == (1, "")
    assert "no longer fits this device" in err
    assert "median 1.200" in err


def test_a_search_under_other_conditions_tells_how_they_differ(amc: Amc, bench: Bench) -> None:
    bench.now = replace(CONDITIONS, cores="2-3")
    code, out, err = amc("search", "--latency-ratio", "0.7", "--quiet")
    assert (code, out) == (1, "")
    assert (
        "no latency for 1 kernel: any kernel under onnxruntime, 1 thread(s) (measured when cores was 0, is 2-3)" in err
    )
    assert "next: run `amc-mobile profile`" in err


@pytest.mark.parametrize(("change", "shown"), [
    ({"runtime_version": "1.1", "library_sha256": "cd"}, "runtime_version: 1.0 -> 1.1"), ({"os": "One 2"}, "os: One 1"),
])  # fmt: skip
@pytest.mark.parametrize(("slowdown", "ratio"), [(1.03, 1.0), (1.3, 1.3), (0.8, 0.8)])
def test_adopt_takes_over_or_rescales(
    change: dict[str, str], shown: str, slowdown: float, ratio: float, amc: Amc, bench: Bench
) -> None:
    before = kernels(CONDITIONS)
    bench.now, bench.slowdown = replace(CONDITIONS, **change), lambda label: slowdown  # type: ignore[arg-type]
    code, out, err = amc("table", "adopt", "--quiet")
    assert code == 0, err
    assert f"adopted {len(before)} kernels times {ratio:.3f}" in out
    assert shown in out
    assert kernels(bench.now) == pytest.approx({key: ms * ratio for key, ms in before.items()})
    assert kernels(CONDITIONS) == before
    code, _, err = amc("table", "adopt", "--quiet")
    assert code == 1
    assert "already measured" in err
    code, out, err = amc("profile", "--json", "--quiet")  # only whole models are left to measure
    assert code == 0, err
    assert json.loads(out)["conditions"] == bench.now.to_document()
    assert kernels(bench.now) == pytest.approx({key: ms * ratio for key, ms in before.items()})


def test_adopt_gives_up_where_kernels_changed_differently(amc: Amc, bench: Bench) -> None:
    bench.now = replace(CONDITIONS, runtime_version="1.1")
    bench.slowdown = lambda label: 1.5 if "3x3/2" in label else 1.0
    code, out, err = amc("table", "adopt", "--json", "--quiet")
    assert code == 0, err
    verdict = json.loads(out)
    assert (verdict["action"], verdict["adopted"]) == ("rebuild", 0)
    assert kernels(bench.now) == {}
    assert "run `amc-mobile profile`" in amc("table", "adopt", "--quiet")[1]


def test_adopt_refuses_another_processor(amc: Amc, bench: Bench) -> None:
    bench.now = replace(CONDITIONS, soc="Abacus 10")
    code, _, err = amc("table", "adopt", "--quiet")
    assert code == 1
    assert "holds nothing of bench (Abacus 10)" in err


def test_plot_draws_every_measured_point_and_what_is_predicted(amc: Amc) -> None:
    code, out, err = amc("table", "plot", "--kernel", "2", "--out", "kernel.svg", "--json", "--quiet")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["steps"]["tile_out"] == 16
    (over_outputs, over_inputs), names = drawn("kernel.svg")
    for panel in (over_outputs, over_inputs):
        assert sum(map(len, panel["measured"])) == facts["points"] == 20
    assert len(over_outputs["fit"]) == len(over_outputs["measured"]) == 4
    assert {"16 in", "32 in", "64 out", "input channels", "output channels", "predicted"} <= set(names)
    across = [x for x, _ in over_outputs["measured"][0]]
    per_channel = (across[-1] - across[0]) / 48
    assert [16 + (x - across[0]) / per_channel for x in across] == pytest.approx([16, 24, 32, 48, 64], abs=0.02)
    for line, measured in zip(over_outputs["fit"], over_outputs["measured"], strict=True):
        for x, y in measured:
            assert min(abs(y - fit) for at, fit in line if abs(at - x) < 0.1) < 1.0
        rises = [b[0] for a, b in pairwise(line) if a[1] - b[1] > 0.5]
        # The first width beyond a multiple of 16 pays for the next one.
        assert [round(16 + (x - across[0]) / per_channel) for x in rises] == [17, 33, 49]


def test_plot_draws_the_points_of_a_probe_and_the_curve_goes_through_them(amc: Amc) -> None:
    code, _, err = amc("table", "probe", "--quiet")
    assert code == 0, err
    code, out, err = amc("table", "plot", "--kernel", "2", "--out", "kernel.svg", "--json", "--quiet")
    assert code == 0, err
    facts = json.loads(out)
    measured = len({(kernel["label"]) for kernel in shown_kernels(amc) if " 3x3/2 " in kernel["label"]})
    assert facts["points"] == measured > 20 and facts["largest_error"] < 0.02
    (over_outputs, over_inputs), _ = drawn("kernel.svg")
    for panel in (over_outputs, over_inputs):
        assert sum(map(len, panel["measured"])) + sum(map(len, panel["more"])) == measured
    for x, y in over_outputs["more"][0]:  # next to the line of 32 inputs, which the probe follows
        assert min(abs(y - fit) for line in over_outputs["fit"] for at, fit in line if abs(at - x) < 0.1) < 1.0
    assert "prefers-color-scheme:dark" in Path("kernel.svg").read_text()


def shown_kernels(amc: Amc) -> list[dict[str, Any]]:
    code, out, err = amc("table", "show", "--json")
    assert code == 0, err
    return [kernel for entry in json.loads(out)["conditions"] for kernel in entry["kernels"]]


def drawn(path: str) -> tuple[list[dict[str, list[list[tuple[float, float]]]]], list[str]]:
    """By panel: the points of each path, by its class; and every text."""
    root = ElementTree.parse(path).getroot()
    panels = []
    for group in (one for one in root if one.tag.endswith("}g")):
        found: dict[str, list[list[tuple[float, float]]]] = {"measured": [], "more": [], "fit": []}
        for one in group.iter():
            if one.tag.endswith("path") and (kind := str(one.get("class")).split()[-1]) in found:
                found[kind].append(pixels(one.get("d") or ""))
        panels.append(found)
    return panels, [str(one.text) for one in root.iter() if one.tag.endswith("text")]


def test_plot_names_the_kernels_there_are(amc: Amc) -> None:
    code, _, err = amc("table", "plot", "--kernel", "nose", "--quiet")
    assert code == 1
    assert "they are 0, 2" in err


def pixels(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
