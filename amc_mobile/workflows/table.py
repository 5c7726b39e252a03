"""The latency table: what it holds, and what can be done with it: carry, merge, check, adopt, probe, draw."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile import store
from amc_mobile.device.conditions import Conditions, readable
from amc_mobile.errors import AmcMobileError, DeviceError, InvalidInput
from amc_mobile.latency import table_files
from amc_mobile.latency.kernel_fit import SiteModel, Steps
from amc_mobile.latency.measurement import KernelMeasurement
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.predictor import LatencyPredictor
from amc_mobile.latency.probe import (
    LEAST_MULTIPLE,
    ChannelSteps,
    KernelType,
    aligned_multiple,
    probe_points,
    stored_steps,
)
from amc_mobile.latency.sharing import Agreement, judge
from amc_mobile.latency.table import FORMAT_VERSION, Contents, LatencyTable, TableEntry
from amc_mobile.report.charts import staircase, svg
from amc_mobile.report.tables import render_rows
from amc_mobile.store import to_document
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.profile import profiled_latency
from amc_mobile.workflows.runs import GridMultiple, Run, SearchDetails
from amc_mobile.workflows.workspace import Progress, Settings, Workspace


@dataclass(frozen=True)
class ShownTable:
    """What a latency table holds. `steps`: by the key of conditions, what probes found there."""

    path: str
    entries: tuple[TableEntry, ...]
    steps: Mapping[str, tuple[ChannelSteps, ...]]

    def document(self) -> dict[str, Any]:
        entries = [
            {
                "conditions": entry.conditions.to_document(),
                "kernels": [
                    {
                        "key": k.key,
                        "label": k.label,
                        "low_ms": k.low_ms,
                        "passes": len(k.passes),
                        "flags": list(k.flags),
                    }
                    for k in entry.kernels
                ],
                "model_measurements": entry.model_measurements,
                "steps": to_document(self.steps[entry.conditions.key]),
            }
            for entry in self.entries
        ]
        return {"path": self.path, "format_version": FORMAT_VERSION, "conditions": entries}

    def text(self) -> str:
        parts = []
        for entry in self.entries:
            shown = readable(entry.conditions.to_document())
            heading = ", ".join(f"{key} {value}" for key, value in shown.items() if value not in ("", None))
            rows = [(k.label, f"{k.low_ms:.4f}", str(len(k.passes)), " ".join(k.flags)) for k in entry.kernels]
            parts.append(f"{heading}\n" + render_rows(["kernel", "ms (lowest p20)", "passes", "flags"], rows))
            parts.append(f"{len(entry.kernels)} kernels, {entry.model_measurements} whole models")
            if steps := self.steps[entry.conditions.key]:
                parts.append(steps_text(steps))
        return "\n".join(parts) if parts else "the table is empty"


def show_table(space: Workspace) -> ShownTable:
    with open_table(space) as table:
        entries = tuple(table.entries())
        steps = {entry.conditions.key: tuple(stored_steps(table, entry.conditions)) for entry in entries}
        return ShownTable(table.name, entries, steps)


def steps_text(rows: Sequence[ChannelSteps]) -> str:
    """What a probe found, a type and axis a line."""
    headers = ["kernel", "type", "channels", "filled up to", "slower unless", "by", "points", "ms", "widest"]
    cells = [
        [
            row.kernel_type.name, row.kernel_type.dtype, row.axis,
            f"multiples of {row.tile}" if row.tile > 1 else "-",
            f"multiples of {row.aligned}" if row.aligned > 1 else "-",
            f"{row.slowdown:.0%}" if row.aligned > 1 else "-",
            str(row.points), f"{row.ms:.4f}", row.example,
        ]
        for row in rows
    ]  # fmt: skip
    return render_rows(headers, cells)


@dataclass(frozen=True)
class ProbeResult:
    """`kernels`: how many were measured, by this probe or before it; `new_kernels`: by this one, which took `wall_s`.

    `cpu_s`: of this process, loading the network and its export included.
    """

    conditions: Conditions
    steps: tuple[ChannelSteps, ...]
    kernels: int
    new_kernels: int
    wall_s: float
    cpu_s: float
    multiple: GridMultiple

    def document(self) -> dict[str, Any]:
        return {**to_document(self), "multiple": self.multiple.used, "multiple_why": self.multiple.why}

    def text(self) -> str:
        c = self.conditions
        return (
            f"{c.device} ({c.soc}), {c.runtime} {c.runtime_version}, {c.threads} thread(s): {self.kernels} kernels "
            f"around multiples of 4 to 64 channels, {self.new_kernels} of them measured now, in {self.wall_s:.0f} s "
            f"({self.cpu_s:.0f} s of CPU time)\n"
            f"{steps_text(self.steps)}\nin a search, {self.multiple.text()}"
        )


def probe_device(
    space: Workspace, settings: Settings, *, network: Network | None = None, progress: Progress
) -> ProbeResult:
    """Measures what the table lacks of the network's kernels around tiles, and judges them.

    `network`: the one that the settings name, where it is open already. Raises InvalidInput where its groups are too
    narrow to be probed.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    with closing(profiled_latency(space, settings, network, progress)) as latency:
        points = probe_points(latency.template)
        if not points:
            raise InvalidInput(
                "no kernel of this network has channels enough to be probed", next_step="probe with a wider network"
            )
        before = latency.table.kernels(latency.conditions)
        latency.measure_kernels_at(points, progress)
        result = ProbeResult(
            latency.conditions,
            tuple(stored_steps(latency.table, latency.conditions)),
            len(points),
            len(latency.table.kernels(latency.conditions).keys() - before.keys()),
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
    probed = [steps for steps in stored_steps(latency.table, latency.conditions) if steps.kernel_type in types]
    if not probed:
        return GridMultiple(LEAST_MULTIPLE, "the default; `amc-mobile table probe` finds what the device prefers")
    multiple = aligned_multiple(probed)
    if multiple == LEAST_MULTIPLE:
        return GridMultiple(multiple, "the probe found no kernel that is slower at other multiples of it")
    reasons = ", ".join(
        f"{steps.kernel_type.name} ({steps.axis}) is {steps.slowdown:.0%} slower outside multiples of {steps.aligned}"
        for steps in probed
        if LEAST_MULTIPLE % steps.aligned
    )
    if template.sizes.max() < 2 * multiple:
        return GridMultiple(LEAST_MULTIPLE, f"no group is wide enough for multiples of {multiple}, though {reasons}")
    return GridMultiple(multiple, f"by the probe, {reasons}")


@dataclass(frozen=True)
class TableCounts:
    """Rows of a table."""

    conditions: int
    kernels: int
    models: int
    passes: int
    adoptions: int


@dataclass(frozen=True)
class WrittenTable(TableCounts):
    path: str
    bytes: int


@dataclass(frozen=True)
class AddedTable(TableCounts):
    """`new_passes`: those that were not there yet."""

    new_passes: int
    path: str


@dataclass(frozen=True)
class AdoptedKernels:
    """`source`: the key of the conditions that they were measured under; empty where none were taken over."""

    agreement: Agreement
    adopted: int
    passes: int = 0
    source: str = ""

    def to_document(self) -> dict[str, Any]:
        counted = {"passes": self.passes, "source": self.source} if self.source else {}
        return {**self.agreement.to_document(), "adopted": self.adopted, **counted}


@dataclass(frozen=True)
class DrawnKernel:
    path: str
    kernel: str
    points: int
    steps: Steps
    sigma: float
    largest_error: float


@dataclass(frozen=True)
class TableResult:
    """One sentence for people, and what it is about."""

    sentence: str
    facts: WrittenTable | AddedTable | Agreement | AdoptedKernels | DrawnKernel

    def document(self) -> dict[str, Any]:
        return dict(to_document(self.facts))

    def text(self) -> str:
        return self.sentence


def open_table(space: Workspace, *, must_exist: bool = True) -> LatencyTable:
    location = space.table_location()
    if must_exist and location == space.table_path and not space.table_path.exists():
        raise InvalidInput(f"no latency table in {space.folder}", next_step="run `amc-mobile profile` first")
    return LatencyTable(location)


def export_table(space: Workspace, path: Path) -> TableResult:
    """Writes a `.csv` for reading or a `.jsonl` bundle that `import` and `merge` take back whole."""
    if path.suffix not in (".csv", ".jsonl"):
        raise InvalidInput(f"{path}: not a .csv or .jsonl file", next_step="end the name with .jsonl or .csv")
    with open_table(space) as table:
        contents = table.contents()
        text = (
            table_files.to_csv(table, _layers(space))
            if path.suffix == ".csv"
            else "\n".join(table_files.to_lines(contents)) + "\n"
        )
    store.write_text(path, text)
    written = WrittenTable(*_counts(contents), path=str(path), bytes=len(text.encode()))
    return TableResult(f"wrote {path}: {written.kernels} kernels, {written.passes} passes", written)


def _layers(space: Workspace) -> dict[str, list[str]]:
    """By label of a kernel, the layers that run it in the networks of the workspace's runs, pruned or not."""
    layers: dict[str, dict[str, None]] = {}
    for folder in sorted(space.runs.glob("*")):
        with suppress(AmcMobileError):  # a damaged run keeps no table from being exported
            details = Run(folder).find(SearchDetails)
            for layer in details.layers if details else ():
                for label in (layer.kernel_before, layer.kernel_after):
                    layers.setdefault(label, {})[layer.name] = None
    return {label: list(names) for label, names in layers.items()}


def import_table(space: Workspace, path: Path) -> TableResult:
    """Adds a bundle to the workspace's table. Conditions stay apart; what is there already is left out."""
    contents = table_files.from_lines(path, store.read_lines(path, next_step=table_files.AGAIN))
    with open_table(space, must_exist=False) as table:
        new = table.add_contents(contents)
    return _added(path, contents, new)


def import_csv(
    space: Workspace,
    path: Path,
    *,
    device: str,
    kernel: Sequence[str],
    ms: str,
    run: str | None,
    shape: Mapping[str, str],
    network: str | None,
    **known: Any,
) -> TableResult:
    """Adds a table of another tool, one line per kernel, under conditions that say how little is known of them."""
    conditions = table_files.foreign_conditions(device, **known)
    text = "\n".join(store.read_lines(path, next_step="save it as UTF-8"))
    contents = table_files.from_csv(path, text, conditions, kernel=kernel, ms=ms, run=run, shape=shape, network=network)
    with open_table(space, must_exist=False) as table:
        new = table.add_contents(contents)
    return _added(path, contents, new)


def merge_table(space: Workspace, other: Path) -> TableResult:
    """Adds another workspace's table file. Conditions stay apart; passes both have are taken once."""
    if not other.exists():
        raise InvalidInput(f"{other}: no such file", next_step="give the table.sqlite of another workspace")
    if space.table_path.exists() and other.samefile(space.table_path):
        raise InvalidInput(f"{other} is this workspace's own table", next_step="give the table of another workspace")
    with LatencyTable(other) as source:
        contents = source.contents()
    with open_table(space, must_exist=False) as table:
        new = table.add_contents(contents)
    return _added(other, contents, new)


def verify_table(
    space: Workspace, settings: Settings, *, network: Network | None = None, progress: Progress
) -> TableResult:
    """Measures a few kernels again under the same conditions. Raises DeviceError where they no longer agree."""
    with _latency(space, settings, network, progress) as latency:
        measured = latency.table.kernels(latency.conditions)
        if not measured:
            raise latency.table.nothing_under(latency.conditions)
        agreement = _judged(latency, list(measured.values()), progress)
    if agreement.action != "accept":
        raise DeviceError(
            f"the table no longer fits this device: {agreement.text()}",
            next_step="see that nothing else runs and measure again; if it stays, profile in a new workspace",
        )
    return TableResult(f"the table still fits\n{agreement.text()}", agreement)


def adopt_table(
    space: Workspace, settings: Settings, *, network: Network | None = None, progress: Progress
) -> TableResult:
    """After an update of system or runtime: takes over, rescales or gives up the kernels measured before it."""
    with _latency(space, settings, network, progress) as latency:
        now, table = latency.conditions, latency.table
        if table.kernels(now):
            raise InvalidInput("kernels were already measured under these conditions", next_step="nothing to adopt")
        source = _adoptable(table, now)
        measured = table.kernels(source)
        agreement = _judged(latency, list(measured.values()), progress)
        if agreement.action == "rebuild":
            sentence = "the old kernels do not predict the new ones: run `amc-mobile profile`\n" + agreement.text()
            return TableResult(sentence, AdoptedKernels(agreement, 0))
        ratio = 1.0 if agreement.action == "accept" else agreement.ratio
        steady = [key for key, kernel in measured.items() if not kernel.flags]
        adopted = table.adopt(now, source, steady, ratio)
    changed = ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in source.differences(now).items())
    sentence = f"adopted {len(steady)} kernels times {ratio:.3f} ({changed}); `amc-mobile profile` measures the rest\n"
    return TableResult(sentence + agreement.text(), AdoptedKernels(agreement, len(steady), adopted, source.key))


