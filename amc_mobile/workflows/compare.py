"""Policies side by side: the same budget, evaluator and number of evaluations; every number comes from a run folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.errors import BudgetNotMet, InvalidInput, UnreachableBudget
from amc_mobile.models.loading import weights_sha256
from amc_mobile.report.charts import accuracy_bars, front, group_lines
from amc_mobile.report.pages import Picture, SeriesPage, write_series_page
from amc_mobile.report.tables import NOTHING, Section, number, percent, render_rows
from amc_mobile.search.budget import format_cost
from amc_mobile.search.episode_log import CHECK, EpisodeLog
from amc_mobile.store import to_document, write_json, write_text
from amc_mobile.workflows.devices import not_measured, recorded
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.plans import Preparations
from amc_mobile.workflows.runs import (
    FinetuneRecord,
    Run,
    SearchRecord,
    SettingsRecord,
    place_part,
    precision_part,
    run_name,
)
from amc_mobile.workflows.search import search_plan
from amc_mobile.workflows.search_config import CompareConfig, SearchConfig
from amc_mobile.workflows.training import finetune_run
from amc_mobile.workflows.workspace import Progress, Settings, Workspace, silent

CUTS = (100, 200, 300)  # episodes after which the best reward is told


@dataclass(frozen=True)
class Comparison:
    """`runs`: one document per run; `policies`: one per budget and policy, means and spreads over seeds."""

    runs: tuple[dict[str, Any], ...]
    policies: tuple[dict[str, Any], ...]
    title: str

    def document(self) -> dict[str, Any]:
        return {"title": self.title, "policies": list(self.policies), "runs": list(self.runs)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and one row per budget and policy."""
        headers = ["budget", "policy", "seeds", "reward", "one-shot", "refitted", "fine-tuned", "MACs", "predicted",
                   "by speed-up", "evaluations", "CPU s"]  # fmt: skip
        rows = [
            [
                row["budget"],
                row["policy"],
                str(row["seeds"]),
                _with_spread(row["reward"], 4),
                *(
                    _with_spread(row[f"{stage}_top1"], 1, percent=True)
                    for stage in ("one_shot", "refitted", "finetuned")
                ),
                _with_spread(row["macs"], 2, scale=1e-6, unit=" M"),
                _cost(row["predicted_cost"], row["unit"]),
                _with_spread(row["measured_ms"], 3, unit=" ms"),
                f"{row['evaluations']['mean']:.0f}",
                f"{row['cpu_s']['mean']:.0f}",
            ]
            for row in self.policies
        ]
        return headers, rows

    def further_table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and one row per policy and budget that its plans meet besides the first; no rows without such."""
        headers = ["budgets", "policy", "further budget", "limit", "cost", "by speed-up", "verdict"]
        rows = [
            [
                row["budget"],
                row["policy"],
                further["asked"],
                format_cost(further["limit"], further["unit"]),
                _cost(further["predicted_cost"], further["unit"]),
                _with_spread(further["measured_ms"], 3, unit=" ms"),
                further["verdict"],
            ]
            for row in self.policies
            for further in row["further_budgets"]
        ]
        return headers, rows

    @property
    def warnings(self) -> list[str]:
        """What must stand over every number: that latencies were not measured."""
        return list(dict.fromkeys(run["note"] for run in self.runs if "note" in run))

    def text(self) -> str:
        failed = [f"  run {run['run']}: {run['error']}" for run in self.runs if "error" in run]
        first = next((run for run in self.runs if "error" not in run), None)
        notes = []
        if first is not None:
            reached = f"{first['metric']} {first['original_top1']:.1%}"
            notes.append(f"original: {reached}; mean +- standard deviation over seeds")
        further = self.further_table()
        tables = [render_rows(*self.table()), *(["", render_rows(*further)] if further[1] else [])]
        return "\n".join([self.title, *self.warnings, *tables, *notes, *failed])

    def csv(self) -> str:
        """One line per run; each further budget has columns of its own."""
        buffer = io.StringIO()
        rows = [{**run, **_further_cells(run)} for run in self.runs]
        further = dict.fromkeys(key for run in self.runs for key in _further_cells(run))
        columns = [*(key for key in COLUMNS if any(key in run for run in self.runs)), *further]
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


COLUMNS = (
    "run", "budget", "policy", "seed", "reward", "original_top1", "one_shot_top1", "refitted_top1", "finetuned_top1",
    "macs", "parameters", "predicted_cost", "measured_ms", "evaluations", "episodes", "cpu_s", "set_up_cpu_s",
    *(f"best_reward_{cut}" for cut in CUTS), "note", "error",
)  # fmt: skip
AVERAGED = (
    "reward", "one_shot_top1", "refitted_top1", "finetuned_top1", "macs", "parameters", "predicted_cost", "measured_ms",
    "evaluations", "cpu_s", *(f"best_reward_{cut}" for cut in CUTS),
)  # fmt: skip


def summaries(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per budget and policy, in the order in which they come: mean and standard deviation over seeds."""
    found = []
    for key in dict.fromkeys((run["budget"], run["policy"]) for run in runs):
        mine = [run for run in runs if (run["budget"], run["policy"]) == key and "error" not in run]
        if mine:
            summary = {"budget": key[0], "policy": key[1], "seeds": len(mine), "unit": mine[0]["unit"]}
            averages = {name: _average([run.get(name) for run in mine]) for name in AVERAGED}
            note = {"note": mine[0]["note"]} if "note" in mine[0] else {}
            further = _further(mine)
            found.append({**summary, **note, **averages, "further_budgets": further, "runs": [r["run"] for r in mine]})
    return found


