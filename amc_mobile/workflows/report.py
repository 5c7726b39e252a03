"""Collect what a run's steps left behind into one report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from amc_mobile import __version__
from amc_mobile.data.split import SplitRecord
from amc_mobile.device.phone_state import WIDE_BAND
from amc_mobile.errors import InvalidConfig, InvalidInput, ToleranceExceeded
from amc_mobile.formats import BY_RUNTIME, FLOAT16, FLOAT32, INT8
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.calibration import USABLE_BAND
from amc_mobile.latency.gate import OPEN, Gate
from amc_mobile.latency.measurement import FEW_PASSES, RESAMPLES, ModelMeasurement, PairMeasurement, interval
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.probe import KernelType, stored_steps
from amc_mobile.report.content import FORMAT_VERSION as REPORT_VERSION
from amc_mobile.report.content import (
    Accuracy,
    AskedBudget,
    DataFacts,
    EpisodePoint,
    EpochAccuracy,
    FileRow,
    FurtherBudget,
    Latency,
    LayerRow,
    ModelColumn,
    ParityRow,
    PassRow,
    PredictionPoint,
    Predictions,
    Ratio,
    Report,
    Stage,
)
from amc_mobile.report.pages import render_text, report_document, write_report
from amc_mobile.report.tables import (
    NOTHING,
    accuracy,
    count,
    number,
    p50_with_interval,
    percent,
    points,
    printable,
    render_rows,
)
from amc_mobile.report.tables import change as relative
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.store import from_document, read_json
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.runs import (
    BudgetRecord,
    ExportedFile,
    ExportRecord,
    Run,
    SearchDetails,
    SearchRecord,
    SettingsRecord,
)
from amc_mobile.workflows.workspace import Settings, Workspace

if TYPE_CHECKING:
    import pandas as pd

FILES: tuple[Literal["original", "pruned"], ...] = ("original", "pruned")
ORIGINAL_WEIGHTS, TEST_IMAGES = "weights of the original", "test images"


def keep_details(
    run: Run, network: Network, latency: LatencyModel | None, widths: NDArray[np.int64], *, granularity: str
) -> None:
    """Writes what a report needs besides the records of the steps. `widths`: of the plan that the search chose."""
    groups = () if granularity == "weight" else network.groups.kept_groups
    details = SearchDetails(kept_groups=groups)
    if latency is not None:
        # A table of another tool has no whole models.
        original_ms = None if latency.conditions.is_foreign else latency.profiled_p50_ms
        proposed = np.array([row.widths for row in EpisodeLog(run.folder / "episodes.csv").rows], dtype=np.int64)
        details = SearchDetails(
            layers(latency, network.groups.sizes, widths), predictions(latency), groups, original_ms,
            tuple(latency.p50_ms(proposed).tolist()) if len(proposed) else (),
        )  # fmt: skip
    run.save(details)


def episodes(run: Run, chosen: int, details: SearchDetails, scale: float) -> tuple[EpisodePoint, ...]:
    """`chosen`: the episode that found the plan. `scale`: of the ms."""
    rows, costs = EpisodeLog(run.folder / "episodes.csv").rows, details.episodes_p50_ms
    if len(costs) != len(rows):  # of an older version: the log has what was held against the budget, with the band
        costs = tuple(row.predicted_cost / (1 + (details.predictions.band or 0.0)) for row in rows)
    return tuple(
        EpisodePoint(
            row.episode, row.reward, cost * scale, _scaled(row.measured_ms, scale), row.policy,
            is_best=row.episode == chosen,
        )
        for row, cost in zip(rows, costs, strict=True)
    )  # fmt: skip


def _scaled(ms: float | None, scale: float) -> float | None:
    return None if ms is None else ms * scale


def layers(latency: LatencyModel, full: NDArray[np.int64], widths: NDArray[np.int64]) -> tuple[LayerRow, ...]:
    """The kernels of the original, at widths `full`, and those of a plan."""
    steps = _channel_steps(latency)
    before, after = latency.predictor.site_ms(full), latency.predictor.site_ms(widths)
    rows = []
    for site in latency.template.sites:
        old, new = latency.template.kernel_at(site.index, full), latency.template.kernel_at(site.index, widths)
        axis = BY_RUNTIME[latency.template.runtime].channel_axis
        shapes = [k.operators[-1].outputs[0] for k in (old, new)]
        channels = [int(shape[axis]) if len(shape) > 1 else None for shape in shapes]
        rows.append(
            LayerRow(
                site.name, old.label, new.label, channels[0], channels[1], before[site.index], after[site.index],
                old.macs, new.macs, steps(new), latency.template.node_keys(site),
            )
        )  # fmt: skip
    return tuple(rows)


def _channel_steps(latency: LatencyModel) -> Callable[[Kernel], int | None]:
    """Up to which multiple of output channels a kernel is as fast, where a probe or the profile has shown steps."""
    probed = {
        found.kernel_type: max(found.tile, found.aligned)
        for found in stored_steps(latency.table, latency.conditions)
        if found.axis != "in"
    }
    fitted = getattr(latency.predictor, "steps", {})  # the table of another tool shows none

    def step(kernel: Kernel) -> int | None:
        if (found := probed.get(KernelType.of(kernel))) is not None:
            return found
        steps = fitted.get(kernel.operator_type)
        return None if steps is None else max(steps.tile_out, steps.aligned)

    return step


def predictions(latency: LatencyModel) -> Predictions:
    """Of all whole models measured, those of the search too."""
    points, quick = latency.points(), any(latency.lacking())
    if not points:
        return Predictions((), latency.calibration.band, latency.calibration.loo_mape, quick=quick)
    predicted = latency.p50_ms(np.array([point.widths for point in points], dtype=np.int64))
    shown = tuple(
        PredictionPoint(float(p), point.p50_ms, "search" if point.searched else "calibration")
        for p, point in zip(predicted, points, strict=True)
    )
    fitted = latency.calibration
    return Predictions(shown, fitted.band, fitted.loo_mape, fitted.terms, quick=quick)


def finetuning(run: Run) -> tuple[EpochAccuracy, ...]:
    """Empty before fine-tuning, and for runs of versions that did not look at the held-out images."""
    tuned = run.finetuned()
    if tuned is None:
        return ()
    later = [
        EpochAccuracy(report.epoch, report.validation_top1, tuned.held_out_images)
        for report in tuned.epoch_reports
        if report.validation_top1 is not None
    ]
    return (EpochAccuracy(0, tuned.held_out_top1_before, tuned.held_out_images), *later) if later else ()


@dataclass(frozen=True)
class ReportResult:
    report: Report
    paths: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        return report_document(self.report)

    def text(self) -> str:
        return render_text(self.report) + "\n" + "\n".join(f"wrote {path}" for path in self.paths)


def report_run(space: Workspace, *, run: str | None) -> ReportResult:
    """Writes the files of a report into the run's folder. Steps that have not run are left out."""
    folder = Run(space.run_folder(run))
    report = _report(folder)
    return ReportResult(report, write_report(report, folder.folder))