def plot_kernel(
    space: Workspace, settings: Settings, kernel: str, path: Path, *, network: Network | None = None, progress: Progress
) -> TableResult:
    """Draws one kernel's measured points, all that the table has, and what is predicted over the channels, as SVG."""
    with _latency(space, settings, network, progress) as latency:
        sites = {site.name: site for site in latency.template.sites if site.axes}
        if kernel not in sites:
            raise InvalidInput(f"no kernel {kernel!r} that depends on widths", next_step=f"they are {', '.join(sites)}")
        predictor = latency.predictor
        if not isinstance(predictor, LatencyPredictor):
            raise InvalidInput("a table of another tool has no measured points of a kernel", next_step="profile first")
        model = predictor.sites[sites[kernel].index]
        label = latency.template.kernel_at(sites[kernel].index, latency.template.sizes).label
    panels = dict(_panel(model, axis) for axis in reversed(range(model.points.values.shape[1])))
    store.write_text(path, svg(staircase(label, panels)))
    drawn = DrawnKernel(str(path), label, len(model.exact), model.steps, model.sigma, model.largest_error)
    return TableResult(
        f"wrote {path}: {label}, {drawn.points} measured points; the fit is up to {drawn.largest_error:.1%} off "
        "there, and predictions take these points as they are",
        drawn,
    )


