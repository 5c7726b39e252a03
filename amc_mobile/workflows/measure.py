"""Measure one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc_mobile.device.host import HostDevice
from amc_mobile.device.profile import HOST
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.protocol import measure_model
from amc_mobile.workflows.phones import PhoneChoice, measure_on_phone, open_phone
from amc_mobile.workflows.progress import Progress

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


def measure_file(
    file: Path, *, device: str, threads: int, progress: Progress, choice: PhoneChoice | None = None
) -> MeasureResult:
    """Measures on this computer ("host") or on the attached phone that fits the profile `device`.

    Raises InvalidInput for a file that is missing or of another format, DeviceError when it does not run.
    """
    runtime = RUNTIME_OF_SUFFIX.get(file.suffix)
    if runtime is None:
        raise InvalidInput(f"{file}: not a .tflite or .onnx file", next_step="give a file of one of these formats")
    if not file.is_file():
        raise InvalidInput(f"no file {file}", next_step="check the path")
    progress("measure", 0, 1)
    if device == HOST:
        measurement = measure_model(HostDevice(runtime, threads), file.read_bytes())
        progress("measure", 1, 1)
    else:
        phone = open_phone(
            device, runtime, threads, choice or PhoneChoice(),
            on_wait=lambda state, waited_s: progress("cool down", int(waited_s), 0, f"{state.celsius} C"),
        )  # fmt: skip
        measurement = measure_on_phone(phone, file.read_bytes(), progress)
    return MeasureResult(str(file), measurement)