def _report(folder: Run) -> Report:
    """Reads the run's records alone: network, images, latency table and device may be gone."""
    settings, search, details, split = (
        folder.settings(), folder.search(), folder.load(SearchDetails), folder.load(SplitRecord)
    )  # fmt: skip
    written = folder.find(ExportRecord)
    outdated = written is not None and folder.is_outdated(written)
    export = None if outdated else written  # files of other weights prove nothing of the network as it is
    file = _judged_file(export)
    pair = file.pair if file else None
    exported = export.precision if export else None
    split_name = search.accuracy_on.removesuffix(" images")
    seen = partial(Accuracy, images=search.test_images, split=split_name, metric=search.metric)
    unit, searched_limit = search.budget.unit, search.budget.limit
    limit = export.gate.limit if export and unit == "ms" and export.gate.limit is not None else searched_limit
    budget = AskedBudget(
        unit, limit, f"--{search.budgets[0].asked}", _own_gate(search, export),
        searched_limit=searched_limit if searched_limit != limit else None,
    )  # fmt: skip
    scale = budget.search_scale
    # Of another precision than the search's nothing was predicted.
    is_predicted = unit == "ms" and exported in (None, settings.precision)
    predicted_ms = search.predicted_cost * scale if is_predicted else None
    predictions = replace(
        details.predictions,
        points=_points(details.predictions, pair, predicted_ms, scale),
        drift=_drift(details, search, file, settings.precision),
    )
    offline = pair is None and search.offline
    if pair:
        conditions = pair.after.conditions.to_document()
    else:
        conditions = search.conditions.to_document() if offline and search.conditions else {}
    return Report(
        model=_described(replace(settings, precision=exported or settings.precision)),
        run=folder.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        program_version=__version__,
        budget=budget,
        original=ModelColumn(
            latency=_latency(pair.before) if pair else None,
            macs=int(search.original_macs),
            parameters=int(search.original_parameters),
            file_bytes=file.original_bytes if file else None,
            accuracy=seen(search.test_top1["original"]),
        ),
        pruned=ModelColumn(
            latency=_latency(pair.after) if pair else None,
            predicted_ms=predicted_ms,
            macs=int(search.macs),
            parameters=int(search.parameters),
            file_bytes=file.bytes if file else None,
            accuracy=seen(_pruned_top1(folder, search, export, file)),
        ),
        speedup=Ratio(pair.speedup, *pair.speedup_interval) if pair else None,
        stages=_stages(folder, search, written, seen, outdated=outdated),
        layers=details.layers,
        episodes=episodes(folder, search.episode, details, scale),
        finetuning=finetuning(folder),
        predictions=predictions,
        conditions=conditions,
        flags=(*_flags(pair, export), *((WIDE_BAND,) if (predictions.band or 0.0) > USABLE_BAND else ())),
        data=DataFacts(split.source, split.sizes),
        kept_groups=details.kept_groups,
        files=_files(written, outdated=outdated),
        offline=offline,
        accuracy_kept=folder.accuracy_kept(),
        further_budgets=_further_budgets(search, export),
        settings={
            **asdict(settings), **{k: v for k, v in asdict(folder.search_config()).items() if v is not None}
        },
        passes=_passes(pair),
        commands=_commands(folder, settings, written),
        hashes={
            ORIGINAL_WEIGHTS: folder.load(SettingsRecord).weights_sha256,
            "training images": split.train_sha256, TEST_IMAGES: split.test_sha256,
        },
    )  # fmt: skip


