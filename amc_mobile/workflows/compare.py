"""Policies side by side: the same budget, evaluator and number of evaluations; every number comes from a run folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.errors import BudgetNotMet, InvalidConfig, InvalidInput, UnreachableBudget
from amc_mobile.report.tables import render_rows
from amc_mobile.search.episode_log import CHECK, EpisodeLog
from amc_mobile.search.policies import POLICIES
from amc_mobile.store import write_json, write_text
from amc_mobile.workflows.finetune import finetune_run
from amc_mobile.workflows.plans import keep_ratios
from amc_mobile.workflows.preparation import Preparations
from amc_mobile.workflows.progress import Progress, silent
from amc_mobile.workflows.runs import Run, run_name
from amc_mobile.workflows.search import SearchConfig, search_plan
from amc_mobile.workflows.workspace import Settings, Workspace

FORMAT_VERSION = 1  # 1: runs, policies
SMALL_BATCH = 64  # images per step of a fine-tuning
CUTS = (100, 200, 300)  # episodes after which the best reward is told


@dataclass(frozen=True)
class CompareConfig:
    """`search` is what all runs share; its policy is not looked at. `budgets`: further ratios of the same kind."""

    search: SearchConfig
    policies: tuple[str, ...] = ("uniform", "random", "ddpg", "evolution", "critic", "dp")
    seeds: tuple[int, ...] = (0,)
    budgets: tuple[float, ...] = ()
    finetune_epochs: int = 0
    finetune_learning_rate: float = 0.02

    def __post_init__(self) -> None:
        if not self.policies or not self.seeds:
            raise InvalidConfig("a comparison needs at least one policy and one seed")
        for policy in self.policies:
            if policy.partition(":")[0] not in POLICIES:
                raise InvalidConfig(f"no search policy {policy!r}", next_step=f"use some of: {', '.join(POLICIES)}")
        if self.budgets and self.search.latency_ms is not None:
            raise InvalidConfig("several budgets are ratios", next_step="use --latency-ratio, --macs-ratio or the like")

    def searches(self) -> list[tuple[SearchConfig, int]]:
        """(search, seed) of every run; runs of one seed next to each other, which share their preparation."""
        return [
            (replace(search, policy=policy), seed)
            for seed in self.seeds
            for search in self._by_budget()
            for policy in self.policies
        ]

    def _by_budget(self) -> list[SearchConfig]:
        search = self.search
        if not self.budgets:
            return [search]
        if search.latency_ratio is not None:
            return [replace(search, latency_ratio=ratio) for ratio in self.budgets]
        if search.macs_ratio is not None:
            return [replace(search, macs_ratio=ratio) for ratio in self.budgets]
        return [replace(search, params_ratio=ratio) for ratio in self.budgets]


@dataclass(frozen=True)
class Comparison:
    """`runs`: one document per run; `policies`: one per budget and policy, means and spreads over seeds."""

    runs: tuple[dict[str, Any], ...]
    policies: tuple[dict[str, Any], ...]
    title: str

    def document(self) -> dict[str, Any]:
        return {"title": self.title, "policies": list(self.policies), "runs": list(self.runs)}

    def text(self) -> str:
        headers = ["budget", "policy", "seeds", "reward", "one-shot", "refitted", "fine-tuned", "MACs", "predicted",
                   "measured", "evaluations", "CPU s"]  # fmt: skip
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
        failed = [f"  run {run['run']}: {run['error']}" for run in self.runs if "error" in run]
        original = next((run["original_top1"] for run in self.runs if "error" not in run), None)
        notes = [] if original is None else [f"original: top-1 {original:.1%}; mean +- standard deviation over seeds"]
        return "\n".join([self.title, render_rows(headers, rows), *notes, *failed])

    def csv(self) -> str:
        """One line per run."""
        buffer = io.StringIO()
        columns = [key for key in COLUMNS if any(key in run for run in self.runs)]
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.runs)
        return buffer.getvalue()


COLUMNS = (
    "run", "budget", "policy", "seed", "reward", "original_top1", "one_shot_top1", "refitted_top1", "finetuned_top1",
    "macs", "parameters", "predicted_cost", "measured_ms", "evaluations", "episodes", "cpu_s", "set_up_cpu_s",
    *(f"best_reward_{cut}" for cut in CUTS), "error",
)  # fmt: skip
AVERAGED = (
    "reward", "one_shot_top1", "refitted_top1", "finetuned_top1", "macs", "parameters", "predicted_cost", "measured_ms",
    "evaluations", "cpu_s", *(f"best_reward_{cut}" for cut in CUTS),
)  # fmt: skip


def compare_policies(
    space: Workspace, settings: Settings, wanted: CompareConfig, *, progress: Progress = silent
) -> Comparison:
    """Runs what is missing, each in its own run folder, and puts all results side by side.

    A run that finds no plan within the budget is listed with its error; the others go on.
    """
    prepared = Preparations()
    searches = wanted.searches()
    runs = []
    for number, (search, seed) in enumerate(searches):
        name = compared_run(settings, search, seed)
        progress("compare", number, len(searches), name)
        runs.append(_run(space, replace(settings, seed=seed), search, wanted, name, prepared, progress))
    progress("compare", len(searches), len(searches))
    title = f"{settings.model}, {wanted.search.episodes} episodes, reward {wanted.search.reward}"
    comparison = Comparison(tuple(runs), tuple(_summaries(runs)), title)
    write_json(space.folder / "compare.json", comparison.document(), format_version=FORMAT_VERSION)
    write_text(space.folder / "compare.csv", comparison.csv())
    return comparison


def compared_run(settings: Settings, search: SearchConfig, seed: int) -> str:
    """The run folder's name: everything that distinguishes two runs of one comparison, or of two."""
    policy, _, file = search.policy.partition(":")
    granularity = "" if search.granularity == "channel" else search.granularity
    parts = ("compare", Path(settings.model).stem, search.asked, granularity, policy, Path(file).stem,
             f"e{search.episodes}", "" if search.reward == "fidelity" else search.reward, f"s{seed}")  # fmt: skip
    return run_name(*parts)


