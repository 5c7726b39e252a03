"""The details of a report: what a search keeps of network and latency table, and what is read from a run's steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.report.details import (
    EpisodePoint,
    EpochAccuracy,
    KeptGroup,
    LayerRow,
    PredictionPoint,
    Predictions,
)
from amc_mobile.report.document import from_document, to_document
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.workflows.latency_model import LatencyModel
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.runs import Run

DETAILS = "details"  # of a run's folder


@dataclass(frozen=True)
class SearchDetails:
    """What a search keeps for reports, which then need neither network nor latency table.

    `profiled_p50_ms`: of the original, as the latency table has it; None where that knows no whole models.
    """

    layers: tuple[LayerRow, ...] = ()
    predictions: Predictions = field(default_factory=Predictions)
    kept_groups: tuple[KeptGroup, ...] = ()
    profiled_p50_ms: float | None = None


def keep_details(
    run: Run, network: Network, latency: LatencyModel | None, widths: NDArray[np.int64], *, granularity: str
) -> None:
    """Writes what a report needs besides the records of the steps. `widths`: of the plan that the search chose."""
    kept = () if granularity == "weight" else network.groups.kept_groups
    groups = tuple(KeptGroup(group.name, group.channels, group.reason) for group in kept)
    details = SearchDetails(kept_groups=groups)
    if latency is not None:
        # A table of another tool has no whole models.
        original_ms = None if latency.conditions.is_foreign else latency.profiled_p50_ms
        details = SearchDetails(
            layers(latency, network.groups.sizes, widths), predictions(latency), groups, original_ms
        )
    run.write(DETAILS, to_document(details))


def details(run: Run) -> SearchDetails:
    """Raises InvalidInput for a run of a version that did not keep them."""
    again = "run the same `amc-mobile search` again: its episodes are kept"
    if not run.has(DETAILS):
        raise InvalidInput(f"run {run.folder.name} was searched by an older version", next_step=again)
    document = run.read(DETAILS)
    document.pop("format_version", None)
    try:
        return from_document(SearchDetails, document, DETAILS)
    except InvalidInput as error:
        raise CorruptFile(run.folder / f"{DETAILS}.json", error.message, next_step=again) from error


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
        axis = -1 if latency.template.runtime == "tflite" else 1
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
    tuned = run.finetuned() or {}
    if not tuned.get("epoch_reports"):
        return ()
    later = (EpochAccuracy(report["epoch"], report["validation_top1"]) for report in tuned["epoch_reports"])
    return (EpochAccuracy(0, tuned["held_out_top1_before"]), *later)
