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
from amc_mobile.workflows.runs import (
    OVER,
    WITHIN,
    BudgetRecord,
    LimitRecord,
    MeasuredPlan,
    MeasuredPlans,
    ReferenceRecord,
    Run,
)
from amc_mobile.workflows.search_config import SearchConfig
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


@dataclass(frozen=True, eq=False)
class Part:
    """One budget, named as the user put it. `measurer`: on its device, None where only the table tells.

    `reference_ms`: the original's p50 there when the run began.
    """

    budget: CostLimit
    latency: LatencyModel | None = None
    device: str = ""
    reference_ms: float = 0.0
    measurer: PlanMeasurer | None = None

    def measured_in(self, run: Run, plans: Plans, *, is_own: bool) -> Part:
        """With a measurer where the device is attached. `is_own`: the run's own budget, not a further one."""
        if self.latency is None or not self.latency.is_attached:
            return self
        name = "" if is_own else self.device
        return replace(self, measurer=PlanMeasurer(self.latency, run, plans, self.reference_ms, name))

    def record(self, widths: Widths) -> BudgetRecord:
        """What a plan costs there: predicted, without the band that the search adds; measured where it can be."""
        latency, measurer = self.latency, self.measurer
        predicted = latency.p50_ms(widths[None])[0] if latency is not None else self.budget.cost_of(widths)
        measured = measurer(widths) if measurer is not None else None
        verdict = WITHIN if is_within(measured.ci_high if measured else predicted, self.budget.limit) else OVER
        if latency is not None and measured is None:
            verdict = f"predicted {verdict}, not measured"
        return BudgetRecord(
            asked=self.budget.label,
            unit=self.budget.unit,
            limit=self.budget.limit,
            device=self.device,
            runtime=latency.template.runtime if latency is not None else "",
            predicted_cost=float(predicted),
            measured_ms=measured.measured if measured else None,
            ci_high_ms=measured.ci_high if measured else None,
            verdict=verdict,
            drift=latency.drift if latency is not None else 1.0,
            drift_at_plan=measurer.drift_at(widths) if measurer is not None else None,
        )


def limit_of(
    run: Run, wanted: SearchConfig, place: str, plans: Plans, latency: LatencyModel | None, progress: Progress
) -> LimitRecord:
    """The run's own budget, fixed when the run starts.

    Raises InvalidInput for a run that began at another `place`: device, runtime and threads, as in a run's name.
    """
    before = run.find(LimitRecord)
    if before is not None and before.asked == wanted.asked:
        if before.place != place:
            there, here = (name or "this computer" for name in (before.place, place))
            raise InvalidInput(
                f"run {run.name} has its latency budget on {there}, not on {here}",
                next_step="pass another name with --run, or that --device, --runtime and --threads",
            )
        return before
    full = plans.sizes
    reference_ms, drift = 0.0, 1.0
    if latency is not None:
        if wanted.latency_ms is not None:  # is held against the device of now, a ratio against both alike
            drift = latency.measure_drift(progress)
        reference_ms = reference_p50_ms(latency.with_drift(drift))
        limit = wanted.latency_ms if wanted.latency_ms is not None else (wanted.latency_ratio or 1.0) * reference_ms
    elif wanted.macs_ratio is not None:
        limit = wanted.macs_ratio * float(plans.macs(full))
    else:
        limit = (wanted.params_ratio or 1.0) * float(plans.parameters(full))
    fixed = LimitRecord(wanted.asked, place, limit, reference_ms, drift)
    run.save(fixed)
    return fixed


def cost_of(unit: Unit, plans: Plans, latency: LatencyModel | None) -> Callable[[Widths], NDArray[np.float64]]:
    """What plans cost, in `unit`; of a latency with its error band on top."""
    if latency is not None:
        return latency.safe_p50_ms
    return plans.macs if unit == "macs" else plans.parameters


def met_together(parts: Sequence[Part]) -> CostLimit:
    """One budget, counted as the first part's, that a plan meets exactly when it meets them all."""
    return joined([part.budget for part in parts]) if len(parts) > 1 else parts[0].budget


def measured_together(parts: Sequence[Part]) -> Callable[[Widths], MeasuredCost] | None:
    """Measures on every device there is; the interval's end is that of the part nearest to its limit, where a part that
    is not measured has its predicted cost.

    Counts as the first part does; None where that one's device is not there.
    """
    own, *others = parts
    if own.measurer is None:
        return None
    first = own.measurer

    def highest(part: Part, widths: Widths) -> float:
        cost = part.measurer(widths).ci_high if part.measurer is not None else part.budget.cost_of(widths)
        return float(rescaled(np.array([cost]), part.budget.limit, own.budget.limit)[0])

    def measure(widths: Widths) -> MeasuredCost:
        cost = first(widths)
        return replace(cost, ci_high=max([cost.ci_high, *(highest(part, widths) for part in others)]))

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
    shares: list[tuple[float | None, Unit, str, Callable[[Widths], NDArray[np.float64]]]] = [
        (macs, "macs", "macs-ratio", plans.macs), (parameters, "parameters", "params-ratio", plans.parameters),
    ]  # fmt: skip
    return [
        Part(CostLimit(cost, share * float(cost(plans.sizes)), own.grids, unit, f"{name} {share:g}"))
        for share, unit, name, cost in shares
        if share is not None and unit != own.unit
    ]


def further_latency(
    space: Workspace, settings: Settings, network: Network, device: str, progress: Progress
) -> LatencyModel:
    """Of another device than that of the settings: measured where it is attached, else by the table alone."""
    if device == settings.device:
        raise InvalidConfig(f"--also {device} is the --device itself", next_step="pass its budget with --latency-ms")
    other = settings_of(settings, device)
    opened = attached(other, progress)
    if opened is None:
        opened, other = recorded(space, other)
    return latency_model(space, other, network, progress, device=opened)


def on_device(
    latency: LatencyModel, own: CostLimit, device: str, limit_ms: float, run: Run, progress: Progress
) -> Part:
    """A latency budget on another device.

    How long the original takes there now is measured when the run begins, and kept in its folder.
    """
    latency = latency.with_grids(own.grids)
    label, reference_ms = f"also {device}:{limit_ms:g}", 0.0
    if latency.is_attached:
        reference = run.find(ReferenceRecord, device=device)
        if reference is None or reference.asked != label:
            drift = latency.measure_drift(progress)
            reference = ReferenceRecord(label, reference_p50_ms(latency.with_drift(drift)), drift)
            run.save(reference, device=device)
        latency, reference_ms = latency.with_drift(reference.drift), reference.reference_ms
    return Part(CostLimit(latency.safe_p50_ms, limit_ms, own.grids, "ms", label), latency, device, reference_ms)


def require_usable(parts: Sequence[Part], waived: Collection[str]) -> None:
    """Raises InvalidInput where a device's table predicts too badly for a search, unless WIDE_BAND is waived."""
    for part in parts:
        if part.latency is not None and WIDE_BAND not in waived and (problem := part.latency.calibration.problem):
            raise InvalidInput(
                f"the latency table of {part.device} is of no use: {problem} [{WIDE_BAND}]",
                next_step=f"{REMEDIES[WIDE_BAND]}; or search anyway: --waive {WIDE_BAND}",
            )


def reference_p50_ms(latency: LatencyModel) -> float:
    """The original's p50: as measured while profiling, else predicted. The full width is a calibration model."""
    full = latency.template.sizes
    measured = {point.widths: point.p50_ms for point in latency.points()}
    return measured.get(tuple(full.tolist()), float(latency.p50_ms(full[None])[0]))


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