def _run(
    space: Workspace, settings: Settings, search: SearchConfig, wanted: CompareConfig, name: str,
    prepared: Preparations, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    folder = Run(space.runs / name)
    row: dict[str, Any] = {
        "run": name, "budget": search.asked, "policy": search.policy, "seed": settings.seed, "unit": search.unit,
    }  # fmt: skip
    if folder.has("search"):
        _check_same(folder, settings, search)
    else:
        try:
            search_plan(space, settings, search, run=name, progress=progress, prepared=prepared)
        except (BudgetNotMet, UnreachableBudget) as error:
            return {**row, "error": error.message}
    if wanted.finetune_epochs and not folder.has("finetune"):
        finetune_run(
            space, run=name, epochs=wanted.finetune_epochs, learning_rate=wanted.finetune_learning_rate,
            batch_size=SMALL_BATCH, progress=progress,
        )  # fmt: skip
    return {**row, **run_results(folder)}


def _check_same(folder: Run, settings: Settings, search: SearchConfig) -> None:
    """Raises InvalidInput, naming what differs, when a finished run is not the one that would be made now."""
    known = folder.read("settings")
    for part, now in (("settings", asdict(settings)), ("search", asdict(search))):
        for key, value in now.items():
            if known[part].get(key) != value:
                raise InvalidInput(
                    f"run {folder.folder.name} was made with {key} {known[part].get(key)!r}, not {value!r}",
                    next_step="compare in another workspace, or delete that run",
                )


def run_results(folder: Run) -> dict[str, Any]:
    """The numbers of one finished run, all of them read from its folder."""
    search = folder.read("search")
    log = EpisodeLog(folder.folder / "episodes.csv")
    rewards = [row.reward for row in log.rows if row.policy != CHECK]
    finetuned = folder.read("finetune")["test_top1"] if folder.has("finetune") else None
    return {
        "reward": search["reward"], "original_top1": search["test_top1"]["original"],
        "one_shot_top1": search["test_top1"]["one-shot"], "refitted_top1": search["test_top1"]["refitted"],
        "finetuned_top1": finetuned, "macs": search["macs"], "parameters": search["parameters"],
        "predicted_cost": search["predicted_cost"], "measured_ms": search["measured_ms"],
        "evaluations": search["evaluations"], "episodes": search["episodes"],
        "cpu_s": sum(seconds for part, seconds in search["cpu_s"].items() if part != "latency"),
        "set_up_cpu_s": search["cpu_s"]["set_up"], "cpu_s_by_part": search["cpu_s"],
        **{f"best_reward_{cut}": max(rewards[:cut]) for cut in CUTS if len(rewards) >= cut},
        "keep_ratios": keep_ratios(search["plan"]),
    }  # fmt: skip


def _summaries(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per budget and policy, in the order in which they come: mean and standard deviation over seeds."""
    found = []
    for key in dict.fromkeys((run["budget"], run["policy"]) for run in runs):
        mine = [run for run in runs if (run["budget"], run["policy"]) == key and "error" not in run]
        if mine:
            summary = {"budget": key[0], "policy": key[1], "seeds": len(mine), "unit": mine[0]["unit"]}
            averages = {name: _average([run.get(name) for run in mine]) for name in AVERAGED}
            found.append({**summary, **averages, "runs": [run["run"] for run in mine]})
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
