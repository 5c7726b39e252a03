"""Policies side by side: the same budget, evaluator and number of evaluations; every number comes from a run folder."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from amc_mobile.errors import BudgetNotMet, InvalidInput, UnreachableBudget
from amc_mobile.models.checkpoints import weights_sha256
from amc_mobile.report.content import TOP1
from amc_mobile.report.series_page import write_series_page
from amc_mobile.search.episode_log import CHECK, EpisodeLog
from amc_mobile.store import write_json, write_text
from amc_mobile.workflows.comparison import CUTS, Comparison, summaries
from amc_mobile.workflows.comparison_page import comparison_page
from amc_mobile.workflows.finetune import finetune_run
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.offline import not_measured, recorded
from amc_mobile.workflows.plans import keep_ratios
from amc_mobile.workflows.preparation import Preparations
from amc_mobile.workflows.progress import Progress, silent
from amc_mobile.workflows.runs import Run, place_part, precision_part, run_name
from amc_mobile.workflows.search import search_plan
from amc_mobile.workflows.search_config import CompareConfig, SearchConfig
from amc_mobile.workflows.workspace import Settings, Workspace

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
    for number, (search, seed) in enumerate(searches):
        name = compared_run(settings, search, seed)
        progress("compare", number, len(searches), name)
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
    if folder.has("search"):
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
    # What a run of an earlier version does not name had its default then.
    defaults = {field.name: field.default for kind in (Settings, SearchConfig) for field in fields(kind)}
    known = {**defaults, **asdict(folder.settings()), **folder.read("settings")["search"]}
    if folder.read("settings").get("weights_sha256") != weights_sha256(network.module):
        raise InvalidInput(
            f"run {folder.folder.name} was made with other weights of the original network",
            next_step="compare in another --workspace, or delete that run",
        )
    free = {"workers", "waive"} if search.unit == "ms" else {"workers", "waive", "offline", "conditions"}
    for key, value in {**asdict(settings), **asdict(search)}.items():
        if key not in free and known.get(key) != value:
            raise InvalidInput(
                f"run {folder.folder.name} was made with {key} {known.get(key)!r}, not {value!r}",
                next_step="compare in another workspace, or delete that run",
            )


def _is_finetuned(folder: Run, epochs: int) -> bool:
    """Raises InvalidInput when it was for another number of epochs."""
    if not folder.has("finetune"):
        return False
    if (before := folder.read("finetune")["epochs"]) != epochs:
        raise InvalidInput(
            f"run {folder.folder.name} was fine-tuned for {before} epochs, not {epochs}",
            next_step=f"pass --finetune-epochs {before}, or delete the run's finetune.json",
        )
    return True


def run_results(folder: Run) -> dict[str, Any]:
    """The numbers of one finished run, all of them read from its folder."""
    search = folder.read("search")
    log = EpisodeLog(folder.folder / "episodes.csv")
    rewards = [row.reward for row in log.rows if row.policy != CHECK]
    finetuned = folder.read("finetune")["test_top1"] if folder.has("finetune") else None
    kept, kinds = keep_ratios(search["plan"]), search.get("group_kinds", {})
    offline = search.get("offline", False)
    return {
        "offline": offline, **({"note": not_measured(search["conditions"]["device"])} if offline else {}),
        "further_budgets": search.get("budgets", [])[1:],
        "reward": search["reward"], "original_top1": search["test_top1"]["original"],
        "one_shot_top1": search["test_top1"]["one-shot"], "refitted_top1": search["test_top1"]["refitted"],
        "finetuned_top1": finetuned, "macs": search["macs"], "parameters": search["parameters"],
        "predicted_cost": search["predicted_cost"], "measured_ms": search["measured_ms"],
        "evaluations": search["evaluations"], "episodes": search["episodes"],
        "cpu_s": sum(seconds for part, seconds in search["cpu_s"].items() if part != "latency"),
        "set_up_cpu_s": search["cpu_s"]["set_up"], "cpu_s_by_part": search["cpu_s"],
        **{f"best_reward_{cut}": max(rewards[:cut]) for cut in CUTS if len(rewards) >= cut},
        "keep_ratios": kept, "group_kinds": {name: kinds.get(name, "") for name in kept},
        "original_macs": search["original_macs"], "original_ms": search["budget"]["reference_ms"] or None,
        "test_images": search["test_images"], "accuracy_on": search.get("accuracy_on", "test images"),
        "metric": search.get("metric", TOP1),
    }  # fmt: skip
