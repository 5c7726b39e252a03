"""The latency of any plan of a network on one device: what a profile measures, and what a search asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.plan import PruningPlan
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Device
from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.latency import calibration
from amc_mobile.latency.calibration import BAND_FLOOR, QUICK_BAND_FLOOR, Calibration, ModelPoint, Term
from amc_mobile.latency.kernel_fit import QUICK_PLANS, calibration_widths, kernel_points
from amc_mobile.latency.measurement import BUSY, KernelMeasurement, KernelRequest, ModelRequest
from amc_mobile.latency.predictor import LatencyPredictor, ShapePredictor, timed_shapes
from amc_mobile.latency.protocol import (
    ProtocolConfig,
    best_anchor,
    measure_kernels,
    measure_model,
    measure_models,
)
from amc_mobile.latency.sharing import OnProgress, anchors
from amc_mobile.latency.table import LatencyTable, RecordedDevice

if TYPE_CHECKING:  # brings torch
    import pandas as pd

    from amc_mobile.kernels.template import Template

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
MIN_CALIBRATION_MODELS = 4
ROOFLINE = "rooflines and steps of kernels"
DRIFT_ATTEMPTS = 3  # a busy moment must not pass for a slower device


@dataclass(eq=False)
class LatencyModel:
    """Predicts the latency of plans of one network on one device, from what `table` has of them.

    `grids`: per group the widths that plans may have, ascending; `sampled`: those that a profile takes its kernels
    from. `identity`: of the network, in the table of whole models. `quick`: a profile measures some kernels and models
    only, in fewer passes. `drift`: how many times as long as at the profile the original takes now; every p50 is scaled
    by it. `searched`: models measured since the profile, which refine the calibration.

    Close it when done; what is asked of it later opens the table again. Predicting raises MissingLatency for kernels
    that the table does not have.
    """

    template: Template
    device: Device
    table: LatencyTable
    grids: Sequence[Widths]
    sampled: Sequence[Widths]
    identity: str
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    quick: bool = False
    drift: float = 1.0
    searched: tuple[ModelPoint, ...] = ()

    def __post_init__(self) -> None:
        self.conditions: Conditions = self.device.conditions()
        self._forget()

    def _forget(self) -> None:
        """What follows from the table is worked out again when it is asked for."""
        self._predictor: LatencyPredictor | ShapePredictor | None = None
        self._roofline_term: Term | None = None  # why the predictor uses rooflines or does not
        self._calibration: Calibration | None = None
        self._lacking: tuple[int, int] | None = None

    def with_grids(self, grids: Sequence[Widths]) -> LatencyModel:
        return replace(self, grids=grids)

    def with_drift(self, drift: float) -> LatencyModel:
        return replace(self, drift=drift)

    def refine(self, point: ModelPoint) -> None:
        """Counts a model that a search measured: the calibration follows it from now on."""
        self.searched += (point,)
        self._calibration = None

    @property
    def is_attached(self) -> bool:
        """Whether the device can measure; else the table alone is used."""
        return not isinstance(self.device, RecordedDevice)

    def close(self) -> None:
        self.table.close()

    # Predicting

    @overload
    def p50_ms(self, plans: PruningPlan | None = None) -> float: ...
    @overload
    def p50_ms(self, plans: Widths) -> Floats: ...
    def p50_ms(self, plans: PruningPlan | Widths | None = None) -> float | Floats:
        """Predicted p50 of the whole model in ms: of the original, of a plan, or of widths (N, groups) -> (N,)."""
        if plans is None or isinstance(plans, PruningPlan):
            widths = self.template.sizes if plans is None else plans.widths
            return float(self.p50_ms(widths[None])[0])
        return self.predictor.p50_ms(plans, self.calibration)

    def safe_p50_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> (N,): the prediction with its error band on top, which a search compares with the budget."""
        return self.p50_ms(widths) * (1 + self.band) + self.predictor.risk_ms(widths)

    @property
    def band(self) -> float:
        """Relative error that nine of ten predictions stay within."""
        return self.calibration.band

    def to_frame(self) -> pd.DataFrame:
        """The table's kernels under these conditions, the slowest first: see `LatencyTable.to_frame`."""
        return self.table.to_frame(self.conditions)

    @property
    def predictor(self) -> LatencyPredictor | ShapePredictor:
        if self._predictor is None:
            measured = self.table.kernels(self.conditions)
            if not measured:
                raise self.table.nothing_under(self.conditions)
            if self.conditions.is_foreign:
                shapes = timed_shapes(measured, self.table.kernel_documents())
                self._predictor = ShapePredictor(self.template, self.grids, shapes)
            else:
                self._predictor = self._profiled_predictor(measured)
        return self._predictor

    def _profiled_predictor(self, measured: Mapping[str, KernelMeasurement]) -> LatencyPredictor:
        """With rooflines and steps where these predict the profiled models better than the measured points alone."""
        lows = {key: kernel.low_ms for key, kernel in measured.items()}
        # Of plans that were measured, the very kernels may be in the table too. Those measured on a quiet device count;
        # where the device never was quiet, all are slowed alike.
        harmless = {BUSY} if all(kernel.is_busy for kernel in measured.values()) else set()
        exact = {key: kernel.low_ms for key, kernel in measured.items() if not set(kernel.flags) - harmless}
        plans = [np.array(point.widths, dtype=np.int64) for point in self.points()]
        # The calibration's models have the widths that are sampled, which a search's plans may not.
        grids = [np.union1d(*pair) for pair in zip(self.grids, self.sampled, strict=True)]
        # Whole models come last: with all of them measured, a kernel that lacks was lost, not left out.
        few = kernel_points(self.template, self.sampled, quick=True).keys() if all(self.lacking()) else None
        quick = few is not None and few <= lows.keys()
        rich, plain = (
            LatencyPredictor(
                self.template, grids, lows, sampled=self.sampled, measured_plans=plans, exact_ms=exact, plain=plain,
                quick=quick,
            )
            for plain in (False, True)
        )  # fmt: skip
        profiled = [point for point in self.points() if not point.searched]
        if len(profiled) < MIN_CALIBRATION_MODELS:
            return rich
        rich_error, plain_error = (self._fitted(profiled, p).loo_mape for p in (rich, plain))
        self._roofline_term = Term(ROOFLINE, rich_error < plain_error, rich_error, plain_error)
        return rich if self._roofline_term.kept else plain

    @property
    def calibration(self) -> Calibration:
        predictor = self.predictor
        if isinstance(predictor, ShapePredictor):
            return predictor.calibration
        if self._calibration is None:
            points = self.points()
            if len(points) < MIN_CALIBRATION_MODELS:
                raise MissingLatency(["whole models for the calibration"])
            least_band = QUICK_BAND_FLOOR if any(self.lacking()) else BAND_FLOOR
            fitted = self._fitted(points, predictor, least_band=least_band)
            terms = (*((self._roofline_term,) if self._roofline_term else ()), *fitted.terms)
            self._calibration = replace(fitted, terms=terms)
        return self._calibration

    def _fitted(
        self, points: Sequence[ModelPoint], predictor: LatencyPredictor, *, least_band: float = BAND_FLOOR
    ) -> Calibration:
        widths = np.array([point.widths for point in points], dtype=np.int64)
        boundaries = predictor.boundary_mb(widths) if self.template.converts_layouts else np.zeros(len(points))
        sums, weights = predictor.sum_ms(widths), predictor.weight_mb(widths)
        return calibration.fit(points, sums, weights, boundaries, least_band=least_band)

    def points(self) -> list[ModelPoint]:
        """The whole models that the calibration looks at: those of the profile, then those of the search."""
        stored = self.table.models(self.conditions, self.identity)
        profiled = [ModelPoint.profiled(widths, measured) for widths, measured in stored]
        return [*(replace(point, p50_ms=point.p50_ms * self.drift) for point in profiled), *self.searched]

    @property
    def reference(self) -> ModelPoint:
        """The original as it was measured while profiling."""
        full = tuple(self.template.sizes.tolist())
        for point in self.points():
            if point.widths == full and not point.searched:
                return point
        raise MissingLatency(["the whole model at full width"])

    @property
    def profiled_p50_ms(self) -> float:
        """The original's p50 at the profile, whatever the device does now."""
        return self.reference.p50_ms / self.drift

    # Measuring

    def measure_missing(self, progress: OnProgress) -> int:
        """Measures the kernels and calibration models that the table lacks; returns the number of kernels needed."""
        places = self.kernel_places()
        self.measure_kernels_at(list(places.values()), progress)
        measure_models(
            self.device,
            {request.key: request for request in self.calibration_requests()},
            table=self.table,
            anchor=self._anchor(places),
            on_result=lambda done, total, _: progress("measure whole models", done, total),
            config=self.protocol,
        )
        self._forget()
        return len(places)

    def measure_exactly(self, widths: Widths, progress: OnProgress) -> None:
        """Measures the very kernels of one plan, shape (groups,), so that its prediction interpolates nothing."""
        self.measure_kernels_at([(site.index, widths) for site in self.template.sites], progress)

    def measure_kernels_at(self, places: Sequence[tuple[int, Widths]], progress: OnProgress) -> None:
        """Measures the kernels that the table lacks. `places`: (site, widths of a plan)."""
        measure_kernels(
            self.device,
            self.kernel_requests(places),
            table=self.table,
            on_result=lambda done, total, _: progress("measure kernels", done, total),
            config=self.protocol,
        )
        self._forget()

    def measure_again(
        self, known: Sequence[KernelMeasurement], progress: OnProgress, *, store: bool
    ) -> list[tuple[KernelMeasurement, KernelMeasurement]]:
        """Measures anchors among `known`: pairs of old and new. `store`: whether the table gets the new passes.

        Raises InvalidInput when none of them belongs to the network.
        """
        places = self.kernel_places()
        types = {key: self.template.sites[site].operator_type for key, (site, _) in places.items()}
        chosen = anchors([kernel for kernel in known if kernel.key in places], types)
        if not chosen:
            raise InvalidInput("the table has no kernel of this network", next_step="pass the --model it was made for")
        measured = measure_kernels(
            self.device,
            self.kernel_requests(places[old.key] for old in chosen),
            table=self.table if store else None,
            on_result=lambda done, total, _: progress("measure anchors", done, total),
            # As many passes as a kernel may take: one busy moment must not decide over the whole table.
            config=replace(self.protocol, min_passes=self.protocol.max_passes),
        )
        return [(old, measured[old.key]) for old in chosen]

    def measure_drift(self, progress: OnProgress) -> float:
        """Measures the original: how many times as long as at the profile it takes now.

        Where the device is not attached: `drift`, for it cannot have changed.
        """
        if not self.is_attached:
            return self.drift
        original, p50s_ms = self.template.model_at({}), []
        for attempt in range(DRIFT_ATTEMPTS):
            progress("measure the original", attempt, DRIFT_ATTEMPTS)
            measured = measure_model(self.device, original, self.protocol)
            p50s_ms.append(measured.p50_ms)
            if BUSY not in measured.flags:
                break
        progress("measure the original", DRIFT_ATTEMPTS, DRIFT_ATTEMPTS)
        return min(p50s_ms) / self.profiled_p50_ms

    def lacking(self) -> tuple[int, int]:
        """How many kernels and whole models of a full profile the table lacks, as after a quick one."""
        if self.conditions.is_foreign:
            return 0, 0
        if self._lacking is None:
            kernels = kernel_points(self.template, self.sampled).keys() - self.table.kernels(self.conditions).keys()
            models = {tuple(plan.tolist()) for plan in calibration_widths(self.template.sizes, self.sampled)}
            measured = {tuple(widths) for widths, _ in self.table.models(self.conditions, self.identity)}
            self._lacking = len(kernels), len(models - measured)
        return self._lacking

    def kernel_places(self) -> dict[str, tuple[int, Widths]]:
        """Kernel key -> (site, widths) of every kernel that a profile measures."""
        return kernel_points(self.template, self.sampled, quick=self.quick)

    def kernel_requests(self, places: Iterable[tuple[int, Widths]]) -> dict[str, KernelRequest]:
        """By key. `places`: (site, widths of a plan)."""
        requests = [
            KernelRequest(self.template.kernel_at(site, widths), partial(self.template.cut_at_widths, site, widths))
            for site, widths in places
        ]
        return {request.key: request for request in requests}

    def calibration_requests(self) -> list[ModelRequest]:
        """The whole models that a profile measures."""
        plans = calibration_widths(self.template.sizes, self.sampled)
        return [
            ModelRequest(self.identity, tuple(widths.tolist()), partial(self.file_at, widths))
            for widths in ([plans[number] for number in QUICK_PLANS] if self.quick else plans)
        ]

    def file_at(self, widths: Widths) -> bytes:
        """The whole model with the first channels of each group: which ones stay does not change the latency."""
        names = zip(self.template.group_names, widths, strict=True)
        return self.template.model_at({name: np.arange(int(width), dtype=np.int64) for name, width in names})

    def _anchor(self, places: Mapping[str, tuple[int, Widths]]) -> KernelRequest | None:
        """A kernel whose latency the table has: whole models are measured on a device as fast as it was for kernels."""
        stored = self.table.passes(self.conditions, places)
        key = best_anchor({key: [each for each in passes if not each.busy] for key, passes in stored.items()})
        return self.kernel_requests([places[key]])[key] if key else None
