"""The page of a comparison: its pictures and tables, drawn from the documents of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amc_mobile.report.comparison_charts import (
    FrontPoint,
    GroupTick,
    StageBars,
    accuracy_bars,
    front,
    group_lines,
)
from amc_mobile.report.quantities import NOTHING, number, percent
from amc_mobile.report.sections import Section
from amc_mobile.report.series import Spread
from amc_mobile.report.series_page import Picture, SeriesPage
from amc_mobile.workflows.comparison import Comparison
from amc_mobile.workflows.runs import run_name

STAGES = {"one-shot": "one_shot_top1", "refitted": "refitted_top1", "fine-tuned": "finetuned_top1"}

Runs = Sequence[dict[str, Any]]


def comparison_page(comparison: Comparison) -> SeriesPage:
    """Runs without a plan are named in the table of runs and drawn nowhere."""
    finished = [run for run in comparison.runs if "error" not in run]
    pictures: list[Picture] = []
    notes = list(comparison.warnings)
    if finished:
        first = finished[0]
        images = f"{first['test_images']} {first['accuracy_on']}"
        accuracy = f"{first['metric']} on {images}"
        original = f"{first['metric']} {percent(first['original_top1'])} on {images}"
        notes.append(f"Original: {original}. Tables: mean +- standard deviation over seeds.")
        pictures.append(_front(finished, accuracy))
        for budget in dict.fromkeys(run["budget"] for run in finished):
            mine = [run for run in finished if run["budget"] == budget]
            pictures += [_bars(mine, budget, accuracy), _keep_ratios(mine, budget)]
    headers, rows = comparison.table()
    summary = Section("summary", "Policies", tuple(headers), tuple(map(tuple, rows)), "No run found a plan.")
    kept = [
        _kept_table([r for r in finished if r["budget"] == b], b) for b in dict.fromkeys(r["budget"] for r in finished)
    ]
    headers, rows = comparison.further_table()
    further = [Section("further", "Further budgets", tuple(headers), tuple(map(tuple, rows)), "")] if rows else []
    return SeriesPage(
        f"Comparison: {comparison.title}", tuple(notes), tuple(pictures),
        (summary, *further, _runs(comparison), *kept),
    )  # fmt: skip


def _front(runs: Runs, accuracy: str) -> Picture:
    """Over measured ms where every run was measured, over predicted ms without the device, else over MACs."""
    if all(run["measured_ms"] is not None for run in runs):
        key, full, unit, scale = "measured_ms", "original_ms", "original's p50 / measured speed-up, ms", 1.0
    elif all(run.get("offline") for run in runs):
        key, full, unit, scale = "predicted_cost", "original_ms", "predicted p50, ms, not measured", 1.0
    else:
        key, full, unit, scale = "macs", "original_macs", "MACs of one image, millions", 1e-6
    last = next(key for key in reversed(STAGES.values()) if all(run[key] is not None for run in runs))
    points = []
    for mine in _grouped(runs, "policy", "budget"):
        seeds = tuple((run[key] * scale, run[last]) for run in mine)
        cost, top1 = (Spread.of([pair[i] for pair in seeds]).mean for i in (0, 1))
        points.append(FrontPoint(mine[0]["policy"], cost, top1, seeds))
    # Beside the plans of one budget, the original would leave them no room.
    several = len({run["budget"] for run in runs}) > 1
    whole = runs[0][full]
    original = FrontPoint("original", whole * scale, runs[0]["original_top1"]) if whole and several else None
    stage = next(name for name, accuracy_key in STAGES.items() if accuracy_key == last)
    caption = (
        f"Accuracy of the {stage} networks. Markers: means over seeds, joined through the budgets; small dots: seeds; "
        "the grey steps: what no other policy beats in both."
    )
    return Picture(
        "compare-front", "Accuracy against cost", caption, front(points, original, unit=unit, accuracy=accuracy)
    )


def _bars(runs: Runs, budget: str, accuracy: str) -> Picture:
    rows = []
    for mine in _grouped(runs, "policy"):
        stages = {}
        for name, key in STAGES.items():
            known = [run[key] for run in mine if run[key] is not None]
            stages[name] = Spread.of(known) if known else None
        rows.append(StageBars(mine[0]["policy"], stages))
    return Picture(
        run_name("compare-accuracy", budget), f"Accuracy before and after fine-tuning, {budget}",
        "Bars: means over seeds; lines on them: from the lowest to the highest seed, in brackets at the right.",
        accuracy_bars(rows, runs[0]["original_top1"], accuracy=accuracy),
    )  # fmt: skip


def _keep_ratios(runs: Runs, budget: str) -> Picture:
    groups = [GroupTick(name, kind) for name, kind in runs[0]["group_kinds"].items()]
    lines = {
        mine[0]["policy"]: [Spread.of([run["keep_ratios"][group.name] for run in mine]) for group in groups]
        for mine in _grouped(runs, "policy")
    }
    signs = [
        "+ on grey: a residual sum shares these channels" if any(g.kind == "residual" for g in groups) else "",
        "dw: a depthwise layer filters them" if any(g.kind == "depthwise" for g in groups) else "",
    ]
    caption = "; ".join(
        ["Share of channels kept, mean over seeds; pale bars: from lowest to highest", *filter(None, signs)]
    )
    return Picture(
        run_name("compare-keep-ratios", budget), f"Keep ratios over the network, {budget}", caption + ".",
        group_lines(groups, lines, label="keep ratios over the network", title="keep ratio", up=(0.0, 1.0)),
    )  # fmt: skip


def _kept_table(runs: Runs, budget: str) -> Section:
    by_policy = {mine[0]["policy"]: mine for mine in _grouped(runs, "policy")}
    rows = [
        (name, *(f"{Spread.of([run['keep_ratios'][name] for run in mine]).mean:.2f}" for mine in by_policy.values()))
        for name in runs[0]["group_kinds"]
    ]
    return Section("kept-ratios", f"Mean keep ratios, {budget}", ("channel group", *by_policy), tuple(rows), "")


def _runs(comparison: Comparison) -> Section:
    rows = [
        (
            run["run"], run["budget"], run["policy"], str(run["seed"]),
            *([number(run["reward"]), *(percent(run[key]) for key in STAGES.values()), f"{run['macs'] / 1e6:.2f} M",
               number(run["measured_ms"]), f"{run['cpu_s']:.0f}", run.get("note", "")]
              if "error" not in run else [NOTHING] * 7 + [run["error"]]),
        )
        for run in comparison.runs
    ]  # fmt: skip
    headers = ("run", "budget", "policy", "seed", "reward", *STAGES, "MACs", "by speed-up, ms", "CPU s", "note")
    return Section(
        "runs", "Runs: where every number comes from", headers, tuple(rows), "No runs.", link="runs/{}/search.json"
    )


def _grouped(runs: Runs, *keys: str) -> list[list[dict[str, Any]]]:
    """Runs with the same values of `keys`, in order of first use."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in keys), []).append(run)
    return list(found.values())
