"""The latency of any plan on one device: template, table, predictor and calibration wired together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.ids import Ids
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.host import HostDevice, installed_runtimes
from amc_mobile.errors import MissingDependency, MissingLatency
from amc_mobile.kernels.cache import load_or_build
from amc_mobile.kernels.template import Template
from amc_mobile.latency import calibration
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.predictor import LatencyPredictor
from amc_mobile.latency.protocol import ProtocolConfig, measure_kernels, measure_model
from amc_mobile.latency.sampling import calibration_widths, kernel_points
from amc_mobile.latency.table import LatencyTable
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace

Widths = NDArray[np.int64]
RECENT_MODELS = 40  # whole-model measurements that the calibration looks at


def chosen_runtime(settings: Settings) -> str:
    """The runtime asked for, else TFLite where it is installed. Raises MissingDependency."""
    installed = installed_runtimes()
    runtime = settings.runtime or ("tflite" if "tflite" in installed else "onnxruntime")
    if runtime not in installed:
        raise MissingDependency("ai-edge-litert" if runtime == "tflite" else "onnxruntime", "tflite")
    return runtime


@dataclass
class LatencyModel:
    """Predicts and measures plans of one network on one device; every measurement refits the calibration."""

    template: Template
    device: HostDevice
    table: LatencyTable
    grids: Sequence[Widths]
    identity: str  # of the network, in the table of whole models
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)

    def __post_init__(self) -> None:
        self.conditions: Conditions = self.device.conditions()
        self._predictor: LatencyPredictor | None = None
        self._calibration: calibration.Calibration | None = None

    def measure_missing(self, progress: Progress) -> int:
        """Measures the kernels and calibration models that the table lacks; returns the number of kernels it holds."""
        self.table.remember(self.conditions)
        points = kernel_points(self.template, self.grids)
        done = {
            key: [float(np.percentile(samples, 20)) for samples in passes]
            for key, passes in self.table.passes(self.conditions).items()
        }
        measure_kernels(
            self.device,
            {k: (lambda s=site, w=widths: self.template.cut_at_widths(s, w)) for k, (site, widths, _) in points.items()},
            done,
            on_pass=lambda key, index, ms: self.table.add_pass(self.conditions, key, points[key][2], index, ms),
            on_progress=lambda count, total: progress("measure kernels", count, total),
            config=self.protocol,
        )
        plans = calibration_widths(self.template.sizes, self.grids)
        measured = {widths for widths, _ in self.table.models(self.conditions, self.identity)}
        for index, widths in enumerate(plans):
            progress("measure whole models", index, len(plans))
            if tuple(int(w) for w in widths) not in measured:
                self.measure(widths, {})
        progress("measure whole models", len(plans), len(plans))
        self._predictor = self._calibration = None
        return len(points)

    def measure(self, widths: Widths, kept: Mapping[str, Ids]) -> ModelMeasurement:
        """Measures the whole model at a plan and stores it. `kept` names the channels; {} means the first ones."""
        chosen = kept or {
            name: np.arange(int(w), dtype=np.int64) for name, w in zip(self.template.group_names, widths, strict=True)
        }
        measurement = measure_model(self.device, self.template.model_at(chosen), self.protocol)
        self.table.add_model(self.conditions, self.identity, [int(w) for w in widths], measurement.passes_ms)
        self._calibration = None
        return measurement

    @property
    def predictor(self) -> LatencyPredictor:
        if self._predictor is None:
            lows = self.table.lows(self.conditions)
            if not lows:
                raise MissingLatency([f"the whole network under {self.conditions.runtime}, {self.device.threads} threads"])
            self._predictor = LatencyPredictor(self.template, self.grids, lows)
        return self._predictor

    @property
    def calibration(self) -> calibration.Calibration:
        if self._calibration is None:
            measurements = self.measurements()[-RECENT_MODELS:]
            if len(measurements) < 4:
                raise MissingLatency(["whole models for the calibration"])
            widths = np.array([w for w, _ in measurements], dtype=np.int64)
            self._calibration = calibration.fit(
                self.predictor.sum_ms(widths),
                np.array([m.low_ms for _, m in measurements]),
                np.array([m.p50_ms for _, m in measurements]),
            )
        return self._calibration

    def measurements(self) -> list[tuple[tuple[int, ...], ModelMeasurement]]:
        """(widths, measurement) of whole models at plans of this network, oldest first."""
        rows = self.table.models(self.conditions, self.identity)
        groups = len(self.grids)
        return [
            (widths, ModelMeasurement(passes, self.conditions, self.protocol.warmup_runs))
            for widths, passes in rows
            if len(widths) == groups
        ]

    def p50_ms(self, widths: Widths) -> NDArray[np.float64]:
        """(N, groups) -> predicted p50 of the whole model, ms (N,)."""
        return self.calibration.p50_ms(self.predictor.sum_ms(widths))


def latency_model(
    space: Workspace, settings: Settings, network: Network, grids: Sequence[Widths], progress: Progress
) -> LatencyModel:
    """Loads or builds the template and opens the table. The caller closes `table`."""
    runtime = chosen_runtime(settings)
    template = load_or_build(network.module, network.groups, runtime, space.templates, progress=progress)
    return LatencyModel(
        template=template,
        device=HostDevice(runtime, settings.threads),
        table=LatencyTable(space.table_path),
        grids=grids,
        identity=f"{settings.model} x{settings.width_multiplier} {network.input_shape}",
    )
