"""Measure one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_mobile.device.health import BUSY, REMEDIES
from amc_mobile.device.neighbours import Neighbours
from amc_mobile.device.timing import Heat
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.latency.measurement import ModelMeasurement, SustainedMeasurement
from amc_mobile.latency.protocol import measure_model, measure_sustained
from amc_mobile.latency.protocol_config import ProtocolConfig
from amc_mobile.report.quantities import NOTHING, kilobytes, megahertz, number, percent
from amc_mobile.workflows.measuring import chosen_runtime, open_device
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings

RUNTIME_OF_SUFFIX = {".tflite": "tflite", ".onnx": "onnxruntime"}
SHORTEST_S, LONGEST_S = 1.0, 3600.0  # of a sustained measurement
LOWEST_FPS, HIGHEST_FPS = 1.0, 1000.0


def measurement_text(measurement: ModelMeasurement) -> str:
    text = (
        f"p50 {measurement.p50_ms:.3f} ms (95 % CI {measurement.ci_low_ms:.3f}-{measurement.ci_high_ms:.3f})   "
        f"p90 {measurement.p90_ms:.3f} ms"
    )
    return text + (f"   flags: {', '.join(measurement.flags)}" if measurement.flags else "")


def session_lines(measurement: ModelMeasurement) -> list[str]:
    """What is known of the sessions besides their latency, and what the device did meanwhile."""
    told = [
        f"load {number(measurement.load_ms)} ms" if measurement.load_ms is not None else "",
        f"first inference {number(measurement.first_ms)} ms" if measurement.first_ms is not None else "",
        f"peak memory {kilobytes(measurement.peak_rss_kb)}" if measurement.peak_rss_kb is not None else "",
    ]
    top = percent(measurement.top_clock_share)
    did = [
        f"clock {megahertz(measurement.mean_mhz)} on average, {top} of the time at the highest"
        if top != NOTHING
        else "",
        f"{number(measurement.switches_per_sample)} involuntary context switches per sample"
        if measurement.switches_per_sample is not None
        else "",
        f"screen {measurement.screen}" if measurement.screen else "",
    ]
    return ["   ".join(one for one in line if one) for line in (told, did) if any(line)]


@dataclass(frozen=True)
class Cadence:
    """Runs a second, as an app makes them that gets so many frames."""

    fps: float

    def document(self, samples_ms: Sequence[float]) -> dict[str, Any]:
        return {"cadence_fps": self.fps, "late_share": self._late_share(samples_ms)}

    def text(self, samples_ms: Sequence[float]) -> str:
        return (
            f"{self.fps:g} runs a second, with gaps; {self._late_share(samples_ms):.1%} of the runs took longer than "
            f"the {1000 / self.fps:.1f} ms from one to the next"
        )

    def _late_share(self, samples_ms: Sequence[float]) -> float:
        return sum(value > 1000 / self.fps for value in samples_ms) / len(samples_ms)


@dataclass(frozen=True)
class MeasureResult:
    file: str
    measurement: ModelMeasurement
    neighbours: Neighbours | None  # the most that it was measured beside
    cadence: Cadence | None = None

    def document(self) -> dict[str, Any]:
        known = self.neighbours.to_document() if self.neighbours else None
        paced = self.cadence.document(self._runs_ms) if self.cadence else {}
        return {"file": self.file, **self.measurement.to_document(), "neighbours": known, **paced}

    def text(self) -> str:
        lines = [self.file, measurement_text(self.measurement), *session_lines(self.measurement)]
        lines += [self.cadence.text(self._runs_ms)] if self.cadence else []
        return "\n  ".join(lines + _busy_lines(self.neighbours))

    @property
    def _runs_ms(self) -> list[float]:
        return [value for samples in self.measurement.samples_ms for value in samples]


@dataclass(frozen=True)
class SustainedResult:
    file: str
    measurement: SustainedMeasurement
    neighbours: Neighbours | None
    cadence: Cadence | None = None

    def document(self) -> dict[str, Any]:
        known = self.neighbours.to_document() if self.neighbours else None
        paced = self.cadence.document(self.measurement.samples_ms) if self.cadence else {}
        return {"file": self.file, "sustained": self.measurement.to_document(), "neighbours": known, **paced}

    def text(self) -> str:
        measured = self.measurement
        lines = [
            f"{self.file}: {len(measured.samples_ms)} runs in {measured.seconds:.0f} s",
            *(
                f"until {window.ended_s:6.1f} s   p50 {window.p50_ms:.3f} ms   p90 {window.p90_ms:.3f} ms   "
                f"{slowdown:.2f}x the fastest{_heat_text(window.heat)}"
                for window, slowdown in zip(measured.windows, measured.slowdowns, strict=True)
            ),
            f"all runs       p50 {measured.p50_ms:.3f} ms   p90 {measured.p90_ms:.3f} ms   "
            f"at the end {measured.slowdowns[-1]:.2f}x as long as in the fastest window",
        ]
        lines += [self.cadence.text(measured.samples_ms)] if self.cadence else []
        return "\n  ".join(lines + _busy_lines(self.neighbours))


def _heat_text(heat: Heat) -> str:
    return "".join(
        [
            "" if heat.celsius is None else f"   {heat.celsius:.1f} C",
            "" if heat.clock_mhz is None else f"   clock {heat.clock_mhz:.0f} MHz",
            "" if heat.clock_limit_mhz is None else f"   clock limit {heat.clock_limit_mhz:.0f} MHz",
        ]
    )


def _busy_lines(neighbours: Neighbours | None) -> list[str]:
    if neighbours is None or not neighbours.is_busy:
        return []
    return [f"Warning: {neighbours.text()} [{BUSY}]", f"next: {REMEDIES[BUSY]}"]


def measure_file(
    file: Path,
    settings: Settings,
    *,
    sustained_s: float | None = None,
    cadence_fps: float | None = None,
    progress: Progress,
) -> MeasureResult | SustainedResult:
    """`sustained_s`: run for so long without letting the device cool, in place of ten short passes. `cadence_fps`: so
    many runs a second, in place of runs back to back.

    Raises InvalidInput for a file that is missing or of another format, DeviceError when it does not run.

    InvalidConfig for a runtime of another format, or a number out of range.
    """
    if sustained_s is not None and not SHORTEST_S <= sustained_s <= LONGEST_S:
        raise InvalidConfig(
            f"--sustained-s {sustained_s:g} is not between {SHORTEST_S:g} and {LONGEST_S:g} seconds",
            next_step="pass, for example, --sustained-s 60",
        )
    if cadence_fps is not None and not LOWEST_FPS <= cadence_fps <= HIGHEST_FPS:
        raise InvalidConfig(
            f"--cadence-fps {cadence_fps:g} is not between {LOWEST_FPS:g} and {HIGHEST_FPS:g} runs a second",
            next_step="pass, for example, --cadence-fps 30",
        )
    cadence = Cadence(cadence_fps) if cadence_fps is not None else None
    runtime = RUNTIME_OF_SUFFIX.get(file.suffix)
    if runtime is None:
        raise InvalidInput(f"{file}: not a .tflite or .onnx file", next_step="give a file of one of these formats")
    if not file.is_file():
        raise InvalidInput(f"no file {file}", next_step="check the path")
    if settings.runtime and chosen_runtime(settings) != runtime:
        raise InvalidConfig(
            f"{settings.runtime} does not run {file.suffix} files", next_step=f"leave --runtime out, or use {runtime}"
        )
    if sustained_s is not None:
        return _measure_sustained(file, settings, runtime, sustained_s, cadence, progress)
    progress("measure", 0, 1)
    device = open_device(settings, runtime, progress)
    measurement = measure_model(device, file.read_bytes(), _protocol(cadence))
    progress("measure", 1, 1)
    return MeasureResult(str(file), measurement, device.most_neighbours(), cadence)


def _protocol(cadence: Cadence | None) -> ProtocolConfig:
    return ProtocolConfig(cadence_fps=cadence.fps if cadence else 0.0)


def _measure_sustained(
    file: Path, settings: Settings, runtime: str, seconds: float, cadence: Cadence | None, progress: Progress
) -> SustainedResult:
    stage, total = "measure over time, s", math.ceil(seconds)
    progress(stage, 0, total)
    device = open_device(settings, runtime, progress)
    measured = measure_sustained(
        device,
        file.read_bytes(),
        seconds,
        on_window=lambda done_s: progress(stage, min(int(done_s), total), total),
        config=_protocol(cadence),
    )
    progress(stage, total, total)
    return SustainedResult(str(file), measured, device.most_neighbours(), cadence)
