"""The latency of any plan on one device: template, table, predictor and calibration wired together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.plan import grid
from amc_mobile.device.host import HostDevice, installed_runtimes
from amc_mobile.errors import MissingDependency, MissingLatency
from amc_mobile.kernels.cache import load_or_build
from amc_mobile.kernels.template import Template
from amc_mobile.latency.calibration import Calibration
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.predictor import LatencyPredictor
from amc_mobile.latency.protocol import measure_kernels, measure_model
from amc_mobile.latency.sampling import calibration_widths, kernel_requests
from amc_mobile.latency.table import LatencyTable
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace


def chosen_runtime(settings: Settings) -> str:
    """The runtime asked for, else TFLite where it is installed. Raises MissingDependency."""
    installed = installed_runtimes()
    runtime = settings.runtime or ("tflite" if "tflite" in installed else "onnxruntime")
    if runtime not in installed:
        raise MissingDependency("ai-edge-litert" if runtime == "tflite" else "onnxruntime", "tflite")
    return runtime