def _points(
    kept: Predictions, pair: PairMeasurement | None, predicted_ms: float | None, scale: float
) -> tuple[PredictionPoint, ...]:
    """Those of the search, on the scale of the page, and the exported file."""
    points = [replace(p, predicted_ms=p.predicted_ms * scale, measured_ms=p.measured_ms * scale) for p in kept.points]
    if pair is not None and predicted_ms is not None:
        points.append(PredictionPoint(predicted_ms, pair.after.p50_ms, "final"))
    return tuple(points)


def _passes(pair: PairMeasurement | None) -> tuple[PassRow, ...]:
    """Of every round the original, then the pruned file."""
    rounds = zip(pair.before.passes, pair.after.passes, strict=True) if pair else ()
    return tuple(
        PassRow(
            file, one.samples_ms, one.busy, one.record.load_ms, one.record.first_ms, one.record.peak_rss_kb,
            (one.record.clock_mhz_ms or 0.0) / one.record.clock_ms if one.record.clock_ms else None,
            one.record.switches,
        )
        for both in rounds
        for file, one in zip(FILES, both, strict=True)
    )  # fmt: skip


OF_PROFILE = (
    "model", "width_multiplier", "input_size", "checkpoint", "accuracy", "loss", "data", "device", "runtime", "threads",
    "precision", "clock_mode", "waive", "table", "workers",
)  # fmt: skip
FLAGS = {"width_multiplier": "width"}  # of other settings the name itself
PRECISION_FLAGS = {FLOAT32: "--fp32", INT8: "--int8", FLOAT16: "--fp16"}


