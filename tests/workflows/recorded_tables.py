"""Latency tables of devices that are not there: every kernel that a profile would measure, with invented times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Pass
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.table import LatencyTable, RecordedDevice
from amc_mobile.workflows.network import load_network
from amc_mobile.workflows.profile import latency_model
from amc_mobile.workflows.workspace import Settings, Workspace, silent

SMALL_NET = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""


def phone(device: str = "Google Pixel 8", **facts: object) -> Conditions:
    values = {
        "soc": "zuma", "os": "Android 15 google/shiba/shiba:15/AP4A/1:user/release-keys", "runtime": "onnxruntime",
        "runtime_version": "1.20", "library_sha256": "", "delegate": "cpu", "threads": 1, "cores": "8",
        "clock_mode": "unlocked",
    }  # fmt: skip
    return Conditions(device, **{**values, **facts})  # type: ignore[arg-type]


GALAXY = phone("samsung SM-S911B", os="Android 14 samsung/dm1qxxx/dm1q:14/UP1A/3:user/release-keys")


def small_net(folder: Path) -> tuple[Workspace, Settings]:
    """A network of two convolutions and its settings, as `cwd`-relative flags would give them."""
    (folder / "net.py").write_text(SMALL_NET)
    settings = Settings(model=f"{folder / 'net.py'}:build", data="digits", input_size=32, runtime="onnxruntime")
    return Workspace(folder / "amc-workspace"), settings


def record(space: Workspace, settings: Settings, conditions: Conditions, *, ns_per_mac: float = 1.0) -> None:
    """Fills the workspace's table as `profile` would: 10 us for each kernel and so many ns for each MAC."""
    latency = opened(space, settings, conditions)
    with latency.table as table:
        places = latency.kernel_places()
        kernels = [latency.template.kernel_at(site, widths) for site, widths in places.values()]
        _add(table, conditions, [(kernel, kernel_ms(kernel, ns_per_mac)) for kernel in kernels])
        requests = latency.calibration_requests()
        table.add_models(requests)
        wholes = [(r.key, Pass((whole_ms(latency, r.widths, ns_per_mac),) * 40)) for r in requests]
        table.add_passes(conditions, wholes, warmup_runs=5)


def opened(space: Workspace, settings: Settings, conditions: Conditions) -> LatencyModel:
    """The latency model of a device that is not there, over the widths of a profile."""
    network = load_network(space, settings)
    device = RecordedDevice(conditions)
    return latency_model(space, settings, network, silent, device=device)


def record_two_phones(folder: Path) -> None:
    """A workspace with the tables of two phones, `pixel` and `galaxy`, of which the second is three times slower."""
    space, settings = small_net(folder)
    record(space, settings, phone())
    record(space, replace(settings, device="galaxy"), GALAXY, ns_per_mac=3.0)


def kernel_ms(kernel: Kernel, ns_per_mac: float) -> float:
    return 0.01 + kernel.macs * ns_per_mac * 1e-6


def whole_ms(latency: LatencyModel, widths: tuple[int, ...], ns_per_mac: float) -> float:
    return sum(kernel_ms(kernel, ns_per_mac) for kernel in latency.template.kernels(widths))


def _add(table: LatencyTable, conditions: Conditions, timed: list[tuple[Kernel, float]]) -> None:
    table.add_kernels([kernel for kernel, _ in timed])
    table.add_passes(conditions, [(kernel.key, Pass((ms,) * 4)) for kernel, ms in timed], warmup_runs=1)
