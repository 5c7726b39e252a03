"""The comparison's page: what its charts show, and where each number leads."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from compared_runs import GROUPS, compared_run

from amc_mobile.report.charts import front, non_dominated
from amc_mobile.report.pages import render_series_page, write_series_page
from amc_mobile.workflows.compare import Comparison, FailedRun, comparison_page

POLICIES = ("uniform", "random", "ddpg", "critic")


def comparison(*budgets: float, measured: bool = True, finetuned: bool = True) -> Comparison:
    runs = [
        compared_run(policy, seed, budget, measured=measured, finetuned=finetuned)
        for budget in budgets
        for policy in POLICIES
        for seed in (0, 1)
    ]
    failed = FailedRun("compare-failed", "latency-ratio 0.3", "random", 2, "ms", "no plan <fits>")
    return Comparison((*runs, failed), "net, 100 episodes")


def chart(found: Comparison, key: str) -> Any:
    return next(picture.chart for picture in comparison_page(found).pictures if picture.key == key)


def rows(chart: Any, *columns: str) -> list[dict[str, Any]]:
    """Of the data set that has these columns."""
    return next(rows for rows in chart["datasets"].values() if rows and set(columns) <= set(rows[0]))


def test_every_run_is_linked_and_a_failed_one_says_why() -> None:
    found = comparison(0.5)
    page = re.sub(r"<script.*?</script>", "", render_series_page(comparison_page(found)), flags=re.DOTALL)
    for run in found.runs:
        assert f'<a href="runs/{run.run}/search.json">{run.run}</a>' in page
    assert "no plan &lt;fits&gt;" in page
    assert "on 500 test images" in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page).replace("http-equiv", "")


def test_accuracies_have_intervals_that_the_axes_hold() -> None:
    found = comparison(0.3, 0.7)
    for mean in rows(chart(found, "compare-front"), "policy", "low"):
        assert mean["low"] < mean["top1"] < mean["high"] and mean["high"] - mean["low"] > 2  # of 500 images
    counted = comparison_page(replace(found, runs=tuple(
        replace(run, metric="mAP@0.5") if hasattr(run, "metric") else run for run in found.runs
    )))  # fmt: skip
    front = next(picture.chart for picture in counted.pictures if picture.key == "compare-front")
    assert all(mean["low"] == mean["top1"] for mean in rows(front, "policy", "low"))


def test_files_are_the_page_and_one_svg_per_picture(tmp_path: Path) -> None:
    paths = write_series_page(comparison_page(comparison(0.3, 0.7)), tmp_path / "compare.html")
    assert {path.name for path in paths} == {
        "compare.html", "compare-front.svg",
        *(f"compare-{kind}-latency-ratio-{b}.svg" for kind in ("accuracy", "keep-ratios") for b in ("0.3", "0.7")),
    }  # fmt: skip
    for path in paths[1:]:
        assert ElementTree.parse(path).getroot().get("role") == "img"
        assert "prefers-color-scheme" in path.read_text()


def test_keep_ratios_are_means_over_seeds_with_their_range_on_every_group() -> None:
    ratios = chart(comparison(0.5), "compare-keep-ratios-latency-ratio-0.5")
    uniform = [row for row in rows(ratios, "mean", "low", "high") if row["series"] == "uniform"]
    assert [row["group"] for row in uniform] == list(GROUPS)
    assert [row["mean"] for row in uniform] == pytest.approx([0.55 + 0.02 * i for i in range(8)])
    assert [row["high"] - row["low"] for row in uniform] == pytest.approx([0.1] * 8)
    assert [row["sign"] for row in rows(ratios, "sign")] == ["+", "dw", "dw", "dw"]


def test_bars_show_mean_and_spread_of_each_stage_and_the_original() -> None:
    bars = chart(comparison(0.5), "compare-accuracy-latency-ratio-0.5")
    shown = [row["shown"] for row in rows(bars, "shown")]
    assert shown[:3] == ["70.2 [70.0-70.5]", "80.2 [80.0-80.5]", "83.2 [83.0-83.5]"]
    assert rows(bars, "value", "name") == [{"value": 92.0, "name": "original 92.0"}]
    assert "500 test images, %; the axis starts at 60" in json.dumps(bars)


def test_a_stage_that_no_run_had_is_not_in_the_bars() -> None:
    bars = chart(comparison(0.5, finetuned=False), "compare-accuracy-latency-ratio-0.5")
    assert {row["stage"] for row in rows(bars, "shown")} == {"one-shot", "refitted"}


@pytest.mark.parametrize(
    ("measured", "unit"), [(True, "original's p50 / measured speed-up, ms"), (False, "MACs of one image, millions")]
)
def test_the_front_is_over_measured_latency_where_every_run_has_one(measured: bool, unit: str) -> None:
    drawn = chart(comparison(0.3, 0.5, 0.7, measured=measured), "compare-front")
    assert json.dumps(unit) in json.dumps(drawn)
    means = [sets for sets in drawn["datasets"].values() if len(sets) == 3 * len(POLICIES)]
    critic = [(row["cost"], row["top1"]) for row in means[0] if row["policy"] == "critic"]
    assert len(critic) == 3
    assert critic == sorted(critic, key=lambda point: (point[0], point[1]))  # dearer is better


def test_more_policies_than_fit_one_panel_get_a_panel_each() -> None:
    runs = tuple(replace(compared_run("critic", 0), policy=f"p{i}") for i in range(9))
    ratios = chart(Comparison(runs, "net"), "compare-keep-ratios-latency-ratio-0.5")
    assert [panel["title"] for panel in ratios["vconcat"]] == [f"p{i}" for i in range(9)]
    assert json.dumps([*[[1, 0]] * 8, [5, 3]]) in json.dumps(ratios)  # the ninth series: the first colour, dashed


def test_the_front_holds_what_nothing_else_beats() -> None:
    points = [(1.0, 0.5), (1.0, 0.6), (2.0, 0.55), (3.0, 0.7), (4.0, 0.7)]
    assert non_dominated(points) == [(1.0, 0.6), (3.0, 0.7)]
    assert front([], None, unit="ms", accuracy="top-1 on test images", images=360) is None