def _commands(run: Run, settings: Settings, export: ExportRecord | None) -> tuple[str, ...]:
    """The commands that make the run again in an empty workspace, from the same weights; without a phone's serial."""
    search, tuned = run.search_config(), run.finetuned()
    usual = Settings()
    changed = {k: v for k, v in asdict(settings).items() if v != getattr(usual, k) and k != "serial"}
    known = {key: changed.pop(key) for key in OF_PROFILE if key in changed}
    asked = {f.name: v for f in fields(search) if (v := getattr(search, f.name)) != f.default and v is not None}
    if search.unit == "ms" and not settings.offline:
        lines = [("profile", known), ("search", {**asked, **changed})]
    else:
        lines = [("search", {**known, **asked, **changed})]
    if tuned is not None:
        lines.append(("finetune", {"epochs": tuned.epochs, "learning_rate": tuned.learning_rate,
                                   "batch_size": tuned.batch_size, "ema": tuned.ema_decay or None}))  # fmt: skip
    if export is not None:
        lines.append(("export", {file.format: True for file in export.files}))
    return tuple(_command(name, flags) for name, flags in [*lines, ("report", {})])


def _command(name: str, flags: Mapping[str, object]) -> str:
    words = ["amc-mobile", name]
    for key, value in flags.items():
        flag = f"--{FLAGS.get(key, key).replace('_', '-')}"
        if key == "precision":
            words.append(PRECISION_FLAGS[str(value)])
        elif value is True:
            words.append(flag)
        elif key in ("waive", "also"):
            words += [part for one in str(value).split(",") for part in (flag, one)]
        elif value is not None:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _drift(details: SearchDetails, search: SearchRecord, file: ExportedFile | None, precision: str) -> float | None:
    """How many times as long as at the profile the original takes, as last seen; None where it was not measured."""
    first = search.budgets[0]
    is_alike = file is not None and (file.precision, file.runtime) == (precision, first.runtime)
    if is_alike and file and file.pair and details.profiled_p50_ms:
        return file.pair.before.p50_ms / details.profiled_p50_ms
    return first.drift_at_plan


def _own_gate(search: SearchRecord, export: ExportRecord | None) -> Gate:
    """As the export stored it; counts need no export."""
    if export is not None:
        gate = export.gate
        return Gate(gate.own_passed, gate.cost, gate.limit, gate.own_text, gate.attempts)
    return search.budgets[0].count_gate() if search.budget.unit != "ms" else OPEN


def _further_budgets(search: SearchRecord, export: ExportRecord | None) -> tuple[FurtherBudget, ...]:
    stored = {gate.asked: gate for gate in (export.gate.further if export else ())}

    def gate(budget: BudgetRecord) -> Gate:
        if found := stored.get(budget.asked):
            return Gate(found.passed, found.cost, found.limit, found.text, found.attempts)
        return OPEN if budget.unit == "ms" else budget.count_gate()

    return tuple(
        FurtherBudget(f"--{b.asked}", b.unit, b.limit, b.device, b.predicted_cost, gate(b)) for b in search.budgets[1:]
    )


def _flags(pair: PairMeasurement | None, export: ExportRecord | None) -> tuple[str, ...]:
    """Of both files of every pair that a budget was held against."""
    pairs = [pair, *(gate.pair for gate in (export.gate.further if export else ()))]
    return tuple(dict.fromkeys(flag for p in pairs if p for model in (p.before, p.after) for flag in model.flags))


def _described(settings: Settings) -> str:
    size = f", {settings.input_size} px" if settings.input_size else ""
    precision = f", {settings.precision}" if settings.precision != FLOAT32 else ""
    return f"{settings.model} (width {settings.width_multiplier:g}{size}{precision})"


