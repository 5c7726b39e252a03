"""Comparisons without the device and under several budgets at once, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from in_process import CommandLine
from recorded_tables import record_two_phones

LABEL = "PREDICTED, NOT MEASURED: by the table of Google Pixel 8, without the device"
FURTHER = ("--also", "galaxy:3", "--macs-ratio", "0.9")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_phones")
    record_two_phones(folder)
    return folder


@pytest.fixture
def amc(recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(recorded, monkeypatch, capsys)


def comparing(amc: CommandLine, *flags: str) -> tuple[int, str, str]:
    return amc("compare", "--device", "pixel", "--offline", "--model", f"{amc.folder / 'net.py'}:build",
               "--data", "digits", "--input-size", "32", "--policies", "uniform,random", "--seeds", "0",
               "--episodes", "3", "--calibration-images", "16", "--reward-images", "8", "--quiet", *flags)  # fmt: skip


def compared(amc: CommandLine, *flags: str) -> dict[str, Any]:
    code, out, err = comparing(amc, *flags, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_a_comparison_without_the_phone_says_everywhere_that_nothing_was_measured(amc: CommandLine) -> None:
    code, text, err = comparing(amc, "--latency-ratio", "0.6")
    assert code == 0, err
    assert text.splitlines()[1] == LABEL
    folder = amc.folder / "amc-workspace"
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*-0.6-*/search.json")}
    assert len(finished) == 2 and all("-pixel-offline-latency-ratio-0.6-" in path.parent.name for path in finished)

    found = compared(amc, "--latency-ratio", "0.6")  # goes on where it was: with nothing left to do
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*-0.6-*/search.json")} == finished
    for run in found["runs"]:
        assert (run["note"], run["measured_ms"], run["offline"]) == (LABEL, None, True)
        search = json.loads((folder / "runs" / run["run"] / "search.json").read_text())
        assert search["offline"] and run["predicted_cost"] == search["predicted_cost"] <= search["budget"]["limit"]
    assert [(row["note"], row["measured_ms"]) for row in found["policies"]] == [(LABEL, None)] * 2

    page = (folder / "compare.html").read_text()
    assert page.count(LABEL) == 3  # over the pictures and beside each run
    assert "predicted p50, ms, not measured" in page and "measured speed-up, ms<" not in page
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert [(row["note"], row["measured_ms"]) for row in rows] == [(LABEL, "")] * 2


def test_a_comparison_holds_every_run_to_all_budgets(amc: CommandLine) -> None:
    found = compared(amc, "--latency-ms", "3", *FURTHER)
    for run in found["runs"]:
        rows = {row["asked"]: row for row in run["further_budgets"]}
        assert list(rows) == ["macs-ratio 0.9", "also galaxy:3"]
        assert all(row["predicted_cost"] <= row["limit"] for row in rows.values())
        assert rows["also galaxy:3"]["measured_ms"] is None
        assert rows["also galaxy:3"]["predicted_cost"] > 2 * run["predicted_cost"]
    lines = list(csv.DictReader((amc.folder / "amc-workspace/compare.csv").read_text().splitlines()))
    assert {line["also galaxy:3 verdict"] for line in lines} == {"predicted within, not measured"}
    assert {line["also galaxy:3 measured_ms"] for line in lines} == {""}
    assert [float(line["also galaxy:3 predicted_cost"]) for line in lines] == [
        run["further_budgets"][1]["predicted_cost"] for run in found["runs"]
    ]
    code, text, err = comparing(amc, "--latency-ms", "3", *FURTHER)
    assert code == 0, err
    (line,) = [line for line in text.splitlines() if " uniform  also galaxy:3" in line]
    assert "3 ms" in line and line.endswith("predicted within, not measured")
    page = (amc.folder / "amc-workspace/compare.html").read_text()
    assert "Further budgets" in page and page.count("predicted within, not measured") == 2


def test_other_further_budgets_are_other_runs(amc: CommandLine) -> None:
    budgets = [(), FURTHER, (*FURTHER[:1], "galaxy:2.5", *FURTHER[2:]), FURTHER[:2], ("--params-ratio", "0.9")]
    names = [
        run["run"]
        for further in budgets
        for run in compared(amc, "--latency-ms", "3", *further, "--policies", "uniform")["runs"]
    ]
    assert len(set(names)) == len(budgets)


def test_a_further_budget_that_no_plan_meets_is_the_run_s_error_and_the_front_goes_on(amc: CommandLine) -> None:
    found = compared(amc, "--latency-ratio", "0.6", "--budgets", "0.6,0.9", "--also", "galaxy:0.1")
    assert len(found["runs"]) == 4 and not found["policies"]
    assert all("0.1 ms (also galaxy:0.1)" in run["error"] for run in found["runs"])
    code, _, err = comparing(amc, "--macs-ratio", "0.9", "--also", "galaxy:3")
    assert code == 2 and "--also is a further latency budget" in err
