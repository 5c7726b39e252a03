"""Build the latency table of a network on a device, and the latency model on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from amc_mobile.device.conditions import Conditions, readable
from amc_mobile.device.device import Device, Neighbours
from amc_mobile.device.host import assumed_layout
from amc_mobile.device.phone_state import BUSY, REMEDIES, WIDE_BAND
from amc_mobile.errors import DeviceError, InvalidConfig
from amc_mobile.formats import FLOAT32
from amc_mobile.kernels.template import Template, load_or_build
from amc_mobile.latency.calibration import Calibration
from amc_mobile.latency.kernel_fit import can_be_quick
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.protocol import QUICK, ProtocolConfig
from amc_mobile.latency.sharing import ANCHORS, RESIDUAL, PhoneShare, judge, share_kernels
from amc_mobile.latency.table import LatencyTable
from amc_mobile.store import to_document
from amc_mobile.workflows.devices import chosen_runtime, device_of, profile_of
from amc_mobile.workflows.network import Network, default_grids, load_network
from amc_mobile.workflows.workspace import Progress, Settings, Workspace


def template_of(space: Workspace, settings: Settings, network: Network, layout: str, progress: Progress) -> Template:
    """`layout`: ONNX Runtime's on the device; "": as it is on this computer."""
    runtime = chosen_runtime(settings)
    return load_or_build(
        network.module, network.groups, runtime, space.templates, precision=settings.precision,
        layout=layout or assumed_layout(runtime), progress=progress,
    )  # fmt: skip