def _panel(model: SiteModel, axis: int) -> tuple[str, list[tuple[str, float, float, str]]]:
    """One axis of a kernel: its name, a line for each width that the profile has of the others, and all points."""
    points = model.points
    names = {"in": "input channels", "out": "output channels", "other": "channels"}
    profiled = {tuple(values) for values in points.values.tolist()}
    scale = points.channels_per_unit[axis]
    drawn: list[tuple[str, float, float, str]] = []
    seen = set()
    for others in sorted({tuple(np.delete(values, axis)) for values in points.values}):
        measured = {key: ms for key, ms in model.exact.items() if tuple(np.delete(key, axis)) == others}
        widths = [key[axis] for key in measured]
        across = np.arange(min(widths), max(widths) + 1)
        asked = np.insert(np.tile(np.array(others), (len(across), 1)), axis, across, axis=1)
        name = ", ".join(
            f"{value * channels:g} {role if role != 'other' else ''}".strip()
            for value, channels, role in zip(
                others, np.delete(points.channels_per_unit, axis), np.delete(points.roles, axis), strict=True
            )
        )
        predicted = zip((across * scale).tolist(), model.predict_at(asked).tolist(), strict=True)
        drawn += [(name, at, ms, "predicted") for at, ms in predicted]
        drawn += [
            (name, key[axis] * scale, ms, "profile" if key in profiled else "probe") for key, ms in measured.items()
        ]
        seen |= set(measured)
    drawn += [("", key[axis] * scale, ms, "probe") for key, ms in model.exact.items() if key not in seen]
    return names[points.roles[axis]], drawn