def _pruned_top1(run: Run, search: SearchRecord, export: ExportRecord | None, file: ExportedFile | None) -> float:
    """Of a quantised file the file's own: quantising costs accuracy. Before an export, of the weights it would take."""
    if export is None:
        tuned = run.finetuned()
        return tuned.test_top1 if tuned is not None and tuned.kept else search.test_top1["refitted"]
    return file.test_top1 if file and file.float32 else export.test_top1


def _judged_file(export: ExportRecord | None) -> ExportedFile | None:
    """The exported file that the budget speaks of, else any that was measured."""
    measured = [file for file in (export.files if export else ()) if file.pair]
    return next((file for file in measured if export and file.runtime == export.runtime), next(iter(measured), None))


def _latency(m: ModelMeasurement) -> Latency:
    runs = sum(len(samples) for samples in m.samples_ms)
    return Latency(
        m.p50_ms, m.p90_ms, m.ci_low_ms, m.ci_high_ms, runs, len(m.passes), m.load_ms, m.first_ms, m.peak_rss_kb,
        m.mean_mhz, m.top_clock_share, m.switches_per_sample, m.screen or None,
    )  # fmt: skip


def _stages(
    run: Run, search: SearchRecord, export: ExportRecord | None, seen: Callable[[float], Accuracy], *, outdated: bool
) -> tuple[Stage, ...]:
    notes = [
        "not kept: it lost fidelity on the reward images; the one-shot network is"
        if search.refit.kept != "refitted"
        else "",
        search.max_loss_text() if search.accuracy_kept is not None else "",
    ]
    stages = [
        Stage("original", seen(search.test_top1["original"])),
        Stage("pruned, one shot", seen(search.test_top1["one-shot"])),
        Stage("refitted", seen(search.test_top1["refitted"]), note="; ".join(filter(None, notes))),
    ]
    if (tuned := run.finetuned()) is not None:
        note = f"{tuned.epochs} epochs, distilled" + ("" if tuned.kept else "; not kept")
        stages.append(Stage("fine-tuned", seen(tuned.test_top1), note=note))
    age = "outdated: written before the present weights" if outdated else ""
    for file in export.files if export else ():
        check = ParityRow(file.parity.max_abs, file.parity.top1_agreement, file.parity.images)
        name = file.format
        if file.float32:
            stages.append(Stage(f"{name} {FLOAT32}", seen(file.float32.test_top1), note=age))
            name = f"{name} {file.precision}"
        stages.append(Stage(name, seen(file.test_top1), check, note=age))
    return tuple(stages)


