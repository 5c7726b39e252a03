"""Channel pruning under a latency budget that is measured on the device it is meant for.

    import amc_mobile as amc

    space = amc.Workspace("amc-workspace")
    digits = {"width": 0.5, "input_size": 64, "data": "digits"}
    space.train("mobilenet_v1", epochs=8, **digits)
    network = space.network("mobilenet_v1", **digits)
    latency = space.profile(network, amc.open_device("host"))
    run = space.search(network, amc.Budget(latency_ratio=0.5), latency, episodes=300)

The names below are the public API; each is loaded when it is used first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from amc_mobile.channels.groups import find_groups as find_groups
    from amc_mobile.channels.plan import CHANNEL_CHOICES as CHANNEL_CHOICES
    from amc_mobile.channels.plan import PruningPlan as PruningPlan
    from amc_mobile.cli_options import progress_bars as progress_bars
    from amc_mobile.data.images import Dataset as Dataset
    from amc_mobile.data.images import ImageSet as ImageSet
    from amc_mobile.errors import AccuracyNotKept as AccuracyNotKept
    from amc_mobile.errors import AmbiguousDevice as AmbiguousDevice
    from amc_mobile.errors import AmcMobileError as AmcMobileError
    from amc_mobile.errors import BudgetNotMet as BudgetNotMet
    from amc_mobile.errors import BudgetNotVerified as BudgetNotVerified
    from amc_mobile.errors import CorruptFile as CorruptFile
    from amc_mobile.errors import DeadlineExceeded as DeadlineExceeded
    from amc_mobile.errors import DeviceDisconnected as DeviceDisconnected
    from amc_mobile.errors import DeviceError as DeviceError
    from amc_mobile.errors import DeviceUnauthorized as DeviceUnauthorized
    from amc_mobile.errors import DeviceUnavailable as DeviceUnavailable
    from amc_mobile.errors import InvalidConfig as InvalidConfig
    from amc_mobile.errors import InvalidInput as InvalidInput
    from amc_mobile.errors import MissingDependency as MissingDependency
    from amc_mobile.errors import MissingLatency as MissingLatency
    from amc_mobile.errors import NotFinite as NotFinite
    from amc_mobile.errors import PhoneBusy as PhoneBusy
    from amc_mobile.errors import PhoneCommandFailed as PhoneCommandFailed
    from amc_mobile.errors import PhoneDiskFull as PhoneDiskFull
    from amc_mobile.errors import PhoneOutputInvalid as PhoneOutputInvalid
    from amc_mobile.errors import PhoneRebooted as PhoneRebooted
    from amc_mobile.errors import PhoneUnfit as PhoneUnfit
    from amc_mobile.errors import RunnerFailed as RunnerFailed
    from amc_mobile.errors import SystemRefused as SystemRefused
    from amc_mobile.errors import UnreachableBudget as UnreachableBudget
    from amc_mobile.errors import UnsupportedLayer as UnsupportedLayer
    from amc_mobile.export.converters import export_module as export_module
    from amc_mobile.export.metadata import inspect as inspect
    from amc_mobile.export.parity import run_file as run_file
    from amc_mobile.models.task import evaluate as evaluate
    from amc_mobile.pruning.reconstruction import prune as prune
    from amc_mobile.search.policy import POLICIES as POLICIES
    from amc_mobile.search.reward import REWARDS as REWARDS
    from amc_mobile.workflows.compare import Comparison as Comparison
    from amc_mobile.workflows.devices import OpenedDevice as OpenedDevice
    from amc_mobile.workflows.devices import add_runtime as add_runtime
    from amc_mobile.workflows.devices import doctor as doctor
    from amc_mobile.workflows.devices import list_devices as list_devices
    from amc_mobile.workflows.devices import list_runtimes as list_runtimes
    from amc_mobile.workflows.devices import open_device as open_device
    from amc_mobile.workflows.export import measure as measure
    from amc_mobile.workflows.export import measure_pair as measure_pair
    from amc_mobile.workflows.export import measure_sustained as measure_sustained
    from amc_mobile.workflows.network import Network as Network
    from amc_mobile.workflows.runs import Run as Run
    from amc_mobile.workflows.runs import load_pruned as load_pruned
    from amc_mobile.workflows.search_config import Budget as Budget
    from amc_mobile.workflows.search_config import SearchConfig as SearchConfig
    from amc_mobile.workflows.workspace import Workspace as Workspace

# Module -> the public names in it; the same as above.
_PLACES = {
    "channels.groups": ("find_groups",),
    "channels.plan": ("CHANNEL_CHOICES", "PruningPlan"),
    "cli_options": ("progress_bars",),
    "data.images": ("Dataset", "ImageSet"),
    "errors": (
        "AccuracyNotKept", "AmbiguousDevice", "AmcMobileError", "BudgetNotMet", "BudgetNotVerified", "CorruptFile",
        "DeadlineExceeded", "DeviceDisconnected", "DeviceError", "DeviceUnauthorized", "DeviceUnavailable",
        "InvalidConfig", "InvalidInput", "MissingDependency", "MissingLatency", "NotFinite", "PhoneBusy",
        "PhoneCommandFailed", "PhoneDiskFull", "PhoneOutputInvalid", "PhoneRebooted", "PhoneUnfit", "RunnerFailed",
        "SystemRefused", "UnreachableBudget", "UnsupportedLayer",
    ),
    "export.converters": ("export_module",),
    "export.parity": ("run_file",),
    "models.task": ("evaluate",),
    "export.metadata": ("inspect",),
    "pruning.reconstruction": ("prune",),
    "search.policy": ("POLICIES",),
    "search.reward": ("REWARDS",),
    "workflows.compare": ("Comparison",),
    "workflows.devices": (
        "OpenedDevice", "add_runtime", "doctor", "list_devices", "list_runtimes", "open_device",
    ),
    "workflows.export": ("measure", "measure_pair", "measure_sustained"),
    "workflows.network": ("Network",),
    "workflows.runs": ("Run", "load_pruned"),
    "workflows.search_config": ("Budget", "SearchConfig"),
    "workflows.workspace": ("Workspace",),
}  # fmt: skip
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
