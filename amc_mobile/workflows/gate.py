"""The gate of an export: whether the files that were written meet the budgets, by measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.device.timing import Device
from amc_mobile.latency.measurement import PairMeasurement
from amc_mobile.latency.protocol import measure_pair
from amc_mobile.search.budget import format_cost
from amc_mobile.workflows.budgets import attached, settings_of
from amc_mobile.workflows.measuring import chosen_runtime
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings

GATE_ATTEMPTS = 3  # a busy moment must not decide: measured again while over the budget


def measured_pair(
    device: Device | None, original: Path | None, pruned: Path, limits: dict[str, Any]
) -> PairMeasurement | None:
    """Original and pruned file in alternating blocks; None without a device."""
    if device is None or original is None:
        return None
    before, after = original.read_bytes(), pruned.read_bytes()
    pair = measure_pair(device, before, after)
    for _ in range(GATE_ATTEMPTS - 1):
        if limits["unit"] != "ms" or pair.after.ci_high_ms <= _limit_ms(limits, pair.before.p50_ms):
            break
        pair = measure_pair(device, before, after)
    return pair


def own_gate(
    search: dict[str, Any], files: list[dict[str, Any]], settings: Settings, limits: dict[str, Any], *, offline: bool
) -> dict[str, Any]:
    """The gate of the search's own budget: `passed` (None: not measured), what it was held against, and a text."""
    unit, limit = limits["unit"], float(limits["limit"])
    if unit != "ms":
        cost = float(search["macs" if unit == "macs" else "parameters"])
        text = f"{format_cost(cost, unit)} of {format_cost(limit, unit)}"
        return {"passed": cost <= limit, "cost": cost, "limit": limit, "text": text}
    if offline:
        text = f"predicted {format_cost(search['predicted_cost'], unit)} of {format_cost(limit, unit)}"
        return {"passed": None, "cost": None, "limit": limit, "text": text}
    judged = [f for f in files if f["runtime"] == chosen_runtime(settings) and f["pair"]]
    if not judged:
        text = f"no file for {chosen_runtime(settings)}, the runtime of the search, was measured"
        return {"passed": False, "cost": None, "limit": limit, "text": text}
    after, before = judged[0]["pair"]["after"], judged[0]["pair"]["before"]
    limit = _limit_ms(limits, before["p50_ms"])
    text = f"upper end of the p50's 95 % interval {after['ci_high_ms']:.3f} ms, budget {limit:.3f} ms"
    passed = bool(np.less_equal(after["ci_high_ms"], limit))
    return {"passed": passed, "cost": after["ci_high_ms"], "limit": limit, "text": text}


def further_gate(
    row: dict[str, Any], search: dict[str, Any], files: list[dict[str, Any]], settings: Settings, progress: Progress,
    *, original: Callable[[str], Path],
) -> dict[str, Any]:  # fmt: skip
    """The gate of one more budget of the search, `row`: as `own_gate`, with the pair that was measured."""
    asked, unit, limit = row["asked"], row["unit"], float(row["limit"])
    if unit != "ms":
        cost = float(search["macs" if unit == "macs" else "parameters"])
        text = f"{asked}: {format_cost(cost, unit)} of {format_cost(limit, unit)}"
        return {"asked": asked, "passed": cost <= limit, "cost": cost, "limit": limit, "text": text, "pair": None}
    file = next((file for file in files if file["runtime"] == row["runtime"]), None)
    why = "the device is not attached" if file else f"no file for {row['runtime']} was exported"
    device = attached(settings_of(settings, row["device"]), progress, runtime=row["runtime"]) if file else None
    limits = {"unit": unit, "limit": limit, "ratio": None}
    pair = measured_pair(device, original(file["format"]), Path(file["path"]), limits) if file and device else None
    if pair is None:
        text = f"{asked}: predicted {row['predicted_cost']:.3f} ms of {limit:.3f} ms, not measured: {why}"
        return {"asked": asked, "passed": None, "cost": None, "limit": limit, "text": text, "pair": None}
    high = pair.after.ci_high_ms
    text = f"{asked}: upper end of the p50's 95 % interval {high:.3f} ms, budget {limit:.3f} ms"
    return {
        "asked": asked, "passed": high <= limit, "cost": high, "limit": limit, "text": text, "pair": pair.to_document(),
    }  # fmt: skip


def all_of(gate: dict[str, Any], further: list[dict[str, Any]]) -> dict[str, Any]:
    """Passed when every budget is; open, with None, where one was not measured and none is missed."""
    passed = [gate["passed"], *(one["passed"] for one in further)]
    verdict = False if False in passed else None if None in passed else True
    text = "; ".join([gate["text"], *(one["text"] for one in further)])
    return {**gate, "passed": verdict, "own_passed": gate["passed"], "text": text, "further": further}


def _limit_ms(limits: dict[str, Any], original_p50_ms: float) -> float:
    """A ratio is of the original measured in the same rounds; a number of ms is what it is."""
    return float(limits["ratio"] * original_p50_ms if limits["ratio"] is not None else limits["limit"])
