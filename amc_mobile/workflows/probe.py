"""Probe how the device's kernels climb with their channels, and what a search makes of it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from amc_mobile.errors import InvalidInput
from amc_mobile.latency.probe import (
    LEAST_MULTIPLE,
    KernelType,
    aligned_multiple,
    probe_points,
    stored_steps,
)
from amc_mobile.workflows.latency_model import LatencyModel, latency_model
from amc_mobile.workflows.listing import steps_text
from amc_mobile.workflows.network import default_grids, load_network
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace


@dataclass(frozen=True)
class GridMultiple:
    """What kept channels are multiples of, and why."""

    used: int
    why: str

    def text(self) -> str:
        return f"kept channels are multiples of {self.used}: {self.why}"


@dataclass(frozen=True)
class ProbeResult:
    """`kernels`: how many were measured, by this probe or before it; `new_kernels`: by this one, which took `wall_s`.

    `cpu_s`: of this process, loading the network and its export included.
    """

    conditions: dict[str, Any]
    steps: list[dict[str, Any]]
    kernels: int
    new_kernels: int
    wall_s: float
    cpu_s: float
    multiple: GridMultiple

    def document(self) -> dict[str, Any]:
        return {
            "conditions": self.conditions, "kernels": self.kernels, "new_kernels": self.new_kernels,
            "wall_s": self.wall_s, "cpu_s": self.cpu_s, "steps": self.steps,
            "multiple": self.multiple.used, "multiple_why": self.multiple.why,
        }  # fmt: skip

    def text(self) -> str:
        where = self.conditions
        return (
            f"{where['device']} ({where['soc']}), {where['runtime']} {where['runtime_version']}, "
            f"{where['threads']} thread(s): {self.kernels} kernels around multiples of 4 to 64 channels, "
            f"{self.new_kernels} of them measured now, in {self.wall_s:.0f} s ({self.cpu_s:.0f} s of CPU time)\n"
            f"{steps_text(self.steps)}\nin a search, {self.multiple.text()}"
        )


def probe_device(space: Workspace, settings: Settings, *, progress: Progress) -> ProbeResult:
    """Measures what the table lacks of the network's kernels around tiles, and judges them.

    Raises InvalidInput where the network's groups are too narrow to tell anything.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    network = load_network(space, settings)
    with closing(latency_model(space, settings, network, default_grids(network), progress)) as latency:
        points = probe_points(latency.template)
        if not points:
            raise InvalidInput(
                "no kernel of this network has channels enough to be probed", next_step="probe with a wider network"
            )
        known = latency.table.kernels(latency.conditions)
        latency.measure_kernels_at(points, progress)
        steps = stored_steps(latency.table, latency.conditions)
        result = ProbeResult(
            latency.conditions.to_document(),
            [one.to_document() for one in steps],
            len(points),
            len(latency.table.kernels(latency.conditions).keys() - known.keys()),
            time.monotonic() - started,
            time.process_time() - cpu_started,
            probed_multiple(latency),
        )
    space.remember(settings)
    return result


def probed_multiple(latency: LatencyModel) -> GridMultiple:
    """The multiple that the table's kernels of the network's types ask for."""
    template = latency.template
    types = {KernelType.of(kernel) for kernel in template.kernels(template.sizes)}
    found = [steps for steps in stored_steps(latency.table, latency.conditions) if steps.kernel_type in types]
    if not found:
        return GridMultiple(LEAST_MULTIPLE, "the default; `amc-mobile table probe` finds what the device prefers")
    multiple = aligned_multiple(found)
    if multiple == LEAST_MULTIPLE:
        return GridMultiple(multiple, "the probe found no kernel that is slower at other multiples of it")
    reasons = ", ".join(
        f"{steps.kernel_type.name} ({steps.axis}) is {steps.slowdown:.0%} slower outside multiples of {steps.aligned}"
        for steps in found
        if LEAST_MULTIPLE % steps.aligned
    )
    if template.sizes.max() < 2 * multiple:
        return GridMultiple(LEAST_MULTIPLE, f"no group is wide enough for multiples of {multiple}, though {reasons}")
    return GridMultiple(multiple, f"by the probe, {reasons}")
