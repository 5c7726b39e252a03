"""Measure one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.protocol import measure_model
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


@dataclass(frozen=True)
class MeasureResult:
    file: str
    measurement: ModelMeasurement

    def document(self) -> dict[str, Any]:
        return {"file": self.file, **self.measurement.to_document()}

    def text(self) -> str:
        return f"{self.file}\n  {measurement_text(self.measurement)}"


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
    measurement = measure_model(open_device(settings, runtime, progress), file.read_bytes())
    progress("measure", 1, 1)
    return MeasureResult(str(file), measurement)
