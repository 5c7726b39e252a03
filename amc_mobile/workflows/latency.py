"""The latency model of a network on a device, from the settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc_mobile.device.device import Device
from amc_mobile.device.host import assumed_layout
from amc_mobile.formats import FLOAT32
from amc_mobile.kernels.template import load_or_build
from amc_mobile.latency.kernel_fit import can_be_quick
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.protocol import QUICK, ProtocolConfig
from amc_mobile.latency.table import LatencyTable
from amc_mobile.workflows.devices import chosen_runtime, device_of
from amc_mobile.workflows.network import Network, default_grids
from amc_mobile.workflows.workspace import Progress, Settings, Workspace


def latency_model(
    space: Workspace,
    settings: Settings,
    network: Network,
    grids: Sequence[NDArray[np.int64]],
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
