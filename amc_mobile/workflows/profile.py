"""Build the latency table of a network on a device."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.plan import grid
from amc_mobile.errors import InvalidConfig
from amc_mobile.latency.calibration import Calibration
from amc_mobile.workflows.latency_model import LatencyModel, latency_model
from amc_mobile.workflows.network import Network, load_network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace


@dataclass(frozen=True)
class ProfileResult:
    model: str
    conditions: dict[str, Any]
    kernels: int
    original_p50_ms: float
    fastest_p50_ms: float
    calibration: Calibration

    def document(self) -> dict[str, Any]:
        return {
            "model": self.model, "conditions": self.conditions, "kernels": self.kernels,
            "original_p50_ms": self.original_p50_ms, "fastest_p50_ms": self.fastest_p50_ms,
            "calibration": self.calibration.to_document(),
        }  # fmt: skip

    def text(self) -> str:
        c = self.calibration
        return (
            f"{self.model} on {self.conditions['device']} ({self.conditions['soc']}), {self.conditions['runtime']} "
            f"{self.conditions['runtime_version']}, {self.conditions['threads']} thread(s)\n"
            f"  {self.kernels} kernels and {c.models} whole models measured\n"
            f"  original p50 {self.original_p50_ms:.3f} ms, smallest plan {self.fastest_p50_ms:.3f} ms (predicted)\n"
            f"  prediction error {c.loo_mape:.1%} (leave one out), band {c.band:.1%}"
        )


def default_grids(
    network: Network, *, multiple: int = 8, min_keep_ratio: float = 0.2, keep: str = ""
) -> list[NDArray[np.int64]]:
    """The widths each group may take. `keep`: groups that stay whole, as patterns of their names separated by commas,
    or "residual": those that more than one layer writes, which shortcuts add up. Raises InvalidConfig."""
    patterns = [pattern for pattern in keep.replace(" ", "").split(",") if pattern]
    for pattern in patterns:
        if pattern != "residual" and not fnmatch.filter(network.groups.names, pattern):
            raise InvalidConfig(
                f"--keep {pattern!r} names no channel group", next_step=f"groups: {', '.join(network.groups.names)}"
            )
    grids = []
    for group in network.groups.groups:
        whole = any(fnmatch.fnmatchcase(group.name, pattern) for pattern in patterns)
        whole |= "residual" in patterns and len(group.producers) > 1
        lowest = 1.0 if whole else min_keep_ratio
        grids.append(grid(group.channels, multiple=multiple, min_keep_ratio=lowest))
    return grids


def profile_result(model: str, latency: LatencyModel, kernels: int) -> ProfileResult:
    smallest = np.array([grid[0] for grid in latency.grids])
    ends = latency.p50_ms(np.stack([latency.template.sizes, smallest]))
    return ProfileResult(
        model, latency.conditions.to_document(), kernels, float(ends[0]), float(ends[1]), latency.calibration
    )


def profile_device(space: Workspace, settings: Settings, *, progress: Progress) -> ProfileResult:
    """Measures what the table lacks and remembers model and device for the next steps."""
    network = load_network(space, settings)
    latency = latency_model(space, settings, network, default_grids(network), progress)
    with latency.table:
        kernels = latency.measure_missing(progress)
        result = profile_result(settings.model, latency, kernels)
    space.remember(settings)
    return result