def latency_model(
    space: Workspace,
    settings: Settings,
    network: Network,
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
    template = template_of(space, settings, network, conditions.layout, progress)
    sampled = default_grids(network)
    quick = quick and can_be_quick(template.sizes, sampled)
    identity = f"{settings.model} x{settings.width_multiplier} {network.input_shape}"
    return LatencyModel(
        template=template,
        device=device,
        table=LatencyTable(space.table_location(settings)),
        grids=sampled,
        sampled=sampled,
        quick=quick,
        protocol=QUICK if quick else ProtocolConfig(),
        identity=identity if settings.precision == FLOAT32 else f"{identity} {settings.precision}",
    )


@dataclass(frozen=True)
class MeasuredUnderLoad:
    """Kernels and models that were only measured under load of other programs. `neighbours`: the highest load now."""

    neighbours: Neighbours | None
    kernels: int
    models: int

    def lines(self) -> list[str]:
        if not self.kernels and not self.models:
            return []
        seen = f": {self.neighbours.text()}" if self.neighbours and self.neighbours.is_busy else ""
        what = f"{self.kernels} kernels and {self.models} whole models were measured on a busy device"
        return [
            f"Warning: {what}{seen} [{BUSY}]",
            *(["the error band is widened for that"] if self.models else []),
            f"next: {REMEDIES[BUSY]}",
        ]


@dataclass(frozen=True)
class OtherUnit:
    """How the phone compares with another of its model that the table knows, by a few kernels measured on both.

    `ratio`: this phone's latencies over the other's; the other's kernels were taken over times that. None: they
    differ from kernel to kernel, or too few were steady, and this phone gets a table of its own.
    """

    unit: str  # of the other phone; "" where the table does not say which one it was
    ratio: float | None
    kernels: int  # taken over
    why: str

    def text(self) -> str:
        other = f"phone {self.unit} of this model" if self.unit else "a phone of this model"
        if self.ratio is None:
            return f"{other} was measured before and {self.why}: this phone has a table of its own"
        return (
            f"{other} was measured before and {self.why}: {self.kernels} kernels taken over times {self.ratio:.3f}, "
            "whole models measured on this phone"
        )


@dataclass(frozen=True)
class QuickProfile:
    """What a quick profile left out: kernels and whole models of a full one. Those measured had fewer passes."""

    lacking_kernels: int
    lacking_models: int

    def lines(self) -> list[str]:
        return [
            f"Quick profile: {self.lacking_kernels} kernels and {self.lacking_models} whole models of a full one are "
            "not measured, the others in fewer passes: predictions are less sure, and the band is wider",
            "next: run `amc-mobile profile` without --quick, which measures the rest",
        ]


@dataclass(frozen=True)
class ProfileResult:
    model: str
    precision: str
    conditions: Conditions
    kernels: int
    original_p50_ms: float
    fastest_p50_ms: float
    calibration: Calibration
    busy: MeasuredUnderLoad
    phones: Sequence[PhoneShare] = ()  # that shared the work
    other_units: Sequence[OtherUnit] = ()  # that this phone was compared with now
    quick: QuickProfile | None = None

    def document(self) -> dict[str, Any]:
        return {**to_document(self), "flags": list(self.flags)}

    def text(self) -> str:
        where, fitted = self.conditions, self.calibration
        text = (
            f"{self.model} ({self.precision}) on {where.device} ({where.soc}), {where.runtime} "
            f"{where.runtime_version}, {where.threads} thread(s){self._layout()}\n"
            f"  {self.kernels} kernels and {fitted.models} whole models measured\n"
            f"  original p50 {self.original_p50_ms:.3f} ms, smallest plan {self.fastest_p50_ms:.3f} ms (predicted)\n"
            f"  prediction error {fitted.loo_mape:.1%} (leave one out), band {fitted.band:.1%}"
        )
        return "\n  ".join(
            [
                text,
                *(f"phone {phone.text()}" for phone in self.phones),
                *(other.text() for other in self.other_units),
                *(self.quick.lines() if self.quick else []),
                *self.busy.lines(),
                *self._unusable(),
            ]
        )

    @property
    def flags(self) -> tuple[str, ...]:
        return (WIDE_BAND,) if self.calibration.problem else ()

    def _unusable(self) -> list[str]:
        if not self.calibration.problem:
            return []
        return [f"Warning: {self.calibration.problem} [{WIDE_BAND}]", f"next: {REMEDIES[WIDE_BAND]}"]

    def _layout(self) -> str:
        shown = readable(self.conditions.to_document())
        layout, unit = shown.get("layout"), shown.get("unit")
        return (f", {layout}" if layout else "") + (f", unit {unit}" if unit else "")


def profile_result(model: str, precision: str, latency: LatencyModel, kernels: int) -> ProfileResult:
    smallest = np.array([widths[0] for widths in latency.grids])
    ends = latency.p50_ms(np.stack([latency.template.sizes, smallest]))
    return ProfileResult(
        model,
        precision,
        latency.conditions,
        kernels,
        float(ends[0]),
        float(ends[1]),
        latency.calibration,
        _measured_under_load(latency),
        quick=QuickProfile(*lacking) if any(lacking := latency.lacking()) else None,
    )


def _measured_under_load(latency: LatencyModel) -> MeasuredUnderLoad:
    kernels = latency.table.passes(latency.conditions, latency.kernel_places())
    models = latency.table.passes(latency.conditions, [plan.key for plan in latency.calibration_requests()])
    return MeasuredUnderLoad(
        latency.device.most_neighbours(),
        *(sum(all(one.busy for one in passes) for passes in found.values()) for found in (kernels, models)),
    )


@dataclass(eq=False, kw_only=True)
class ProfiledLatency(LatencyModel):
    """The latency model that a profile leaves: `p50_ms(plan)`, `band`, `conditions`, `to_frame()`.

    `settings`: of the device, for the steps that follow; `result`: what the profile measured.
    """

    settings: Settings
    result: ProfileResult


def profiled_latency(
    space: Workspace, settings: Settings, network: Network | None, progress: Progress, *, quick: bool = False
) -> LatencyModel:
    """The latency model over the widths that a profile measures. `network`: the one of the settings, if it is open."""
    return latency_model(space, settings, load_network(space, settings, network), progress, quick=quick)


def profile_device(
    space: Workspace, settings: Settings, *, network: Network | None = None, quick: bool = False, progress: Progress
) -> ProfiledLatency:
    """Measures what the table lacks and remembers model and device for the next steps.

    `quick`: some kernels and whole models, in fewer passes; a later full profile measures the rest.
    """
    serials = settings.serials
    if len(set(serials)) < len(serials):
        raise InvalidConfig(f"--serial {settings.serial} names a phone twice", next_step="name each phone once")
    if len(serials) > 1 and profile_of(settings.device).is_host:
        raise InvalidConfig("this computer has no --serial", next_step="pass --device with a phone's profile")
    own = replace(settings, serial=serials[0] if serials else "")
    latency = profiled_latency(space, own, network, progress, quick=quick)
    with latency.table:
        others = _compare_units(latency, progress)
        phones = _share(latency, settings, progress) if len(serials) > 1 else []
        for phone in phones[:1]:  # the first does alone what nobody did
            phone.kernels += len(latency.kernel_places().keys() - latency.table.kernels(latency.conditions).keys())
        try:
            kernels = latency.measure_missing(progress)
        except DeviceError as error:
            problems = [phone.text() for phone in phones if phone.problem]
            if not problems:
                raise
            raise DeviceError("; before: ".join([error.message, *problems]), next_step=error.next_step) from error
        result = replace(
            profile_result(settings.model, settings.precision, latency, kernels), phones=phones, other_units=others
        )
    space.remember(own)
    parts = {each.name: getattr(latency, each.name) for each in fields(latency)}
    return ProfiledLatency(**parts, settings=own, result=result)


def _compare_units(latency: LatencyModel, progress: Progress) -> list[OtherUnit]:
    """Takes over what another phone of the model was measured at, where anchors differ by one factor alone."""
    now, table, compared = latency.conditions, latency.table, []
    places = latency.kernel_places()
    for source in reversed(table.conditions()):
        if not source.is_of_other_unit(now):
            continue
        own = table.passes(now, places)
        known = [k for k in table.kernels(source).values() if k.key in places and not k.flags]
        lacking = [kernel.key for kernel in known if kernel.key not in own]
        if not lacking or len(known) < ANCHORS:
            continue
        pairs = latency.measure_again(known, progress, store=True)
        steady = {old.label: new.low_ms / old.low_ms for old, new in pairs if not new.flags}
        if len(steady) < ANCHORS:
            why = f"only {len(steady)} of {len(pairs)} anchors were steady on this phone"
            compared.append(OtherUnit(source.unit, None, 0, why))
            continue
        verdict = judge(steady)
        low, high = min(verdict.ratios.values()), max(verdict.ratios.values())
        why = f"this one takes {low:.3f} to {high:.3f} times as long for {len(steady)} kernels"
        if verdict.spread > RESIDUAL:
            why += f", {verdict.spread:.1%} from their median where {RESIDUAL:.0%} is the most"
            compared.append(OtherUnit(source.unit, None, 0, why))
            continue
        taken = [key for key in lacking if key not in table.passes(now, places)]
        table.adopt(now, source, taken, verdict.ratio)
        compared.append(OtherUnit(source.unit, verdict.ratio, len(taken), why))
        break
    return compared


def _share(latency: LatencyModel, settings: Settings, progress: Progress) -> list[PhoneShare]:
    """Lets several phones measure the kernels. What they leave is still missing afterwards."""
    first, *others = settings.serials
    runtime = chosen_runtime(settings)
    devices = {serial: device_of(replace(settings, serial=serial), runtime, progress) for serial in others}
    places = latency.kernel_places()
    kernels = {key: latency.template.kernel_at(site, widths) for key, (site, widths) in places.items()}
    work = {key: k.macs + k.weight_bytes + k.activation_bytes for key, k in kernels.items()}
    requests = latency.kernel_requests(places[key] for key in sorted(work, key=lambda key: (-work[key], key)))
    types = {key: latency.template.sites[site].operator_type for key, (site, _) in places.items()}
    return share_kernels(
        {first: latency.device} | devices,
        requests,
        types,
        table=latency.table,
        on_progress=progress,
        config=latency.protocol,
    )