def _latency(
    space: Workspace, settings: Settings, network: Network | None, progress: Progress
) -> closing[LatencyModel]:
    """The latency model on a table that is there already, to be used as a context."""
    open_table(space).close()
    return closing(profiled_latency(space, settings, network, progress))


def _judged(latency: LatencyModel, known: Sequence[KernelMeasurement], progress: Progress) -> Agreement:
    """Measures some of `known` again, outside the table. Raises InvalidInput when none belongs to the network."""
    pairs = latency.measure_again(known, progress, store=False)
    return judge({old.label: new.low_ms / old.low_ms for old, new in pairs})


def _adoptable(table: LatencyTable, now: Conditions) -> Conditions:
    """The newest conditions of the same device, runtime and threads."""
    same = ("device", "soc", "runtime", "delegate", "threads", "protocol_version")
    for conditions in reversed(table.conditions()):
        # Older tables have no layout.
        other_layout = conditions.layout not in ("", now.layout)
        if not other_layout and not set(same) & set(now.differences(conditions)):
            return conditions
    raise InvalidInput(
        f"the table holds nothing of {now.device} ({now.soc}) with {now.runtime}, {now.threads} thread(s)",
        next_step="run `amc-mobile profile`",
    )


def _counts(contents: Contents) -> tuple[int, int, int, int, int]:
    parts = (contents.conditions, contents.kernels, contents.models, contents.passes, contents.adoptions)
    conditions, kernels, models, passes, adoptions = map(len, parts)
    return conditions, kernels, models, passes, adoptions


def _added(path: Path, contents: Contents, new: int) -> TableResult:
    added = AddedTable(*_counts(contents), new_passes=new, path=str(path))
    devices = ", ".join(sorted({f"{c.device} ({c.soc})" for c in contents.conditions.values()})) or "no device"
    return TableResult(f"added {new} of {added.passes} passes of {added.kernels} kernels from {devices}", added)
