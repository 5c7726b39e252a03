"""Measure one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_mobile.device.health import BUSY, REMEDIES
from amc_mobile.device.neighbours import Neighbours
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.protocol import measure_model
from amc_mobile.report.quantities import kilobytes, number
from amc_mobile.workflows.measuring import chosen_runtime, open_device
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings

RUNTIME_OF_SUFFIX = {".tflite": "tflite", ".onnx": "onnxruntime"}


def measurement_text(measurement: ModelMeasurement) -> str:
    text = (
        f"p50 {measurement.p50_ms:.3f} ms (95 % CI {measurement.ci_low_ms:.3f}-{measurement.ci_high_ms:.3f})   "
        f"p90 {measurement.p90_ms:.3f} ms"
    )
    return text + (f"   flags: {', '.join(measurement.flags)}" if measurement.flags else "")


def session_lines(measurement: ModelMeasurement) -> list[str]:
    """What is known of a session besides its latency."""
    told = [
        f"load {number(measurement.load_ms)} ms" if measurement.load_ms is not None else "",
        f"first inference {number(measurement.first_ms)} ms" if measurement.first_ms is not None else "",
        f"peak memory {kilobytes(measurement.peak_rss_kb)}" if measurement.peak_rss_kb is not None else "",
    ]
    known = "   ".join(one for one in told if one)
    return [known] if known else []


@dataclass(frozen=True)
class MeasureResult:
    file: str
    measurement: ModelMeasurement
    neighbours: Neighbours | None  # the most that it was measured beside

    def document(self) -> dict[str, Any]:
        known = self.neighbours.to_document() if self.neighbours else None
        return {"file": self.file, **self.measurement.to_document(), "neighbours": known}

    def text(self) -> str:
        lines = [self.file, measurement_text(self.measurement), *session_lines(self.measurement)]
        if self.neighbours and self.neighbours.is_busy:
            lines += [f"Warning: {self.neighbours.text()} [{BUSY}]", f"next: {REMEDIES[BUSY]}"]
        return "\n  ".join(lines)


def measure_file(file: Path, settings: Settings, *, progress: Progress) -> MeasureResult:
    """Raises InvalidInput for a file that is missing or of another format, DeviceError when it does not run.

    InvalidConfig for a runtime of another format.
    """
    runtime = RUNTIME_OF_SUFFIX.get(file.suffix)
    if runtime is None:
        raise InvalidInput(f"{file}: not a .tflite or .onnx file", next_step="give a file of one of these formats")
    if not file.is_file():
        raise InvalidInput(f"no file {file}", next_step="check the path")
    if settings.runtime and chosen_runtime(settings) != runtime:
        raise InvalidConfig(
            f"{settings.runtime} does not run {file.suffix} files", next_step=f"leave --runtime out, or use {runtime}"
        )
    progress("measure", 0, 1)
    device = open_device(settings, runtime, progress)
    measurement = measure_model(device, file.read_bytes())
    progress("measure", 1, 1)
    return MeasureResult(str(file), measurement, device.most_neighbours())
