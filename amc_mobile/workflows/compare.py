"""Policies side by side: the same budget, evaluator and number of evaluations; every number comes from a run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.errors import BudgetNotMet, InvalidInput, UnreachableBudget
from amc_mobile.models.loading import weights_sha256
from amc_mobile.report.charts import accuracy_bars, front, group_lines
from amc_mobile.report.content import TOP1
from amc_mobile.report.pages import Picture, SeriesPage, write_series_page
from amc_mobile.report.tables import NOTHING, Section, number, percent, render_rows
from amc_mobile.search.budget import Unit, format_cost
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.store import to_document, write_json, write_text
from amc_mobile.workflows.devices import not_measured, recorded
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.plans import Preparations
from amc_mobile.workflows.runs import (
    BudgetRecord,
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

FORMAT_VERSION = 1  # 1: runs, policies
CUTS = (100, 200, 300)  # episodes after which the best reward is shown
SMALL_BATCH = 64  # images per step of a fine-tuning
STAGES = {"one-shot": "one_shot_top1", "refitted": "refitted_top1", "fine-tuned": "finetuned_top1"}
AVERAGED = (
    "reward", *STAGES.values(), "macs", "parameters", "predicted_cost", "measured_ms", "evaluations", "cpu_s",
)  # fmt: skip
COLUMNS = (
    "run", "budget", "policy", "seed", "reward", "original_top1", *STAGES.values(), "macs", "parameters",
    "predicted_cost", "measured_ms", "evaluations", "episodes", "cpu_s", "set_up_cpu_s",
    *(f"best_reward_{cut}" for cut in CUTS), "note", "error",
)  # fmt: skip


@dataclass(frozen=True)
class ComparedRun:
    run: str
    budget: str
    policy: str
    seed: int
    unit: Unit

    def document(self) -> dict[str, Any]:
        return dict(to_document(self))


@dataclass(frozen=True)
class FailedRun(ComparedRun):
    """A run without a plan within the budget."""

    error: str


@dataclass(frozen=True)
class FinishedRun(ComparedRun):
    """`note`: that latencies were not measured; empty where they were. `best_rewards`: by number of episodes."""

    offline: bool
    note: str
    further_budgets: tuple[BudgetRecord, ...]
    reward: float
    original_top1: float
    one_shot_top1: float
    refitted_top1: float
    finetuned_top1: float | None
    macs: float
    parameters: float
    predicted_cost: float
    measured_ms: float | None
    evaluations: int
    episodes: int
    cpu_s: float
    set_up_cpu_s: float
    cpu_s_by_part: Mapping[str, float]
    best_rewards: Mapping[int, float]
    keep_ratios: Mapping[str, float]
    group_kinds: Mapping[str, str]
    original_macs: float
    original_ms: float | None
    test_images: int
    accuracy_on: str
    metric: str

    def document(self) -> dict[str, Any]:
        document = super().document()
        rewards, note = document.pop("best_rewards"), document.pop("note")
        return {**document, **({"note": note} if note else {}), **{f"best_reward_{n}": r for n, r in rewards.items()}}


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and range over seeds."""

    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None where no value is known."""
        numbers = [value for value in values if value is not None]
        if not numbers:
            return None
        deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
        return cls(float(np.mean(numbers)), deviation, min(numbers), max(numbers))


@dataclass(frozen=True)
class FurtherSummary:
    """A further budget of runs that all had it."""

    asked: str
    unit: Unit
    limit: float
    device: str
    predicted_cost: Spread | None
    measured_ms: Spread | None
    verdict: str


@dataclass(frozen=True)
class PolicySummary:
    """The runs of one budget and policy. `averages`: over their seeds, by the names of AVERAGED and best_reward_N."""

    budget: str
    policy: str
    seeds: int
    unit: Unit
    note: str
    averages: Mapping[str, Spread | None]
    further_budgets: tuple[FurtherSummary, ...]
    runs: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        document = to_document(self)
        averages, note = document.pop("averages"), document.pop("note")
        return {**document, **({"note": note} if note else {}), **averages}


@dataclass(frozen=True)
class Comparison:
    runs: tuple[FinishedRun | FailedRun, ...]
    title: str

    @property
    def finished(self) -> list[FinishedRun]:
        return [run for run in self.runs if isinstance(run, FinishedRun)]

    @property
    def policies(self) -> list[PolicySummary]:
        """Per budget and policy, in the order in which they come: averages over seeds."""
        return [_summary(runs) for runs in _grouped(self.finished, "budget", "policy")]

    def document(self) -> dict[str, Any]:
        return {
            "title": self.title, "policies": [policy.document() for policy in self.policies],
            "runs": [run.document() for run in self.runs],
        }  # fmt: skip

    def table(self) -> Section:
        """One row per budget and policy."""
        headers = ("budget", "policy", "seeds", "reward", "one-shot", "refitted", "fine-tuned", "MACs", "predicted",
                   "by speed-up", "evaluations", "CPU s")  # fmt: skip
        rows = []
        for policy in self.policies:
            of = policy.averages
            accuracies = (_with_spread(of[stage], 1, scale=100, unit="%") for stage in STAGES.values())
            totals = (f"{value.mean:.0f}" for key in ("evaluations", "cpu_s") if (value := of[key]))
            rows.append(
                (
                    policy.budget, policy.policy, str(policy.seeds), _with_spread(of["reward"], 4), *accuracies,
                    _with_spread(of["macs"], 2, scale=1e-6, unit=" M"), _cost(of["predicted_cost"], policy.unit),
                    _with_spread(of["measured_ms"], 3, unit=" ms"), *totals,
                )
            )  # fmt: skip
        return Section("summary", "Policies", headers, tuple(rows), "No run found a plan.")

    def further_table(self) -> Section:
        """One row per policy and budget that its plans meet besides the first; no rows without such."""
        headers = ("budgets", "policy", "further budget", "limit", "cost", "by speed-up", "verdict")
        rows = [
            (
                policy.budget, policy.policy, further.asked, format_cost(further.limit, further.unit),
                _cost(further.predicted_cost, further.unit), _with_spread(further.measured_ms, 3, unit=" ms"),
                further.verdict,
            )
            for policy in self.policies
            for further in policy.further_budgets
        ]  # fmt: skip
        return Section("further", "Further budgets", headers, tuple(rows), "")

    @property
    def warnings(self) -> list[str]:
        """What every page of numbers has to begin with: that latencies were not measured."""
        return list(dict.fromkeys(run.note for run in self.finished if run.note))

    def text(self) -> str:
        lines = [self.title, *self.warnings, _plain(self.table())]
        if (further := self.further_table()).rows:
            lines += ["", _plain(further)]
        if self.finished:
            first = self.finished[0]
            lines.append(f"original: {first.metric} {first.original_top1:.1%}; mean +- standard deviation over seeds")
        return "\n".join([*lines, *(f"  run {r.run}: {r.error}" for r in self.runs if isinstance(r, FailedRun))])

    def csv(self) -> str:
        """One line per run; each further budget has columns of its own."""
        import pandas as pd

        rows = [run.document() | _further_cells(run) for run in self.runs]
        present = dict.fromkeys(key for row in rows for key in row)
        further = dict.fromkeys(key for run in self.runs for key in _further_cells(run))
        columns = [*(key for key in COLUMNS if key in present), *further]
        # As objects: a column with an empty cell would make floats of its integers.
        return str(pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n"))


def _plain(section: Section) -> str:
    return render_rows(section.headers, section.rows)


def _summary(runs: Sequence[FinishedRun]) -> PolicySummary:
    first = runs[0]
    averages = {name: Spread.of(getattr(run, name) for run in runs) for name in AVERAGED}
    averages |= {f"best_reward_{cut}": Spread.of(run.best_rewards.get(cut) for run in runs) for cut in CUTS}
    further = tuple(
        FurtherSummary(
            rows[0].asked, rows[0].unit, rows[0].limit, rows[0].device,
            Spread.of(row.predicted_cost for row in rows), Spread.of(row.measured_ms for row in rows),
            " / ".join(dict.fromkeys(row.verdict for row in rows)),
        )
        for rows in zip(*(run.further_budgets for run in runs), strict=True)
    )  # fmt: skip
    names = tuple(run.run for run in runs)
    return PolicySummary(first.budget, first.policy, len(runs), first.unit, first.note, averages, further, names)


def _further_cells(run: ComparedRun) -> dict[str, float | str | None]:
    cells: dict[str, float | str | None] = {}
    for further in run.further_budgets if isinstance(run, FinishedRun) else ():
        keys = ("predicted_cost", "measured_ms", "verdict") if further.unit == "ms" else ("verdict",)
        cells.update({f"{further.asked} {key}": getattr(further, key) for key in keys})
    return cells


def _with_spread(value: Spread | None, digits: int, *, scale: float = 1, unit: str = "") -> str:
    if value is None:
        return "-"
    spread = f" +- {value.std * scale:.{digits}f}" if value.std > 0 else ""
    return f"{value.mean * scale:.{digits}f}{spread}{unit}"


def _cost(value: Spread | None, unit: Unit) -> str:
    return _with_spread(value, 3, unit=" ms") if unit == "ms" else _with_spread(value, 2, scale=1e-6, unit=" M")


def comparison_page(comparison: Comparison) -> SeriesPage:
    """Runs without a plan are named in the table of runs and drawn nowhere."""
    finished = comparison.finished
    pictures: list[Picture] = []
    notes = list(comparison.warnings)
    by_budget = {runs[0].budget: runs for runs in _grouped(finished, "budget")}
    if finished:
        first = finished[0]
        images = f"{first.test_images} {first.accuracy_on}"
        notes.append(
            f"Original: {first.metric} {percent(first.original_top1)} on {images}. "
            "Tables: mean +- standard deviation over seeds."
        )
        accuracy = f"{first.metric} on {images}"
        pictures.append(_front(finished, accuracy))
        for budget, runs in by_budget.items():
            pictures += [_bars(runs, budget, accuracy), _keep_ratios(runs, budget)]
    further = comparison.further_table()
    tables = (
        comparison.table(), *([further] if further.rows else []), _runs(comparison),
        *(_kept_table(runs, budget) for budget, runs in by_budget.items()),
    )  # fmt: skip
    return SeriesPage(f"Comparison: {comparison.title}", tuple(notes), tuple(pictures), tables)


def _front(runs: Sequence[FinishedRun], accuracy: str) -> Picture:
    """Over measured ms where every run was measured, over predicted ms without the device, else over MACs."""
    if all(run.measured_ms is not None for run in runs):
        key, full, unit, scale = "measured_ms", "original_ms", "original's p50 / measured speed-up, ms", 1.0
    elif all(run.offline for run in runs):
        key, full, unit, scale = "predicted_cost", "original_ms", "predicted p50, ms, not measured", 1.0
    else:
        key, full, unit, scale = "macs", "original_macs", "MACs of one image, millions", 1e-6
    stage, last = next(
        (name, key) for name, key in reversed(STAGES.items()) if all(getattr(run, key) is not None for run in runs)
    )
    points = [(run.policy, run.budget, getattr(run, key) * scale, getattr(run, last)) for run in runs]
    # Next to the plans of one budget, the original would leave them no room.
    several = len({run.budget for run in runs}) > 1
    whole = getattr(runs[0], full)
    original = (whole * scale, runs[0].original_top1) if whole and several else None
    caption = (
        f"Accuracy of the {stage} networks. Markers: means over seeds, joined through the budgets; small dots: seeds; "
        "the grey steps: what no other policy beats in both. Thin lines and the grey band of the original: 95 % "
        "intervals for that number of images; all are on the same images, so differences are surer than these."
    )
    chart = front(points, original, unit=unit, accuracy=accuracy, images=_counted_images(runs))
    return Picture("compare-front", "Accuracy against cost", caption, chart)


def _counted_images(runs: Sequence[FinishedRun]) -> int | None:
    """The images that an accuracy is a share of; None for other metrics."""
    return runs[0].test_images if runs[0].metric == TOP1 else None


def _bars(runs: Sequence[FinishedRun], budget: str, accuracy: str) -> Picture:
    values = [
        (run.policy, stage, top1)
        for run in runs
        for stage, key in STAGES.items()
        if (top1 := getattr(run, key)) is not None
    ]
    return Picture(
        run_name("compare-accuracy", budget), f"Accuracy before and after fine-tuning, {budget}",
        "Bars: means over seeds; lines on them: from the lowest to the highest seed, in brackets at the right. Grey: "
        "the 95 % interval of the original for that number of images.",
        accuracy_bars(values, runs[0].original_top1, accuracy=accuracy, images=_counted_images(runs)),
    )  # fmt: skip


def _keep_ratios(runs: Sequence[FinishedRun], budget: str) -> Picture:
    kinds = runs[0].group_kinds
    values = [(run.policy, group, run.keep_ratios[group]) for run in runs for group in kinds]
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


def _kept_table(runs: Sequence[FinishedRun], budget: str) -> Section:
    by_policy = {mine[0].policy: mine for mine in _grouped(runs, "policy")}
    rows = tuple(
        (name, *(f"{np.mean([run.keep_ratios[name] for run in mine]):.2f}" for mine in by_policy.values()))
        for name in runs[0].group_kinds
    )
    return Section("kept-ratios", f"Mean keep ratios, {budget}", ("channel group", *by_policy), rows, "")


def _runs(comparison: Comparison) -> Section:
    rows = []
    for run in comparison.runs:
        cells = [NOTHING] * 7
        if isinstance(run, FinishedRun):
            accuracies = (percent(getattr(run, key)) for key in STAGES.values())
            cells = [number(run.reward), *accuracies, f"{run.macs / 1e6:.2f} M", number(run.measured_ms)]
            cells += [f"{run.cpu_s:.0f}"]
        remark = run.note if isinstance(run, FinishedRun) else run.error
        rows.append((run.run, run.budget, run.policy, str(run.seed), *cells, remark))
    headers = ("run", "budget", "policy", "seed", "reward", *STAGES, "MACs", "by speed-up, ms", "CPU s", "note")
    return Section(
        "runs", "Runs: where every number comes from", headers, tuple(rows), "No runs.", link="runs/{}/search.json"
    )


def _grouped(runs: Sequence[FinishedRun], *keys: str) -> list[list[FinishedRun]]:
    """Runs with the same values of `keys`, in order of first use."""
    groups: dict[tuple[Any, ...], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run, key) for key in keys), []).append(run)
    return list(groups.values())


def compare_policies(
    space: Workspace, settings: Settings, wanted: CompareConfig, *, network: Network | None = None,
    progress: Progress = silent, untrained: bool = False,
) -> Comparison:  # fmt: skip
    """Runs what is missing, each in its own run folder, and puts all results side by side.

    A run that finds no plan within the budget is listed with its error; the others go on. The workspace's last run
    stays what it is. `network`: the one that the settings name, where it is open already.
    """
    prepared = Preparations(network)
    searches = wanted.searches()
    runs = []
    for position, (search, seed) in enumerate(searches):
        place = place_part(settings, search.unit)
        # MACs and parameters are counted without a device in any case.
        is_offline = settings.offline and search.unit == "ms"
        parts = (Path(settings.model).stem, precision_part(settings.precision), place, "offline" if is_offline else "")
        name = compared_run(parts, search, seed)
        progress("compare", position, len(searches), name)
        runs.append(_run(space, replace(settings, seed=seed), search, wanted, name, prepared, progress, untrained))
    progress("compare", len(searches), len(searches))
    space.remember(settings)
    title = f"{settings.model}, {wanted.search.episodes} episodes, reward {wanted.search.reward}"
    comparison = Comparison(tuple(runs), title)
    write_json(space.folder / "compare.json", comparison.document(), format_version=FORMAT_VERSION)
    write_text(space.folder / "compare.csv", comparison.csv())
    write_series_page(comparison_page(comparison), space.folder / "compare.html")
    return comparison


def compared_run(parts: Sequence[str], search: SearchConfig, seed: int) -> str:
    """The run folder's name: everything that distinguishes two runs of one comparison, or of two.

    `parts`: of network and device.
    """
    policy, _, file = search.policy.partition(":")
    granularity = "" if search.granularity == "channel" else search.granularity
    reward = "" if search.reward == "fidelity" else search.reward
    return run_name(
        "compare", *parts, search.asked, granularity, policy, Path(file).stem, f"e{search.episodes}", reward, f"s{seed}"
    )


def _run(
    space: Workspace, settings: Settings, search: SearchConfig, wanted: CompareConfig, name: str,
    prepared: Preparations, progress: Progress, untrained: bool,
) -> FinishedRun | FailedRun:  # fmt: skip
    folder = Run(space.runs / name)
    if folder.find(SearchRecord) is not None:
        weights = weights_sha256(prepared.network(space, settings).module)
        used = recorded(space, settings)[1] if settings.offline and search.unit == "ms" else settings
        _check_same(name, folder.load(SettingsRecord), SettingsRecord(used, search, weights))
    else:
        try:
            search_plan(
                space, settings, search, run=name, progress=progress, prepared=prepared, is_compared=True,
                untrained=untrained,
            )  # fmt: skip
        except (BudgetNotMet, UnreachableBudget) as error:
            return FailedRun(name, search.asked, search.policy, settings.seed, search.unit, error.message)
    if wanted.finetune_epochs and not _is_finetuned(folder, wanted.finetune_epochs):
        finetune_run(
            space, run=name, epochs=wanted.finetune_epochs, learning_rate=wanted.finetune_learning_rate,
            batch_size=SMALL_BATCH, progress=progress,
        )  # fmt: skip
    return finished_run(folder)


def _check_same(run: str, before: SettingsRecord, now: SettingsRecord) -> None:
    """Raises InvalidInput, naming what differs, when a finished run is not the one that would be made now."""
    if before.weights_sha256 != now.weights_sha256:
        raise InvalidInput(
            f"run {run} was made with other weights of the original network",
            next_step="compare in another --workspace, or delete that run",
        )
    free = {"workers", "waive"} if now.search.unit == "ms" else {"workers", "waive", "offline", "conditions"}
    old = {**asdict(before.settings), **asdict(before.search)}
    for key, value in {**asdict(now.settings), **asdict(now.search)}.items():
        if key not in free and old[key] != value:
            raise InvalidInput(
                f"run {run} was made with {key} {old[key]!r}, not {value!r}",
                next_step="compare in another workspace, or delete that run",
            )


def _is_finetuned(folder: Run, epochs: int) -> bool:
    """Raises InvalidInput when it was for another number of epochs."""
    before = folder.find(FinetuneRecord)
    if before is not None and before.epochs != epochs:
        raise InvalidInput(
            f"run {folder.name} was fine-tuned for {before.epochs} epochs, not {epochs}",
            next_step=f"pass --finetune-epochs {before.epochs}, or delete the run's finetune.json",
        )
    return before is not None


def finished_run(folder: Run) -> FinishedRun:
    """The numbers of one finished run, all of them read from its folder."""
    begun, search, finetuned = folder.load(SettingsRecord), folder.search(), folder.find(FinetuneRecord)
    rewards = [row.reward for row in EpisodeLog(folder.folder / "episodes.csv").rows if row.is_episode]
    ratios = search.plan.keep_ratios
    return FinishedRun(
        run=folder.name,
        budget=begun.search.asked,
        policy=begun.search.policy,
        seed=begun.settings.seed,
        unit=begun.search.unit,
        offline=search.offline,
        note=not_measured(search.conditions.device) if search.offline and search.conditions else "",
        further_budgets=search.budgets[1:],
        reward=search.reward,
        original_top1=search.test_top1["original"],
        one_shot_top1=search.test_top1["one-shot"],
        refitted_top1=search.test_top1["refitted"],
        finetuned_top1=finetuned.test_top1 if finetuned is not None else None,
        macs=search.macs,
        parameters=search.parameters,
        predicted_cost=search.predicted_cost,
        measured_ms=search.measured_ms,
        evaluations=search.evaluations,
        episodes=search.episodes,
        cpu_s=sum(seconds for part, seconds in search.cpu_s.items() if part != "latency"),
        set_up_cpu_s=search.cpu_s["set_up"],
        cpu_s_by_part=search.cpu_s,
        best_rewards={cut: max(rewards[:cut]) for cut in CUTS if len(rewards) >= cut},
        keep_ratios=ratios,
        group_kinds={name: search.group_kinds.get(name, "") for name in ratios},
        original_macs=search.original_macs,
        original_ms=search.budget.reference_ms or None,
        test_images=search.test_images,
        accuracy_on=search.accuracy_on,
        metric=search.metric,
    )
