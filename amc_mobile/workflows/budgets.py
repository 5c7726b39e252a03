"""The budgets of a search: its own, and those that the same plan must meet besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amc_mobile.device.device import Device
from amc_mobile.device.phone_state import REMEDIES, WIDE_BAND
from amc_mobile.errors import (
    AmbiguousDevice,
    DeviceUnauthorized,
    DeviceUnavailable,
    InvalidConfig,
    InvalidInput,
    MissingDependency,
)
from amc_mobile.latency.calibration import DRIFT_REMEDY, TOLD_DRIFT, ModelPoint, slower
from amc_mobile.latency.gate import is_within
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.protocol import measure_pair
from amc_mobile.search.budget import CostLimit, Unit, format_cost, joined, rescaled
from amc_mobile.search.reward import MeasuredCost
from amc_mobile.workflows.devices import chosen_runtime, device_of, recorded
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.plans import Plans
from amc_mobile.workflows.profile import latency_model
from amc_mobile.workflows.runs import OVER, WITHIN, BudgetRecord, MeasuredPlan, MeasuredPlans, ReferenceRecord, Run
from amc_mobile.workflows.workspace import Progress, Settings, Workspace, silent

Widths = NDArray[np.int64]


class PlanMeasurer:
    """Measures plans next to the original, so that a busy moment meets both, and remembers them in the run.

    A plan's latency is `reference_ms`, the original's p50 when the run began, over the median speed-up of alternating
    rounds: the ratio cancels what changed since.
    """

    def __init__(self, latency: LatencyModel, run: Run, plans: Plans, reference_ms: float, device: str) -> None:
        self._latency, self._run, self._plans = latency, run, plans
        self._reference_ms, self._device = reference_ms, device
        self._original = latency.template.model_at({})
        before = run.find(MeasuredPlans, device=device)
        self._measured = dict(before.plans) if before is not None else {}
        for key, measured in self._measured.items():
            self._take(key, measured)

    def __call__(self, widths: Widths) -> MeasuredCost:
        key = _key(widths)
        if key not in self._measured:
            predicted = float(self._latency.p50_ms(widths[None])[0])
            file = self._latency.template.model_at(self._plans.kept(widths))
            pair = measure_pair(self._latency.device, self._original, file, self._latency.protocol)
            slowest = pair.speedup_interval[0]
            measured = MeasuredPlan(
                predicted_ms=predicted,
                measured_ms=self._reference_ms / pair.speedup,
                ci_high_ms=self._reference_ms / slowest,
                low_ms=self._latency.reference.low_ms * pair.after.low_ms / pair.before.low_ms,
                raw_p50_ms=pair.after.p50_ms,
                raw_original_p50_ms=pair.before.p50_ms,
            )
            self._measured[key] = measured
            self._run.save(MeasuredPlans(self._measured), device=self._device)
            self._take(key, measured)
            self._latency.measure_exactly(widths, silent)
        measured = self._measured[key]
        return MeasuredCost(measured.predicted_ms, measured.measured_ms, measured.ci_high_ms)

    def drift_at(self, widths: Widths) -> float | None:
        """How many times as long as at the profile the original took next to that plan; None: it was not measured."""
        measured = self._measured.get(_key(widths))
        return measured.raw_original_p50_ms / self._latency.profiled_p50_ms if measured is not None else None

    def _take(self, key: str, measured: MeasuredPlan) -> None:
        widths = tuple(int(width) for width in key.split(","))
        self._latency.refine(
            ModelPoint.searched_plan(widths, measured.low_ms, measured.measured_ms, measured.ci_high_ms)
        )


def _key(widths: Widths) -> str:
    return ",".join(str(int(w)) for w in widths)


Measure = Callable[[Widths], MeasuredCost]


@dataclass(frozen=True, eq=False)
class Part:
    """One budget, named as the user put it. `measure`: on its device, None where only the table tells.

    `reference_ms`: the original's p50 there when the run began.
    """

    budget: CostLimit
    latency: LatencyModel | None = None
    device: str = ""
    reference_ms: float = 0.0
    measure: Measure | None = None

    @property
    def is_attached(self) -> bool:
        return self.latency is not None and self.latency.is_attached

    def record(self, widths: Widths) -> BudgetRecord:
        """What a plan costs there: predicted, without the band that the search adds; measured where it can be."""
        predicted = self.budget.cost_of(widths)
        if self.latency is not None:
            predicted = float(self.latency.p50_ms(widths[None])[0])
        found = self.measure(widths) if self.measure is not None else None
        verdict = WITHIN if is_within(found.ci_high if found else predicted, self.budget.limit) else OVER
        if self.latency is not None and found is None:
            verdict = f"predicted {verdict}, not measured"
        return BudgetRecord(
            asked=self.budget.label,
            unit=self.budget.unit,
            limit=self.budget.limit,
            device=self.device,
            runtime=self.latency.template.runtime if self.latency is not None else "",
            predicted_cost=predicted,
            measured_ms=found.measured if found else None,
            ci_high_ms=found.ci_high if found else None,
            verdict=verdict,
            drift=self.latency.drift if self.latency is not None else 1.0,
            drift_at_plan=self.measure.drift_at(widths) if isinstance(self.measure, PlanMeasurer) else None,
        )


def met_together(parts: Sequence[Part]) -> CostLimit:
    """One budget, counted as the first part's, that a plan meets exactly when it meets them all."""
    return joined([part.budget for part in parts]) if len(parts) > 1 else parts[0].budget