def _further(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The further budgets of runs that had the same ones."""
    return [
        {
            **{key: rows[0][key] for key in ("asked", "unit", "limit", "device")},
            **{key: _average([row[key] for row in rows]) for key in ("predicted_cost", "measured_ms")},
            "verdict": " / ".join(dict.fromkeys(row["verdict"] for row in rows)),
        }
        for rows in zip(*(run.get("further_budgets", []) for run in runs), strict=True)
    ]


def _further_cells(run: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for further in run.get("further_budgets", []):
        keys = ("predicted_cost", "measured_ms", "verdict") if further["unit"] == "ms" else ("verdict",)
        found.update({f"{further['asked']} {key}": further[key] for key in keys})
    return found


def _average(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": spread, "min": min(known), "max": max(known)}


def _with_spread(
    value: dict[str, float] | None, digits: int, *, scale: float = 1, unit: str = "", percent: bool = False
) -> str:
    if value is None:
        return "-"
    scale = 100 if percent else scale
    spread = f" +- {value['std'] * scale:.{digits}f}" if value["std"] > 0 else ""
    return f"{value['mean'] * scale:.{digits}f}{spread}{'%' if percent else unit}"


def _cost(value: dict[str, float] | None, unit: str) -> str:
    if unit == "ms":
        return _with_spread(value, 3, unit=" ms")
    return _with_spread(value, 2, scale=1e-6, unit=" M")


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
    points = [(run["policy"], run["budget"], run[key] * scale, run[last]) for run in runs]
    # Beside the plans of one budget, the original would leave them no room.
    several = len({run["budget"] for run in runs}) > 1
    whole = runs[0][full]
    original = (whole * scale, runs[0]["original_top1"]) if whole and several else None
    stage = next(name for name, accuracy_key in STAGES.items() if accuracy_key == last)
    caption = (
        f"Accuracy of the {stage} networks. Markers: means over seeds, joined through the budgets; small dots: seeds; "
        "the grey steps: what no other policy beats in both."
    )
    chart = front(points, original, unit=unit, accuracy=accuracy)
    return Picture("compare-front", "Accuracy against cost", caption, chart)


def _bars(runs: Runs, budget: str, accuracy: str) -> Picture:
    values = [(r["policy"], stage, r[key]) for r in runs for stage, key in STAGES.items() if r[key] is not None]
    return Picture(
        run_name("compare-accuracy", budget), f"Accuracy before and after fine-tuning, {budget}",
        "Bars: means over seeds; lines on them: from the lowest to the highest seed, in brackets at the right.",
        accuracy_bars(values, runs[0]["original_top1"], accuracy=accuracy),
    )  # fmt: skip


def _keep_ratios(runs: Runs, budget: str) -> Picture:
    kinds = runs[0]["group_kinds"]
    values = [(run["policy"], group, run["keep_ratios"][group]) for run in runs for group in kinds]
    signs = [
        "+ on grey: a residual sum shares these channels" if "residual" in kinds.values() else "",
        "dw: a depthwise layer filters them" if "depthwise" in kinds.values() else "",
    ]
    caption = "; ".join(
        ["Share of channels kept, mean over seeds; pale bars: from lowest to highest", *filter(None, signs)]
    )
    return Picture(
        run_name("compare-keep-ratios", budget), f"Keep ratios over the network, {budget}", caption + ".",
        group_lines(values, kinds, description="keep ratios over the network", title="keep ratio", domain=(0.0, 1.0)),
    )  # fmt: skip


def _kept_table(runs: Runs, budget: str) -> Section:
    by_policy = {mine[0]["policy"]: mine for mine in _grouped(runs, "policy")}
    rows = [
        (name, *(f"{np.mean([run['keep_ratios'][name] for run in mine]):.2f}" for mine in by_policy.values()))
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


FORMAT_VERSION = 1  # 1: runs, policies
SMALL_BATCH = 64  # images per step of a fine-tuning


def compare_policies(
    space: Workspace, settings: Settings, wanted: CompareConfig, *, progress: Progress = silent,
    untrained: bool = False,
) -> Comparison:  # fmt: skip
    """Runs what is missing, each in its own run folder, and puts all results side by side.

    A run that finds no plan within the budget is listed with its error; the others go on. The workspace's last run
    stays what it is.
    """
    prepared = Preparations()
    searches = wanted.searches()
    runs = []
    for position, (search, seed) in enumerate(searches):
        name = compared_run(settings, search, seed)
        progress("compare", position, len(searches), name)
        runs.append(_run(space, replace(settings, seed=seed), search, wanted, name, prepared, progress, untrained))
    progress("compare", len(searches), len(searches))
    space.remember(settings)
    title = f"{settings.model}, {wanted.search.episodes} episodes, reward {wanted.search.reward}"
    comparison = Comparison(tuple(runs), tuple(summaries(runs)), title)
    write_json(space.folder / "compare.json", comparison.document(), format_version=FORMAT_VERSION)
    write_text(space.folder / "compare.csv", comparison.csv())
    write_series_page(comparison_page(comparison), space.folder / "compare.html")
    return comparison


def compared_run(settings: Settings, search: SearchConfig, seed: int) -> str:
    """The run folder's name: everything that distinguishes two runs of one comparison, or of two."""
    policy, _, file = search.policy.partition(":")
    granularity = "" if search.granularity == "channel" else search.granularity
    offline = "offline" if _is_offline(settings, search) else ""
    parts = ("compare", Path(settings.model).stem, precision_part(settings), place_part(settings, search.unit), offline,
             search.asked, granularity, policy, Path(file).stem, f"e{search.episodes}",
             "" if search.reward == "fidelity" else search.reward, f"s{seed}")  # fmt: skip
    return run_name(*parts)


def _is_offline(settings: Settings, search: SearchConfig) -> bool:
    """MACs and parameters are counted without a device in any case."""
    return settings.offline and search.unit == "ms"


def _run(
    space: Workspace, settings: Settings, search: SearchConfig, wanted: CompareConfig, name: str,
    prepared: Preparations, progress: Progress, untrained: bool,
) -> dict[str, Any]:  # fmt: skip
    folder = Run(space.runs / name)
    row: dict[str, Any] = {
        "run": name, "budget": search.asked, "policy": search.policy, "seed": settings.seed, "unit": search.unit,
    }  # fmt: skip
    if folder.find(SearchRecord) is not None:
        begun = recorded(space, settings)[1] if _is_offline(settings, search) else settings
        _check_same(folder, begun, search, prepared.network(space, settings))
    else:
        try:
            search_plan(
                space, settings, search, run=name, progress=progress, prepared=prepared, is_compared=True,
                untrained=untrained,
            )  # fmt: skip
        except (BudgetNotMet, UnreachableBudget) as error:
            return {**row, "error": error.message}
    if wanted.finetune_epochs and not _is_finetuned(folder, wanted.finetune_epochs):
        finetune_run(
            space, run=name, epochs=wanted.finetune_epochs, learning_rate=wanted.finetune_learning_rate,
            batch_size=SMALL_BATCH, progress=progress,
        )  # fmt: skip
    return {**row, **run_results(folder)}


def _check_same(folder: Run, settings: Settings, search: SearchConfig, network: Network) -> None:
    """Raises InvalidInput, naming what differs, when a finished run is not the one that would be made now."""
    begun = folder.load(SettingsRecord)
    before = {**asdict(begun.settings), **asdict(begun.search)}
    if begun.weights_sha256 != weights_sha256(network.module):
        raise InvalidInput(
            f"run {folder.folder.name} was made with other weights of the original network",
            next_step="compare in another --workspace, or delete that run",
        )
    free = {"workers", "waive"} if search.unit == "ms" else {"workers", "waive", "offline", "conditions"}
    for key, value in {**asdict(settings), **asdict(search)}.items():
        if key not in free and before[key] != value:
            raise InvalidInput(
                f"run {folder.folder.name} was made with {key} {before[key]!r}, not {value!r}",
                next_step="compare in another workspace, or delete that run",
            )


def _is_finetuned(folder: Run, epochs: int) -> bool:
    """Raises InvalidInput when it was for another number of epochs."""
    before = folder.find(FinetuneRecord)
    if before is not None and before.epochs != epochs:
        raise InvalidInput(
            f"run {folder.folder.name} was fine-tuned for {before.epochs} epochs, not {epochs}",
            next_step=f"pass --finetune-epochs {before.epochs}, or delete the run's finetune.json",
        )
    return before is not None


def run_results(folder: Run) -> dict[str, Any]:
    """The numbers of one finished run, all of them read from its folder."""
    search, finetuned = folder.search(), folder.find(FinetuneRecord)
    log = EpisodeLog(folder.folder / "episodes.csv")
    rewards = [row.reward for row in log.rows if row.policy != CHECK]
    kept = search.plan.keep_ratios
    note = {"note": not_measured(search.conditions.device)} if search.offline and search.conditions else {}
    return {
        "offline": search.offline, **note,
        "further_budgets": [to_document(budget) for budget in search.budgets[1:]],
        "reward": search.reward, "original_top1": search.test_top1["original"],
        "one_shot_top1": search.test_top1["one-shot"], "refitted_top1": search.test_top1["refitted"],
        "finetuned_top1": finetuned.test_top1 if finetuned is not None else None,
        "macs": search.macs, "parameters": search.parameters,
        "predicted_cost": search.predicted_cost, "measured_ms": search.measured_ms,
        "evaluations": search.evaluations, "episodes": search.episodes,
        "cpu_s": sum(seconds for part, seconds in search.cpu_s.items() if part != "latency"),
        "set_up_cpu_s": search.cpu_s["set_up"], "cpu_s_by_part": dict(search.cpu_s),
        **{f"best_reward_{cut}": max(rewards[:cut]) for cut in CUTS if len(rewards) >= cut},
        "keep_ratios": kept, "group_kinds": {name: search.group_kinds.get(name, "") for name in kept},
        "original_macs": search.original_macs, "original_ms": search.budget.reference_ms or None,
        "test_images": search.test_images, "accuracy_on": search.accuracy_on, "metric": search.metric,
    }  # fmt: skip
