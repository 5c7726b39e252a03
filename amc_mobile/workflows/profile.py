"""Build the latency table of a network on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from amc_mobile.latency.calibration import Calibration
from amc_mobile.workflows.latency_model import LatencyModel, default_grids, latency_model
from amc_mobile.workflows.network import load_network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace


@dataclass(frozen=True)
class ProfileResult:
    model: str
    precision: str
    conditions: dict[str, Any]
    kernels: int
    original_p50_ms: float
    fastest_p50_ms: float
    calibration: Calibration

    def document(self) -> dict[str, Any]:
        return {
            "model": self.model, "precision": self.precision, "conditions": self.conditions, "kernels": self.kernels,
            "original_p50_ms": self.original_p50_ms, "fastest_p50_ms": self.fastest_p50_ms,
            "calibration": self.calibration.to_document(),
        }  # fmt: skip

    def text(self) -> str:
        c = self.calibration
        return (
            f"{self.model} ({self.precision}) on {self.conditions['device']} ({self.conditions['soc']}), "
            f"{self.conditions['runtime']} {self.conditions['runtime_version']}, "
            f"{self.conditions['threads']} thread(s)\n"
            f"  {self.kernels} kernels and {c.models} whole models measured\n"
            f"  original p50 {self.original_p50_ms:.3f} ms, smallest plan {self.fastest_p50_ms:.3f} ms (predicted)\n"
            f"  prediction error {c.loo_mape:.1%} (leave one out), band {c.band:.1%}"
        )


def profile_result(settings: Settings, latency: LatencyModel, kernels: int) -> ProfileResult:
    smallest = np.array([widths[0] for widths in latency.grids])
    ends = latency.p50_ms(np.stack([latency.template.sizes, smallest]))
    return ProfileResult(
        settings.model,
        settings.precision,
        latency.conditions.to_document(),
        kernels,
        float(ends[0]),
        float(ends[1]),
        latency.calibration,
    )


def profile_device(space: Workspace, settings: Settings, *, progress: Progress) -> ProfileResult:
    """Measures what the table lacks and remembers model and device for the next steps."""
    network = load_network(space, settings)
    latency = latency_model(space, settings, network, default_grids(network), progress)
    with latency.table:
        kernels = latency.measure_missing(progress)
        result = profile_result(settings, latency, kernels)
    space.remember(settings)
    return result
