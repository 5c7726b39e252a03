"""The details of a report, read from what a run's steps left behind and from the latency table."""

from __future__ import annotations

from typing import Any

import numpy as np

from amc_mobile.latency.whole_models import ModelPoint
from amc_mobile.report.details import EpisodePoint, EpochAccuracy, LayerRow, PredictionPoint, Predictions
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.workflows.latency_model import LatencyModel
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.runs import Run


def episodes(run: Run, search: dict[str, Any]) -> tuple[EpisodePoint, ...]:
    """`search`: what the search step left."""
    return tuple(
        EpisodePoint(
            row.episode, row.reward, row.predicted_cost, row.measured_ms, row.policy,
            is_best=row.episode == search["episode"],
        )
        for row in EpisodeLog(run.folder / "episodes.csv").rows
    )  # fmt: skip


def layers(latency: LatencyModel, run: Run, network: Network) -> tuple[LayerRow, ...]:
    """The kernels of the original beside those of the run's plan."""
    full, widths = network.groups.sizes, run.plan().widths
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


def predictions(latency: LatencyModel, run: Run) -> Predictions:
    """Of all whole models measured. Those of the search refine the calibration of `latency` from here on."""
    measured = run.read("measured")["plans"] if run.has("measured") else {}
    latency.extra += [ModelPoint.from_search([int(w) for w in key.split(",")], row) for key, row in measured.items()]
    points = latency.points()
    if not points:
        return Predictions((), latency.calibration.band, latency.calibration.loo_mape)
    predicted = latency.p50_ms(np.array([point.widths for point in points], dtype=np.int64))
    shown = tuple(
        PredictionPoint(float(p), point.p50_ms, "search" if point.searched else "calibration")
        for p, point in zip(predicted, points, strict=True)
    )
    return Predictions(shown, latency.calibration.band, latency.calibration.loo_mape, latency.calibration.terms)


def finetuning(run: Run) -> tuple[EpochAccuracy, ...]:
    """Empty before fine-tuning, and for runs of versions that did not look at the held-out images."""
    tuned = run.finetuned() or {}
    if not tuned.get("epoch_reports"):
        return ()
    later = (EpochAccuracy(report["epoch"], report["validation_top1"]) for report in tuned["epoch_reports"])
    return (EpochAccuracy(0, tuned["held_out_top1_before"]), *later)