def measured_together(parts: Sequence[Part]) -> Measure | None:
    """Measures on every device there is; the interval's end is that of the device nearest to its limit.

    Counts as the first part does; None where that one's device is not there.
    """
    own, *others = parts
    if own.measure is None:
        return None
    first, measured = own.measure, [(part.measure, part.budget.limit) for part in others if part.measure is not None]

    def measure(widths: Widths) -> MeasuredCost:
        cost = first(widths)
        ends = [rescaled(np.array([other(widths).ci_high]), limit, own.budget.limit) for other, limit in measured]
        return replace(cost, ci_high=float(max([cost.ci_high, *(end[0] for end in ends)])))

    return measure


def settings_of(settings: Settings, device: str) -> Settings:
    """Those of another device: what belongs to the first one's phone is left out."""
    own = Settings()
    return replace(
        settings, device=device, serial=own.serial, waive=own.waive, clock_mode=own.clock_mode, runtime=own.runtime
    )


def attached(settings: Settings, progress: Progress, *, runtime: str = "") -> Device | None:
    """The device, or None where it is not there. Raises what a device that is there but cannot be used raises."""
    if settings.offline:
        return None
    try:
        return device_of(settings, runtime or chosen_runtime(settings), progress)
    except (AmbiguousDevice, DeviceUnauthorized):
        raise
    except (DeviceUnavailable, MissingDependency, InvalidConfig):  # InvalidConfig: known from an imported table only
        return None


def further_counts(own: CostLimit, plans: Plans, *, macs: float | None, parameters: float | None) -> list[Part]:
    """Shares of the original's MACs and parameters, where they are asked for besides the first budget."""
    found = []
    shares: list[tuple[float | None, Unit, str, Callable[[Widths], NDArray[np.float64]]]] = [
        (macs, "macs", "macs-ratio", plans.macs), (parameters, "parameters", "params-ratio", plans.parameters),
    ]  # fmt: skip
    for share, unit, name, cost in shares:
        if share is not None and unit != own.unit:
            found.append(Part(CostLimit(cost, share * float(cost(plans.sizes)), own.grids, unit, f"{name} {share:g}")))
    return found


def on_device(
    space: Workspace, settings: Settings, network: Network, own: CostLimit, device: str, limit_ms: float, run: Run,
    progress: Progress,
) -> Part:  # fmt: skip
    """A latency budget on another device: measured where it is attached, else by the table alone.

    How long the original takes there now is measured when the run begins, and kept in its folder.
    """
    if device == settings.device:
        raise InvalidConfig(f"--also {device} is the --device itself", next_step="pass its budget with --latency-ms")
    other = settings_of(settings, device)
    opened = attached(other, progress)
    if opened is None:
        opened, other = recorded(space, other)
    latency = latency_model(space, other, network, own.grids, progress, device=opened)
    label, reference_ms = f"also {device}:{limit_ms:g}", 0.0
    try:
        if latency.is_attached:
            reference = run.find(ReferenceRecord, device=device)
            if reference is None or reference.asked != label:
                drift = latency.measure_drift(progress)
                reference = ReferenceRecord(label, reference_p50_ms(latency.with_drift(drift), network), drift)
                run.save(reference, device=device)
            latency, reference_ms = latency.with_drift(reference.drift), reference.reference_ms
    except BaseException:
        latency.close()
        raise
    return Part(CostLimit(latency.safe_p50_ms, limit_ms, own.grids, "ms", label), latency, device, reference_ms)


def require_usable(parts: Sequence[Part], waived: Collection[str]) -> None:
    """Raises InvalidInput where a device's table predicts too badly for a search, unless WIDE_BAND is waived."""
    for part in parts:
        if part.latency is not None and WIDE_BAND not in waived and (problem := part.latency.calibration.problem):
            raise InvalidInput(
                f"the latency table of {part.device} is of no use: {problem} [{WIDE_BAND}]",
                next_step=f"{REMEDIES[WIDE_BAND]}; or search anyway: --waive {WIDE_BAND}",
            )


def reference_p50_ms(latency: LatencyModel, network: Network) -> float:
    """The original's p50: as measured while profiling, else predicted. The full width is a calibration model."""
    full = network.groups.sizes
    measured = {point.widths: point.p50_ms for point in latency.points()}
    return measured.get(tuple(int(w) for w in full), float(latency.p50_ms(full[None])[0]))


def drift_text(budget: BudgetRecord) -> str:
    """How fast the device of a budget is against its table, and what to do; empty where it is as fast, or nearly.

    What was seen next to the plan counts, else what was seen when the run began.
    """
    drift = budget.drift_at_plan or budget.drift
    if abs(drift - 1) <= TOLD_DRIFT:
        return ""
    return (
        f"the original takes {drift:.2f} times as long as at the profile: the device is {slower(drift)} than its "
        f"table; {DRIFT_REMEDY}"
    )


def measured_text(measured_ms: float) -> str:
    """What a search calls measured: the p50 that the original had when the run began, over the measured speed-up."""
    return f"{measured_ms:.3f} ms by its measured speed-up"


def further_budget_text(budget: BudgetRecord) -> str:
    """One further budget in a line."""
    drift = f"; there {text}" if (text := drift_text(budget)) else ""
    device = f" on {budget.device}" if budget.device else ""
    measured = f", {measured_text(budget.measured_ms)}" if budget.measured_ms is not None else ""
    predicted = "predicted " if budget.unit == "ms" else ""
    return (
        f"  budget {format_cost(budget.limit, budget.unit)} ({budget.asked}){device}: "
        f"{predicted}{format_cost(budget.predicted_cost, budget.unit)}{measured}: {budget.verdict}{drift}\n"
    )