def _files(export: ExportRecord | None, *, outdated: bool) -> tuple[FileRow, ...]:
    return tuple(
        FileRow(
            Path(file.path).name, file.sha256, file.bytes, file.runtime,
            _latency(file.pair.after) if file.pair else None, file.precision,
            file.sqnr_db, file.not_delegated, outdated, file.problem,
        )
        for file in (export.files if export else ())
    )  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Of one run against another with its 95 % interval: relative for a latency, a share of images for accuracies."""

    value: float
    ci_low: float
    ci_high: float

    def exceeds(self, tolerance: float) -> bool:
        """Whether it is above `tolerance`, and above 0 beyond chance."""
        return self.value > tolerance and self.ci_low > 0


@dataclass(frozen=True)
class ReportComparison:
    """How a run differs from an earlier one. `unlike`: what makes their numbers hard to compare."""

    before: Report
    after: Report
    tolerance: float
    latency: Change
    is_paired: bool  # each against the same original, in the same rounds: what the device did meanwhile cancels out
    accuracy_loss: Change | None
    unlike: tuple[str, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """What is worse by more than the tolerance."""
        worse = [f"slower by {percent(self.latency.value)}"] if self.latency.exceeds(self.tolerance) else []
        if self.accuracy_loss is not None and self.accuracy_loss.exceeds(self.tolerance):
            worse.append(f"{100 * self.accuracy_loss.value:.1f} points of {self.after.metric} lost")
        return tuple(worse)

    def raise_if_worse(self) -> None:
        """Raises ToleranceExceeded (exit 3)."""
        if self.worse:
            raise ToleranceExceeded(
                f"{' and '.join(self.worse)}, more than --tolerance {self.tolerance:g}",
                next_step="look at the layers that changed, measure again on a quiet device, or raise --tolerance",
            )

    def layers(self) -> pd.DataFrame:
        """Kernels of both pruned networks by layer: ms, channels and the difference, the largest first."""
        import pandas as pd

        frames = []
        for report in (self.before, self.after):
            rows = [(row.name, row.channels_after, row.ms_after) for row in report.layers]
            frame = pd.DataFrame(rows, columns=["layer", "channels", "ms"])
            frames.append(frame.set_index(["layer", frame.groupby("layer").cumcount()]))  # some have several kernels
        both = frames[0].join(frames[1], how="outer", lsuffix="_before", rsuffix="_after", sort=False).droplevel(1)
        both["difference_ms"] = both["ms_after"] - both["ms_before"]
        return both.sort_values("difference_ms", key=abs, ascending=False, kind="stable", na_position="last")

    def document(self) -> dict[str, Any]:
        layers = self.layers().reset_index().astype(object)
        return {
            "before": self.before.run, "after": self.after.run, "tolerance": self.tolerance,
            "verdict": self.status, "worse": list(self.worse), "unlike": list(self.unlike), "is_paired": self.is_paired,
            "p50_change": asdict(self.latency),
            "accuracy_loss": asdict(self.accuracy_loss) if self.accuracy_loss is not None else None,
            "layers": layers.where(layers.notna(), None).to_dict("records"),
        }  # fmt: skip

    @property
    def status(self) -> Literal["WORSE", "BETTER", "WITHIN TOLERANCE"]:
        if self.worse:
            return "WORSE"
        return "BETTER" if self.latency.ci_high < 0 else "WITHIN TOLERANCE"

    def text(self) -> str:
        change = self.latency
        how = "each against the original in its own rounds" if self.is_paired else "not paired: the originals differ"
        lines = [
            f"{self.status}  {self.after.run} against {self.before.run}: p50 {100 * change.value:+.1f} % (95 % CI "
            f"{100 * change.ci_low:+.1f} to {100 * change.ci_high:+.1f}; {how}), tolerated {percent(self.tolerance)}",
            *(f"Unlike: {what}" for what in self.unlike),
            "", render_rows(("", "before", "after", "change"), self._rows()),
        ]  # fmt: skip
        changed = self.layers().query("difference_ms != 0").dropna().head(MOST_CHANGED_LAYERS)
        if len(changed):
            rows = [
                (str(name), f"{row.channels_before:.0f} -> {row.channels_after:.0f}", number(row.ms_before),
                 number(row.ms_after), f"{row.difference_ms:+.4f}")
                for name, row in changed.iterrows()
            ]  # fmt: skip
            headers = ("layer", "channels", "ms before", "ms after", "difference")
            lines += ["", "Layers that changed most, in the latency table", render_rows(headers, rows)]
        return "\n".join(printable(line) if line and "\n" not in line else line for line in lines)

    def _rows(self) -> list[tuple[str, ...]]:
        columns = [report.pruned or ModelColumn() for report in (self.before, self.after)]
        latencies = [column.latency for column in columns]
        accuracies = [column.accuracy for column in columns]
        p50s = [latency.p50_ms if latency else None for latency in latencies]
        speedups = [f"{r.speedup.value:.2f}x" if r.speedup else NOTHING for r in (self.before, self.after)]
        return [
            ("latency p50", *map(p50_with_interval, latencies), relative(*p50s)),
            ("speed-up", *speedups, NOTHING),
            *(
                (name, *map(count, values), relative(*values))
                for name in ("macs", "parameters")
                for values in [[getattr(column, name) for column in columns]]
            ),
            (self.after.metric, *map(accuracy, accuracies), points(*accuracies)),
        ]  # fmt: skip


MOST_CHANGED_LAYERS = 10


def compare_reports(
    space: Workspace, before: str, after: str, *, tolerance: float = 0.05, force: bool = False
) -> ReportComparison:
    """How run `after` differs from `before`: names of runs of the workspace, or paths of a report.json.

    Raises InvalidInput where one has no measured file, and where they were measured under unlike conditions or on other
    test images; `force`: such are compared all the same, and named.
    """
    if not 0 <= tolerance < 1:
        raise InvalidConfig(f"--tolerance {tolerance:g} is no share", next_step="for 5 %: --tolerance 0.05")
    reports = [_report_of(space, name) for name in (before, after)]
    for report in reports:
        if not report.passes:
            raise InvalidInput(
                f"run {report.run} has no measured file, or its report is of an older version",
                next_step="run `amc-mobile export` and `amc-mobile report` first",
            )
    unlike = _unlike(*reports)
    if unlike and not force:
        raise InvalidInput(
            f"runs {reports[0].run} and {reports[1].run} cannot be compared: {'; '.join(unlike)}",
            next_step="measure both on one device; or pass --force to compare them all the same",
        )
    weights = [report.hashes.get(ORIGINAL_WEIGHTS) for report in reports]
    is_paired = weights[0] is not None and weights[0] == weights[1]
    old, new = (report.pruned.accuracy if report.pruned else None for report in reports)
    loss = None
    if old is not None and new is not None:
        low, high = new.change_from(old) or (new.top1 - old.top1,) * 2
        loss = Change(old.top1 - new.top1, -high, -low)
    latency = _relative_change(*(_round_values(report, is_paired=is_paired) for report in reports))
    return ReportComparison(reports[0], reports[1], tolerance, latency, is_paired, loss, unlike)


def _report_of(space: Workspace, name: str) -> Report:
    path = Path(name)
    if path.suffix != ".json":
        return _report(Run(space.run_folder(name)))
    document = read_json(path, format_version=REPORT_VERSION)
    return from_document(
        Report, {k: v for k, v in document.items() if k not in ("format_version", "verdict")}, name,
        next_step="make it again: `amc-mobile report`",
    )  # fmt: skip


def _unlike(before: Report, after: Report) -> tuple[str, ...]:
    names = dict.fromkeys([*before.conditions, *after.conditions])
    conditions: list[tuple[str, object, object]] = [
        (name, before.conditions.get(name), after.conditions.get(name)) for name in names
    ]
    conditions.append((TEST_IMAGES, before.hashes.get(TEST_IMAGES), after.hashes.get(TEST_IMAGES)))
    conditions.append(("accuracy", before.metric, after.metric))
    return tuple(
        f"{name.replace('_', ' ')} {str(old)[:60]} and {str(new)[:60]}" for name, old, new in conditions if old != new
    )


def _round_values(report: Report, *, is_paired: bool) -> NDArray[np.float64]:
    """One value a round, of those on a device left alone where there are enough: ms, or the share of the original's."""
    rounds = list(zip(report.passes[::2], report.passes[1::2], strict=True))
    quiet = [pair for pair in rounds if not (pair[0].is_busy or pair[1].is_busy)]
    counted = quiet if len(quiet) >= FEW_PASSES else rounds
    medians = np.array([[np.median(one.samples_ms) for one in pair] for pair in counted])
    return medians[:, 1] / medians[:, 0] if is_paired else medians[:, 1]


def _relative_change(before: NDArray[np.float64], after: NDArray[np.float64]) -> Change:
    """Of the medians over the rounds; its interval by resampling the rounds of each run."""
    rng = np.random.default_rng(0)
    old, new = (np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1) for values in (before, after))
    return Change(float(np.median(after) / np.median(before)) - 1, *interval(new / old - 1))
