"""Whole models at the plans of a search, measured next to the original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amc_mobile.latency.protocol import measure_pair
from amc_mobile.latency.whole_models import ModelPoint
from amc_mobile.search.reward import MeasuredCost
from amc_mobile.workflows.latency_model import LatencyModel
from amc_mobile.workflows.plans import ChannelPlans
from amc_mobile.workflows.progress import silent
from amc_mobile.workflows.runs import Run

Widths = NDArray[np.int64]


class PlanMeasurer:
    """Measures plans next to the original, so that a busy moment meets both, and remembers them in the run.

    A plan's latency is `reference_ms`, the original's p50 when the run began, over the median speed-up of alternating
    rounds: the ratio cancels what changed since.
    """

    def __init__(
        self, latency: LatencyModel, run: Run, plans: ChannelPlans, reference_ms: float, name: str = "measured"
    ) -> None:
        self._latency, self._run, self._plans = latency, run, plans
        self._reference_ms, self._name = reference_ms, name
        self._original = latency.template.model_at({})
        self._known: dict[str, dict[str, float]] = run.read(name)["plans"] if run.has(name) else {}
        for key, row in self._known.items():
            self._take(key, row)

    def __call__(self, widths: Widths) -> MeasuredCost:
        key = _key(widths)
        if key not in self._known:
            predicted = float(self._latency.p50_ms(widths[None])[0])
            file = self._latency.template.model_at(self._plans.reconstructor.kept(widths))
            pair = measure_pair(self._latency.device, self._original, file, self._latency.protocol)
            slowest = pair.speedup_interval[0]
            measured = self._reference_ms / pair.speedup
            row = {
                "predicted_ms": predicted,
                "measured_ms": measured,
                "ci_high_ms": self._reference_ms / slowest,
                "low_ms": self._latency.reference.low_ms * pair.after.low_ms / pair.before.low_ms,
                "raw_p50_ms": pair.after.p50_ms,
                "raw_original_p50_ms": pair.before.p50_ms,
            }
            self._known[key] = row
            self._run.write(self._name, {"plans": self._known})
            self._take(key, row)
            self._latency.measure_exactly(widths, silent)
        row = self._known[key]
        return MeasuredCost(row["predicted_ms"], row["measured_ms"], row["ci_high_ms"])

    def drift_at(self, widths: Widths) -> float | None:
        """How many times as long as at the profile the original took next to that plan; None: it was not measured."""
        row = self._known.get(_key(widths))
        return row["raw_original_p50_ms"] / self._latency.profiled_p50_ms if row is not None else None

    def _take(self, key: str, row: dict[str, float]) -> None:
        self._latency.extra.append(ModelPoint.from_search([int(w) for w in key.split(",")], row))


def _key(widths: Widths) -> str:
    return ",".join(str(int(w)) for w in widths)
