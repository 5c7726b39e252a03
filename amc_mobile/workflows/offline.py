"""A table used without its device: which of its conditions are meant, and the device that only remembers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.profile import DeviceProfile, load_profiles
from amc_mobile.device.user_folder import profiles_folder
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.table import LatencyTable
from amc_mobile.workflows.measuring import RecordedDevice
from amc_mobile.workflows.workspace import Settings, Workspace

SHOWN_KEY = 8  # digits of a key that tell conditions apart
RUNTIMES = ("tflite", "onnxruntime")


def recorded(space: Workspace, settings: Settings) -> tuple[RecordedDevice, Settings]:
    """The device that the table remembers, and the settings with its runtime and threads.

    Raises InvalidInput where the table has nothing of `settings.device`, or several conditions that fit.
    """
    location = space.table_location(settings)
    if location == space.table_path and not space.table_path.exists():
        raise InvalidInput(
            f"no latency table in {space.folder}, which --offline needs",
            next_step="import one with `amc-mobile table import`, or attach the device and run `amc-mobile profile`",
        )
    with LatencyTable(location) as table:
        found = choose_conditions(table.conditions(), settings)
    runtime = found.runtime if found.runtime in RUNTIMES else settings.runtime or _exporter()
    return RecordedDevice(found), replace(settings, runtime=runtime, conditions=found.key, offline=True)


def not_measured(device: str) -> str:
    """What every text says of latencies that only the table of `device`, as the table names it, tells."""
    return f"PREDICTED, NOT MEASURED: by the table of {device}, without the device"


def _exporter() -> str:
    """Where a table does not say its runtime, any export tells the kernels' shapes."""
    return "tflite" if find_spec("litert_torch") else "onnxruntime"


def choose_conditions(known: Sequence[Conditions], settings: Settings) -> Conditions:
    """The one of `known` that the settings mean; raises InvalidInput listing them where that is not exactly one."""
    profile = load_profiles(profiles_folder()).get(settings.device)
    of_device = [c for c in known if is_of(c, settings.device, profile)]
    if not of_device:
        raise InvalidInput(
            f"the table holds nothing measured on {settings.device}" + _listed(known),
            next_step="pass the --device that it was measured on, or import another table",
        )
    keys = [key for key in settings.conditions.replace(" ", "").split(",") if key]
    fitting = [c for c in of_device if any(c.key.startswith(key) for key in keys)]
    if not fitting:
        # What another tool measured may not say its runtime.
        runtimes = (settings.runtime, "unknown") if settings.runtime else (*RUNTIMES, "unknown")
        fitting = [c for c in of_device if c.threads == settings.threads and c.runtime in runtimes]
    if not fitting:
        asked = f"{settings.runtime or 'any runtime'}, {settings.threads} thread(s)"
        raise InvalidInput(
            f"nothing of {settings.device} was measured with {asked}" + _listed(of_device),
            next_step="pass the --runtime and --threads of one of these",
        )
    units = {unit_of(serial) for serial in settings.serials}
    if len(fitting) > 1 and not keys:
        # Of several phones of one model, the one that was worked with.
        fitting = [c for c in fitting if c.unit in units] or fitting
    if len(fitting) > 1:
        raise InvalidInput(
            f"{len(fitting)} conditions of the table fit {settings.device}" + _listed(fitting),
            next_step=f"choose one: --conditions {fitting[-1].key[:SHOWN_KEY]}",
        )
    return fitting[0]


def is_of(conditions: Conditions, device: str, profile: DeviceProfile | None) -> bool:
    """Whether something was measured on `device`: the name that the table gives it, or a profile that fits."""
    if conditions.device == device:
        return True
    return profile is not None and not profile.is_host and profile.fits(_properties(conditions))


def _properties(conditions: Conditions) -> dict[str, str]:
    """What conditions keep of a phone's properties."""
    manufacturer, _, model = conditions.device.partition(" ")
    # Behind the version of Android: BRAND/PRODUCT/DEVICE:VERSION/...
    fingerprint = conditions.os.rpartition(" ")[2].split("/")
    found = {"ro.product.manufacturer": manufacturer, "ro.product.model": model, "ro.soc.model": conditions.soc}
    if len(fingerprint) > 2:
        found |= {"ro.product.brand": fingerprint[0], "ro.product.device": fingerprint[2].partition(":")[0]}
    return found


def _listed(known: Sequence[Conditions]) -> str:
    lines = [
        f"\n  {c.key[:SHOWN_KEY]}  {c.device} ({c.soc}), {c.os}, {c.runtime} {c.runtime_version}, "
        f"{c.threads} thread(s), cores {c.cores}, clocks {c.clock_mode}{', unit ' + c.unit if c.unit else ''}"
        for c in known
    ]
    return ":" + "".join(lines) if lines else ""
