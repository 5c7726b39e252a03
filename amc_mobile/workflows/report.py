"""Collect what a run's steps left behind into one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile import __version__
from amc_mobile.device.phone_state import WIDE_BAND
from amc_mobile.formats import BY_RUNTIME, FLOAT32
from amc_mobile.latency.calibration import USABLE_BAND
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.model import LatencyModel
from amc_mobile.report.content import (
    TOP1,
    Accuracy,
    Attempt,
    Budget,
    DataFacts,
    EpisodePoint,
    EpochAccuracy,
    FileRow,
    FurtherBudget,
    Gate,
    Latency,
    LayerRow,
    ModelColumn,
    Parity,
    PredictionPoint,
    Predictions,
    Ratio,
    Report,
    Stage,
)
from amc_mobile.report.pages import render_text, report_document, write_report
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.workflows.export import count_gate
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.runs import ExportRecord, Run, SearchDetails
from amc_mobile.workflows.workspace import Settings, Workspace


def keep_details(
    run: Run, network: Network, latency: LatencyModel | None, widths: NDArray[np.int64], *, granularity: str
) -> None:
    """Writes what a report needs besides the records of the steps. `widths`: of the plan that the search chose."""
    groups = () if granularity == "weight" else network.groups.kept_groups
    details = SearchDetails(kept_groups=groups)
    if latency is not None:
        # A table of another tool has no whole models.
        original_ms = None if latency.conditions.is_foreign else latency.profiled_p50_ms
        details = SearchDetails(
            layers(latency, network.groups.sizes, widths), predictions(latency), groups, original_ms
        )
    run.save(details)


def episodes(run: Run, search: dict[str, Any]) -> tuple[EpisodePoint, ...]:
    """`search`: what the search step left."""
    return tuple(
        EpisodePoint(
            row.episode, row.reward, row.predicted_cost, row.measured_ms, row.policy,
            is_best=row.episode == search["episode"],
        )
        for row in EpisodeLog(run.folder / "episodes.csv").rows
    )  # fmt: skip


def layers(latency: LatencyModel, full: NDArray[np.int64], widths: NDArray[np.int64]) -> tuple[LayerRow, ...]:
    """The kernels of the original, at widths `full`, beside those of a plan."""
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
                old.macs, new.macs,
            )
        )  # fmt: skip
    return tuple(rows)


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
        EpochAccuracy(report.epoch, report.validation_top1)
        for report in tuned.epoch_reports
        if report.validation_top1 is not None
    ]
    return (EpochAccuracy(0, tuned.held_out_top1_before), *later) if later else ()


@dataclass(frozen=True)
class ReportResult:
    report: Report
    paths: tuple[Path, ...]

    def document(self) -> dict[str, Any]:
        return report_document(self.report)

    def text(self) -> str:
        return render_text(self.report) + "\n" + "\n".join(f"wrote {path}" for path in self.paths)


def report_run(space: Workspace, *, run: str | None) -> ReportResult:
    """Writes report.html, report.json and layers.csv into the run's folder. Steps that have not run are left out.

    Reads the run's records alone: network, images, latency table and device may be gone.
    """
    folder = Run(space.run_folder(run))
    settings, search = folder.settings(), folder.read("search")
    wanted = folder.read("settings")["search"]
    known = folder.load(SearchDetails)
    written = folder.read("export") if folder.has("export") else None
    outdated = written is not None and folder.is_outdated(folder.load(ExportRecord))
    export = None if outdated else written  # files of other weights prove nothing of the network as it is
    split = folder.read("split")
    judged = _judged(export)
    exported = export.get("precision", FLOAT32) if export else None
    predictions = replace(known.predictions, drift=_drift(known, search, export, settings))
    split_name = search.get("accuracy_on", "test images").removesuffix(" images")
    seen = partial(Accuracy, images=int(search["test_images"]), split=split_name, metric=search.get("metric", TOP1))
    budget = search["budget"]
    budgets = search.get("budgets", [])
    limit = float(export["gate"]["limit"] if export and budget["unit"] == "ms" else budget["limit"])
    pair = judged["pair"] if judged else None
    offline = pair is None and bool(search.get("offline"))
    report = Report(
        model=_described(replace(settings, precision=exported or settings.precision)),
        run=folder.folder.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        program_version=__version__,
        budget=Budget(
            budget["unit"],
            limit,
            f"--{budgets[0]['asked'] if budgets else budget['asked']}",
            _own_gate(search, export),
            searched_limit=float(budget["limit"]) if float(budget["limit"]) != limit else None,
        ),
        original=ModelColumn(
            latency=_latency(pair["before"]) if pair else None,
            macs=int(search["original_macs"]),
            parameters=int(search["original_parameters"]),
            file_bytes=judged["original_bytes"] if judged else None,
            accuracy=seen(search["test_top1"]["original"]),
        ),
        pruned=ModelColumn(
            latency=_latency(pair["after"]) if pair else None,
            # Of another precision than the search's nothing was predicted.
            predicted_ms=search["predicted_cost"]
            if budget["unit"] == "ms" and exported in (None, settings.precision)
            else None,
            macs=int(search["macs"]),
            parameters=int(search["parameters"]),
            file_bytes=judged["bytes"] if judged else None,
            accuracy=seen(_pruned_top1(folder, search, export, judged)),
        ),
        speedup=Ratio(pair["speedup"], pair["speedup_ci_low"], pair["speedup_ci_high"]) if pair else None,
        stages=_stages(folder, search, written, seen, outdated=outdated),
        layers=known.layers,
        episodes=episodes(folder, search),
        finetuning=finetuning(folder),
        predictions=predictions,
        conditions=pair["after"]["conditions"] if pair else search["conditions"] if offline else {},
        flags=(*_flags(pair, export), *((WIDE_BAND,) if (predictions.band or 0.0) > USABLE_BAND else ())),
        data=DataFacts(split["source"], split["sizes"]),
        kept_groups=known.kept_groups,
        files=_files(written, outdated=outdated),
        offline=offline,
        accuracy_kept=folder.accuracy_kept(),
        further_budgets=_further_budgets(budgets[1:], search, export),
        settings={**asdict(settings), **{k: v for k, v in wanted.items() if v is not None}},
    )
    return ReportResult(report, write_report(report, folder.folder))


def _drift(
    known: SearchDetails, search: dict[str, Any], export: dict[str, Any] | None, settings: Settings
) -> float | None:
    """How many times as long as at the profile the original takes, as last seen; None where it was not measured."""
    judged = _judged(export)
    is_alike = export is not None and export.get("precision", FLOAT32) == settings.precision
    rows = search.get("budgets", [])
    if judged and is_alike and known.profiled_p50_ms and rows and judged["runtime"] == rows[0]["runtime"]:
        return float(judged["pair"]["before"]["p50_ms"]) / known.profiled_p50_ms
    seen = rows[0].get("drift_at_plan") if rows else None
    return float(seen) if seen is not None else None


def _own_gate(search: dict[str, Any], export: dict[str, Any] | None) -> Gate:
    """As the export stored it; counts need no export."""
    if export is not None:
        gate = export["gate"]
        return _gate({**gate, "passed": gate["own_passed"], "text": gate.get("own_text", gate["text"])})
    return _gate(count_gate(search["budget"], search)) if search["budget"]["unit"] != "ms" else Gate()


def _further_budgets(
    rows: list[dict[str, Any]], search: dict[str, Any], export: dict[str, Any] | None
) -> tuple[FurtherBudget, ...]:
    stored = {gate["asked"]: _gate(gate) for gate in (export or {}).get("gate", {}).get("further", [])}
    return tuple(
        FurtherBudget(
            f"--{row['asked']}", row["unit"], float(row["limit"]), row["device"], row["predicted_cost"],
            stored.get(row["asked"], Gate() if row["unit"] == "ms" else _gate(count_gate(row, search))),
        )
        for row in rows
    )  # fmt: skip


def _gate(document: Mapping[str, Any]) -> Gate:
    attempts = tuple(
        Attempt(**{**attempt, "flags": tuple(attempt["flags"])}) for attempt in document.get("attempts", ())
    )
    return Gate(document["passed"], document["cost"], document["limit"], document["text"], attempts)


def _flags(pair: dict[str, Any] | None, export: dict[str, Any] | None) -> tuple[str, ...]:
    """Of both files of every pair that a budget was held against."""
    further = [gate["pair"] for gate in (export or {}).get("gate", {}).get("further", [])]
    files = [one[which] for one in (pair, *further) if one for which in ("before", "after")]
    return tuple(dict.fromkeys(flag for file in files for flag in file["flags"]))


def _described(settings: Settings) -> str:
    size = f", {settings.input_size} px" if settings.input_size else ""
    precision = f", {settings.precision}" if settings.precision != FLOAT32 else ""
    return f"{settings.model} (width {settings.width_multiplier:g}{size}{precision})"


def _pruned_top1(
    run: Run, search: dict[str, Any], export: dict[str, Any] | None, judged: dict[str, Any] | None
) -> float:
    """Of a quantised file the file's own: quantising costs accuracy. Before an export, of the weights it would take."""
    if export is None:
        tuned = run.finetuned()
        return tuned.test_top1 if tuned is not None and tuned.kept else float(search["test_top1"]["refitted"])
    quantised = judged is not None and judged.get("float32")
    return float(judged["test_top1"] if judged and quantised else export["test_top1"])


