"""verify, adopt and plot through the command line, on a device whose speed the test sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bench_device import CONDITIONS, Bench

from amc_mobile.device.conditions import Conditions
from amc_mobile.latency.sharing import ANCHORS
from amc_mobile.latency.table import LatencyTable
from amc_mobile.report.charts import svg

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


Drawn = Callable[[], list[pd.DataFrame]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Of the chart that was drawn last, the rows of each panel."""
    charts: list[Any] = []

    def recorded(chart: Any) -> str:
        charts.append(chart)
        return svg(chart)

    monkeypatch.setattr("amc_mobile.workflows.table.svg", recorded)

    def panels() -> list[pd.DataFrame]:
        sets = charts[-1]["datasets"]
        return [
            pd.DataFrame([row for layer in panel["layer"][:2] for row in sets[layer["data"]["name"]]])
            for panel in charts[-1]["vconcat"]
        ]

    return panels


def test_plot_draws_every_measured_point_and_what_is_predicted(amc: Amc, drawn: Drawn) -> None:
    code, out, err = amc("table", "plot", "--kernel", "2", "--out", "kernel.svg", "--json", "--quiet")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["steps"]["tile_out"] == 16
    over_outputs, over_inputs = drawn()
    for panel in (over_outputs, over_inputs):
        assert len(panel.query("what != 'predicted'")) == facts["points"] == 20
    assert set(over_outputs.line) == {"8 in", "16 in", "24 in", "32 in"}
    for name, line in over_outputs.groupby("line"):
        measured = line.query("what != 'predicted'").set_index("channels").ms
        predicted = line.query("what == 'predicted'").set_index("channels").ms
        assert sorted(measured.index) == [16, 24, 32, 48, 64]
        assert predicted[measured.index].tolist() == pytest.approx(measured.tolist(), rel=0.02), name
        # The first width beyond a multiple of 16 pays for the next one.
        rises = predicted.diff()
        assert rises[rises > 0.02 * predicted.max()].index.tolist() == [17, 33, 49]
    text = Path("kernel.svg").read_text()
    assert "input channels" in text and "output channels" in text and "prefers-color-scheme:dark" in text


def test_plot_draws_the_points_of_a_probe_and_the_curve_goes_through_them(amc: Amc, drawn: Drawn) -> None:
    code, _, err = amc("table", "probe", "--quiet")
    assert code == 0, err
    code, out, err = amc("table", "plot", "--kernel", "2", "--out", "kernel.svg", "--json", "--quiet")
    assert code == 0, err
    facts = json.loads(out)
    measured = len({(kernel["label"]) for kernel in shown_kernels(amc) if " 3x3/2 " in kernel["label"]})
    assert facts["points"] == measured > 20 and facts["largest_error"] < 0.02
    over_outputs, over_inputs = drawn()
    for panel in (over_outputs, over_inputs):
        assert len(panel.query("what != 'predicted'")) == measured
    probed = over_outputs.query("what == 'by a probe or a search' and line != ''").set_index(["line", "channels"]).ms
    predicted = over_outputs.query("what == 'predicted'").set_index(["line", "channels"]).ms
    assert len(probed) and predicted[probed.index].tolist() == pytest.approx(probed.tolist(), rel=0.02)


def shown_kernels(amc: Amc) -> list[dict[str, Any]]:
    code, out, err = amc("table", "show", "--json")
    assert code == 0, err
    return [kernel for entry in json.loads(out)["conditions"] for kernel in entry["kernels"]]


def test_plot_names_the_kernels_there_are(amc: Amc) -> None:
    code, _, err = amc("table", "plot", "--kernel", "nose", "--quiet")
    assert code == 1
    assert "they are 0, 2" in err
