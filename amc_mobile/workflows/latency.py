"""The latency of any plan on one device: template, table, predictor and calibration wired together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Device
from amc_mobile.device.host import assumed_layout
from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.formats import FLOAT32
from amc_mobile.kernels.cache import load_or_build
from amc_mobile.kernels.template import Template
from amc_mobile.latency import calibration
from amc_mobile.latency.calibration import BAND_FLOOR, QUICK_BAND_FLOOR, Calibration, ModelPoint, Term, WholeModel
from amc_mobile.latency.kernel_fit import QUICK_PLANS, calibration_widths, can_be_quick, kernel_points
from amc_mobile.latency.measurement import BUSY, KernelMeasurement, KernelRequest, ModelRequest
from amc_mobile.latency.predictor import LatencyPredictor, ShapePredictor, timed_shapes
from amc_mobile.latency.protocol import (
    QUICK,
    ProtocolConfig,
    best_anchor,
    measure_kernels,
    measure_model,
    measure_models,
)
from amc_mobile.latency.sharing import anchors
from amc_mobile.latency.table import LatencyTable
from amc_mobile.workflows.devices import RecordedDevice, chosen_runtime, device_of
from amc_mobile.workflows.network import Network, default_grids
from amc_mobile.workflows.workspace import Progress, Settings, Workspace

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
MIN_CALIBRATION_MODELS = 4
ROOFLINE = "rooflines and steps of kernels"
DRIFT_ATTEMPTS = 3  # a busy moment must not pass for a slower device


@dataclass
class LatencyModel:
    """Predicts the latency of plans of one network on one device.

    `grids`: the widths that plans may have; `sampled`: those that the kernels to measure are taken from. `extra`:
    models measured since the profile; they refine the calibration. `drift`: how much longer the original takes now
    than at the profile; every p50 speaks of now. `quick`: a profile measures some kernels and models, in fewer passes.
    """

    template: Template
    device: Device
    table: LatencyTable
    grids: Sequence[Widths]
    sampled: Sequence[Widths]
    identity: str  # of the network, in the table of whole models
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    extra: list[ModelPoint] = field(default_factory=list)
    drift: float = 1.0
    quick: bool = False

    def __post_init__(self) -> None:
        self.conditions: Conditions = self.device.conditions()
        self._predictor: LatencyPredictor | None = None
        self._lacking: tuple[int, int] | None = None
        self._calibration: tuple[int, Calibration] | None = None
        self._form: Term | None = None  # why the predictor is the one that it is

    def measure_missing(self, progress: Progress) -> int:
        """Measures the kernels and calibration models that the table lacks; returns the number of kernels needed."""
        points = self.kernel_places()
        self.measure_kernels_at(list(points.values()), progress)
        plans = self.calibration_requests()
        measure_models(
            self.device,
            {plan.key: plan for plan in plans},
            table=self.table,
            anchor=self._anchor(points),
            on_result=lambda done, total, _: progress("measure whole models", done, total),
            config=self.protocol,
        )
        self._predictor = self._calibration = self._lacking = None
        return len(points)

    def _anchor(self, places: Mapping[str, tuple[int, Widths]]) -> KernelRequest | None:
        """A kernel whose latency the table knows: the models are measured on the device that the kernels were."""
        stored = self.table.passes(self.conditions, places)
        key = best_anchor({key: [one for one in passes if not one.busy] for key, passes in stored.items()})
        return self.kernel_requests([places[key]])[key] if key else None

    def calibration_requests(self) -> list[ModelRequest]:
        return [
            ModelRequest(self.identity, tuple(int(w) for w in widths), partial(self.file_at, widths))
            for widths in self._calibration_widths(quick=self.quick)
        ]

    def _calibration_widths(self, *, quick: bool) -> list[Widths]:
        plans = calibration_widths(self.template.sizes, self.sampled)
        return [plans[number] for number in QUICK_PLANS] if quick else plans

    def lacking(self) -> tuple[int, int]:
        """How many kernels and whole models of a full profile the table lacks, as after a quick one."""
        if self.conditions.is_foreign:
            return 0, 0
        if self._lacking is None:
            kernels = kernel_points(self.template, self.sampled).keys() - self.table.kernels(self.conditions).keys()
            models = {tuple(int(width) for width in plan) for plan in self._calibration_widths(quick=False)}
            measured = {tuple(widths) for widths, _ in self.table.models(self.conditions, self.identity)}
            self._lacking = len(kernels), len(models - measured)
        return self._lacking

    def kernel_places(self) -> dict[str, tuple[int, Widths]]:
        """Kernel key -> (site, widths) of every kernel that a profile measures."""
        points = kernel_points(self.template, self.sampled, quick=self.quick)
        return {key: (site, widths) for key, (site, widths, _) in points.items()}

    def measure_exactly(self, widths: Widths, progress: Progress) -> None:
        """Measures the very kernels of one plan, shape (groups,), so that its prediction interpolates nothing."""
        self.measure_kernels_at([(site.index, widths) for site in self.template.sites], progress)
        self._predictor = self._calibration = self._lacking = None

    def kernel_requests(self, wanted: Iterable[tuple[int, Widths]]) -> dict[str, KernelRequest]:
        requests = [
            KernelRequest(self.template.kernel_at(site, widths), partial(self.template.cut_at_widths, site, widths))
            for site, widths in wanted
        ]
        return {request.key: request for request in requests}

    def measure_kernels_at(self, wanted: Sequence[tuple[int, Widths]], progress: Progress) -> None:
        """Measures the kernels that the table lacks. `wanted`: (site, widths of a plan)."""
        measure_kernels(
            self.device,
            self.kernel_requests(wanted),
            table=self.table,
            on_result=lambda done, total, _: progress("measure kernels", done, total),
            config=self.protocol,
        )

    def file_at(self, widths: Widths) -> bytes:
        """The whole model with the first channels of each group: which ones stay does not change the latency."""
        names = zip(self.template.group_names, widths, strict=True)
        return self.template.model_at({name: np.arange(int(width), dtype=np.int64) for name, width in names})

    def measure_again(
        self, known: Sequence[KernelMeasurement], progress: Progress, *, store: bool
    ) -> list[tuple[KernelMeasurement, KernelMeasurement]]:
        """Measures anchors among `known`: pairs of old and new. `store`: whether the table gets the new passes.

        Raises InvalidInput when none of them belongs to the network.
        """
        places = self.kernel_places()
        types = {key: self.template.sites[site].operator_type for key, (site, _) in places.items()}
        chosen = anchors([kernel for kernel in known if kernel.key in places], types)
        if not chosen:
            raise InvalidInput("the table has no kernel of this network", next_step="pass the --model it was made for")
        # As many passes as a kernel may take: one busy moment must not decide over the whole table.
        thorough = replace(self.protocol, min_passes=self.protocol.max_passes)
        found = measure_kernels(
            self.device,
            self.kernel_requests(places[old.key] for old in chosen),
            table=self.table if store else None,
            on_result=lambda done, total, _: progress("measure anchors", done, total),
            config=thorough,
        )
        return [(old, found[old.key]) for old in chosen]

    @property
    def predictor(self) -> LatencyPredictor:
        if self._predictor is None:
            measured = self.table.kernels(self.conditions)
            if not measured:
                raise self.table.nothing_under(self.conditions)
            if self.conditions.is_foreign:
                rows = timed_shapes(measured, self.table.kernel_documents())
                self._predictor = ShapePredictor(self.template, self.grids, rows)
                return self._predictor
            lows = {key: kernel.low_ms for key, kernel in measured.items()}
            # Of plans that were measured, the very kernels may be in the table too. Those seen quiet are taken; where
            # the device never was, all are slowed alike.
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
                    self.template,
                    grids,
                    lows,
                    sampled=self.sampled,
                    measured_plans=plans,
                    exact_ms=exact,
                    plain=plain,
                    quick=quick,
                )
                for plain in (False, True)
            )
            self._predictor = self._better_of(rich, plain)
        return self._predictor

    def _better_of(self, rich: LatencyPredictor, plain: LatencyPredictor) -> LatencyPredictor:
        """Rooflines and steps where they tell the profiled models better than the measured points alone."""
        points = [point for point in self.points() if not point.searched]
        if len(points) < MIN_CALIBRATION_MODELS:
            return rich
        errors = [calibration.fit(self._whole_models(points, tried)).loo_mape for tried in (rich, plain)]
        self._form = Term(ROOFLINE, errors[0] < errors[1], *errors)
        return rich if self._form.kept else plain

    def points(self) -> list[ModelPoint]:
        """The whole models that the calibration looks at."""
        stored = self.table.models(self.conditions, self.identity)
        profiled = [ModelPoint.profiled(widths, measured) for widths, measured in stored]
        return [replace(point, p50_ms=point.p50_ms * self.drift) for point in profiled] + self.extra

    def measure_drift(self, progress: Progress) -> float:
        """Measures the original, and from now on predicts p50s of the device as it is now. Returns `drift`.

        A device that is not there cannot have changed.
        """
        if not isinstance(self.device, RecordedDevice):
            file, now_ms = self.template.model_at({}), []
            for attempt in range(DRIFT_ATTEMPTS):
                progress("measure the original", attempt, DRIFT_ATTEMPTS)
                measured = measure_model(self.device, file, self.protocol)
                now_ms.append(measured.p50_ms)
                if BUSY not in measured.flags:
                    break
            progress("measure the original", DRIFT_ATTEMPTS, DRIFT_ATTEMPTS)
            self.drift *= min(now_ms) / self.reference.p50_ms
            self._calibration = None
        return self.drift

    @property
    def reference(self) -> ModelPoint:
        """The original as it was measured while profiling."""
        full = tuple(int(w) for w in self.template.sizes)
        found = next((point for point in self.points() if point.widths == full and not point.searched), None)
        if found is None:
            raise MissingLatency(["the whole model at full width"])
        return found

    @property
    def profiled_p50_ms(self) -> float:
        """The original's p50 at the profile, whatever the device does now."""
        return self.reference.p50_ms / self.drift

    @property
    def calibration(self) -> Calibration:
        if isinstance(self.predictor, ShapePredictor):
            return self.predictor.calibration
        if self._calibration is None or self._calibration[0] != len(self.extra):
            points = self.points()
            if len(points) < MIN_CALIBRATION_MODELS:
                raise MissingLatency(["whole models for the calibration"])
            least_band = QUICK_BAND_FLOOR if any(self.lacking()) else BAND_FLOOR
            fitted = calibration.fit(self._whole_models(points, self.predictor), least_band=least_band)
            terms = (*((self._form,) if self._form else ()), *fitted.terms)
            self._calibration = (len(self.extra), replace(fitted, terms=terms))
        return self._calibration[1]

    def _whole_models(self, points: Sequence[ModelPoint], predictor: LatencyPredictor) -> list[WholeModel]:
        widths = np.array([point.widths for point in points], dtype=np.int64)
        sums, weights = predictor.sum_ms(widths), predictor.weight_mb(widths)
        boundaries = predictor.boundary_mb(widths) if self.template.converts_layouts else np.zeros(len(points))
        return [
            WholeModel(
                float(sums[i]), point.low_ms, point.p50_ms, float(weights[i]), float(boundaries[i]),
                point.low_weight, point.p50_weight, point.searched, point.busy,
            )
            for i, point in enumerate(points)
        ]  # fmt: skip

    def p50_ms(self, widths: Widths) -> Floats:
        """(N, groups) -> predicted p50 of the whole model, ms (N,)."""
        fitted, predictor = self.calibration, self.predictor
        return fitted.p50_ms(
            predictor.sum_ms(widths),
            predictor.weight_mb(widths) if fitted.needs_weights else None,
            predictor.boundary_mb(widths) if fitted.needs_boundary else None,
        )

    def safe_p50_ms(self, widths: Widths) -> Floats:
        """The prediction with its error band on top: what a search holds against the budget."""
        predictor, safe = self.predictor, self.p50_ms(widths) * (1 + self.calibration.band)
        return safe + predictor.risk_ms(widths) if isinstance(predictor, ShapePredictor) else safe

    def close(self) -> None:
        self.table.close()


def latency_model(
    space: Workspace,
    settings: Settings,
    network: Network,
    grids: Sequence[Widths],
    progress: Progress,
    *,
    device: Device | None = None,
    quick: bool = False,
) -> LatencyModel:
    """Loads or builds the template and opens the table. The caller closes it. `device`: else that of the settings.

    `quick`: see LatencyModel.
    """
    runtime = chosen_runtime(settings)
    # Before the template: a phone that is not there should not take a minute to be missed.
    device = device or device_of(settings, runtime, progress)
    conditions = device.conditions()
    template = load_or_build(
        network.module,
        network.groups,
        runtime,
        space.templates,
        precision=settings.precision,
        layout=conditions.layout or assumed_layout(runtime),
        progress=progress,
    )
    sampled = default_grids(network)
    quick = quick and can_be_quick(template.sizes, sampled)
    identity = f"{settings.model} x{settings.width_multiplier} {network.input_shape}"
    return LatencyModel(
        template=template,
        device=device,
        table=LatencyTable(space.table_location(settings)),
        grids=grids,
        sampled=sampled,
        quick=quick,
        protocol=QUICK if quick else ProtocolConfig(),
        identity=identity if settings.precision == FLOAT32 else f"{identity} {settings.precision}",
    )