def _judged(export: dict[str, Any] | None) -> dict[str, Any] | None:
    """The exported file that the budget speaks of, else any that was measured."""
    measured = [file for file in (export or {}).get("files", []) if file["pair"]]
    searched_for = (export or {}).get("runtime")
    return next((f for f in measured if f["runtime"] == searched_for), measured[0] if measured else None)


def _latency(document: dict[str, Any]) -> Latency:
    m = ModelMeasurement.from_document(document)
    runs = sum(len(samples) for samples in m.samples_ms)
    return Latency(
        m.p50_ms, m.p90_ms, m.ci_low_ms, m.ci_high_ms, runs, len(m.passes), m.load_ms, m.first_ms, m.peak_rss_kb,
        m.mean_mhz, m.top_clock_share, m.switches_per_sample, m.screen or None,
    )  # fmt: skip


def _kept_as_scored(search: dict[str, Any]) -> str:
    refitted = search.get("refit", {}).get("kept", "refitted") == "refitted"
    return "" if refitted else "not kept: it lost fidelity on the reward images; the one-shot network is"


def _stages(
    run: Run,
    search: dict[str, Any],
    export: dict[str, Any] | None,
    seen: Callable[[float], Accuracy],
    *,
    outdated: bool,
) -> tuple[Stage, ...]:
    top1 = search["test_top1"]
    stages = [
        Stage("original", seen(top1["original"])),
        Stage("pruned, one shot", seen(top1["one-shot"])),
        Stage(
            "refitted",
            seen(top1["refitted"]),
            note="; ".join(filter(None, (_kept_as_scored(search), _promise(search)))),
        ),
    ]
    if (tuned := run.finetuned()) is not None:
        note = f"{tuned.epochs} epochs, distilled" + ("" if tuned.kept else "; not kept")
        stages.append(Stage("fine-tuned", seen(tuned.test_top1), note=note))
    age = "outdated: written before the present weights" if outdated else ""
    for file in (export or {}).get("files", []):
        p = file["parity"]
        check = Parity(p["max_abs"], p["top1_agreement"], p["images"])
        name = file["format"]
        if file.get("float32"):
            stages.append(Stage(f"{name} {FLOAT32}", seen(file["float32"]["test_top1"]), note=age))
            name = f"{name} {file['precision']}"
        stages.append(Stage(name, seen(file["test_top1"]), check, note=age))
    return tuple(stages)


def _promise(search: dict[str, Any]) -> str:
    """What became of --max-loss."""
    if search.get("accuracy_kept") is None:
        return ""
    kept = "kept" if search["accuracy_kept"] else "NOT KEPT"
    seen = ", which the checkpoint may have been trained on" if search.get("reward_images_may_be_seen") else ""
    return (
        f"--max-loss {search['max_loss']:g} {kept}: {search['refitted_reward_top1']:.1%} of the reward images{seen}; "
        f"original {search['original_reward_top1']:.1%}"
    )


def _files(export: dict[str, Any] | None, *, outdated: bool) -> tuple[FileRow, ...]:
    return tuple(
        FileRow(
            Path(file["path"]).name, file["sha256"], file["bytes"], file["runtime"],
            _latency(file["pair"]["after"]) if file["pair"] else None,
            file.get("precision", FLOAT32), file.get("sqnr_db"),
            None if file.get("not_delegated") is None else tuple(file["not_delegated"]), outdated,
            file.get("problem", ""),
        )
        for file in (export or {}).get("files", [])
    )  # fmt: skip
