from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from report_example import finished_report

from amc_mobile.report import charts
from amc_mobile.report.content import (
    Accuracy,
    AskedBudget,
    EpisodePoint,
    EpochAccuracy,
    LayerRow,
    PassRow,
    PredictionPoint,
    Predictions,
    Stage,
)


def rows(chart: Any, *columns: str) -> list[dict[str, Any]]:
    """Of the first data set that has these columns."""
    return next(rows for rows in chart["datasets"].values() if rows and set(columns) <= set(rows[0]))


def test_only_the_heaviest_layers_are_drawn_in_the_order_of_the_network() -> None:
    layers = tuple(LayerRow(f"l{i}", ms_before=float(i), ms_after=1.0) for i in range(100))
    assert [row["layer"] for row in rows(charts.layer_ms_bars(layers), "layer")] == [
        f"l{i}" for i in range(100 - charts.MOST_BARS, 100)
    ]


def test_bars_have_the_values_before_and_after() -> None:
    picture = charts.layer_channel_bars((LayerRow("a", channels_before=100, channels_after=25),))
    (row,) = rows(picture, "layer")
    assert (row["before"], row["after"], row["values"]) == (100, 25, "100 → 25")


def test_a_plan_measured_over_the_budget_is_not_the_best_so_far() -> None:
    episodes = [EpisodePoint(0, 0.5, 1.0), EpisodePoint(1, 0.9, 1.0, measured_ms=1.5), EpisodePoint(2, 0.6, 1.0)]

    def best(points: list[EpisodePoint]) -> list[tuple[int, float]]:
        every = charts.search_curve(points, AskedBudget("ms", 1.2))["datasets"].values()
        return [(row["episode"], row["reward"]) for rows in every for row in rows if row.get("what") == "best so far"]

    assert best(episodes) == [(0, 0.5), (2, 0.6), (2, 0.6)]
    assert best(episodes[:2]) == [(0, 0.5), (0, 0.5)]  # nothing better than the first


def test_episodes_without_numbers_are_not_drawn() -> None:
    empty = [EpisodePoint(3, None, None), EpisodePoint(4, float("nan"), float("inf"))]
    assert charts.search_curve(empty, None) is None
    picture = json.dumps(charts.search_curve([*empty, EpisodePoint(5, 0.5, 1.0)], None))
    assert "NaN" not in picture and "Infinity" not in picture


@pytest.mark.parametrize("unit", ["ms", "macs", "parameters"])
def test_the_curve_speaks_the_budgets_unit(unit: str) -> None:
    title = {"ms": "ms", "macs": "million MACs", "parameters": "thousand parameters"}[unit]
    picture = charts.search_curve([EpisodePoint(0, 0.5, 2e6), EpisodePoint(1, 0.6, 3e6)], AskedBudget(unit, 2.5e6))  # type: ignore[arg-type]
    assert f'"title": "{title}"' in json.dumps(picture)


def test_one_point_alone_can_be_drawn() -> None:
    for picture in (
        charts.prediction_scatter(Predictions((PredictionPoint(2.0, 2.0, "final"),))),
        charts.search_curve((EpisodePoint(0, 0.5, 1.0),), None),
    ):
        assert picture is not None and "NaN" not in charts.svg(picture)


def test_the_share_of_runs_rises_to_one_and_the_budget_is_in_sight() -> None:
    passes = (PassRow("original", (4.0, 5.0, 40.0)), PassRow("pruned", (2.0, 2.1, 2.2)))
    picture = charts.sample_ecdf(passes, 3.0)
    of_pruned = [(r["ms"], round(r["share"], 2)) for r in rows(picture, "share") if r["file"] == "pruned"]
    assert of_pruned == [(2.0, 0.33), (2.1, 0.67), (2.2, 1.0)]
    assert "budget 3.000 ms" in json.dumps(picture)
    assert charts.sample_ecdf((), 3.0) is None and charts.run_order((), 3.0) is None


def test_runs_are_coloured_by_the_clock_where_it_changed() -> None:
    passes = finished_report().passes
    clocked, unknown = (
        json.dumps(charts.run_order(one, 1.2)) for one in (passes, tuple(replace(row, mean_mhz=None) for row in passes))
    )
    assert "mean clock, MHz" in clocked and "mean clock, MHz" not in unknown
    assert rows(charts.run_order(passes, None), "run")[40]["load"] == "other programs too"


def test_accuracies_are_drawn_with_their_intervals_and_the_axis_holds_them() -> None:
    stages = (Stage("original", Accuracy(0.856, 359)), Stage("tflite", Accuracy(0.851, 359)), Stage("onnx"))
    picture: Any = charts.stage_accuracies(stages, "top-1")
    first = rows(picture, "stage", "low")[0]
    assert first["low"] < 85.1 < 85.6 < first["high"]
    (domain,) = set(re.findall(r'"domain": \[([\d., ]+)\], "nice"', json.dumps(picture)))
    low, high = map(float, domain.split(", "))
    assert high - low > 7
    assert charts.stage_accuracies(stages[:1], "top-1") is None


def test_the_accuracy_after_each_epoch_is_drawn_from_where_fine_tuning_began() -> None:
    picture = charts.finetuning_curve(finished_report().finetuning)
    assert [row["accuracy"] for row in rows(picture, "epoch")] == [93.75, 96.09, 96.88, 98.44]
    assert rows(picture, "value") == [{"value": 93.75, "name": "before"}]
    assert charts.finetuning_curve(()) is charts.finetuning_curve((EpochAccuracy(0, 0.5),)) is None
