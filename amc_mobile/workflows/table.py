"""What can be done with a latency table: take it elsewhere, bring others in, check it, adopt it, draw a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amc_mobile import store
from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import DeviceError, InvalidInput
from amc_mobile.latency import bundle, csv_table
from amc_mobile.latency.adoption import Verdict, judge
from amc_mobile.latency.measurement import KernelMeasurement
from amc_mobile.latency.site_fit import SiteModel
from amc_mobile.latency.table import LatencyTable
from amc_mobile.latency.table_rows import Contents
from amc_mobile.report.staircase import StaircaseLine, StaircasePanel, staircase
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace

if TYPE_CHECKING:  # brings torch
    from amc_mobile.workflows.latency_model import LatencyModel


@dataclass(frozen=True)
class TableResult:
    """One sentence for people, the same and more as a document."""

    sentence: str
    facts: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return self.facts

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
        text = csv_table.to_csv(table) if path.suffix == ".csv" else "\n".join(bundle.to_lines(contents)) + "\n"
    store.write_text(path, text)
    facts = _counts(contents) | {"path": str(path), "bytes": len(text.encode())}
    return TableResult(f"wrote {path}: {facts['kernels']} kernels, {facts['passes']} passes", facts)


def import_table(space: Workspace, path: Path) -> TableResult:
    """Adds a bundle to the workspace's table. Conditions stay apart; what is there already is left out."""
    contents = bundle.from_lines(path, store.read_lines(path, next_step=bundle.AGAIN))
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
    conditions = csv_table.foreign_conditions(device, **known)
    text = "\n".join(store.read_lines(path, next_step="save it as UTF-8"))
    contents = csv_table.from_csv(path, text, conditions, kernel=kernel, ms=ms, run=run, shape=shape, network=network)
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


def verify_table(space: Workspace, settings: Settings, *, progress: Progress) -> TableResult:
    """Measures a few kernels again under the same conditions. Raises DeviceError where they no longer agree."""
    with _latency(space, settings, progress) as latency:
        known = latency.table.kernels(latency.conditions)
        if not known:
            raise latency.table.nothing_under(latency.conditions)
        verdict = _judged(latency, list(known.values()), progress)
    if verdict.action != "accept":
        raise DeviceError(
            f"the table no longer fits this device: {verdict.text()}",
            next_step="see that nothing else runs and measure again; if it stays, profile in a new workspace",
        )
    return TableResult(f"the table still fits\n{verdict.text()}", verdict.to_document())


def adopt_table(space: Workspace, settings: Settings, *, progress: Progress) -> TableResult:
    """After an update of system or runtime: takes over, rescales or gives up the kernels measured before it."""
    with _latency(space, settings, progress) as latency:
        now, table = latency.conditions, latency.table
        if table.kernels(now):
            raise InvalidInput("kernels were already measured under these conditions", next_step="nothing to adopt")
        source = _adoptable(table, now)
        known = table.kernels(source)
        verdict = _judged(latency, list(known.values()), progress)
        if verdict.action == "rebuild":
            sentence = "the old kernels do not tell the new ones: run `amc-mobile profile`\n" + verdict.text()
            return TableResult(sentence, verdict.to_document() | {"adopted": 0})
        ratio = 1.0 if verdict.action == "accept" else verdict.ratio
        steady = [key for key, kernel in known.items() if not kernel.flags]
        adopted = table.adopt(now, source, steady, ratio)
    changed = ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in source.differences(now).items())
    sentence = f"adopted {len(steady)} kernels times {ratio:.3f} ({changed}); `amc-mobile profile` measures the rest\n"
    facts = verdict.to_document() | {"adopted": len(steady), "passes": adopted, "source": source.key}
    return TableResult(sentence + verdict.text(), facts)


def plot_kernel(space: Workspace, settings: Settings, kernel: str, path: Path, *, progress: Progress) -> TableResult:
    """Draws one kernel's measured points, all that the table has, and what is predicted over the channels, as SVG."""
    with _latency(space, settings, progress) as latency:
        sites = {site.name: site for site in latency.template.sites if site.axes}
        if kernel not in sites:
            raise InvalidInput(f"no kernel {kernel!r} that depends on widths", next_step=f"they are {', '.join(sites)}")
        model = latency.predictor.sites[sites[kernel].index]
        label = latency.template.kernel_at(sites[kernel].index, latency.template.sizes).label
    panels = [_panel(model, axis) for axis in reversed(range(model.points.values.shape[1]))]
    store.write_text(path, staircase(label, panels))
    facts = {
        "path": str(path), "kernel": label, "points": len(model.exact), "steps": asdict(model.steps),
        "sigma": model.sigma, "largest_error": model.largest_error,
    }  # fmt: skip
    return TableResult(
        f"wrote {path}: {label}, {len(model.exact)} measured points; the fit is up to {model.largest_error:.1%} off "
        "there, and predictions take these points as they are",
        facts,
    )


def _panel(model: SiteModel, axis: int) -> StaircasePanel:
    """Along one axis of a kernel: a line for each width that the profile has of the other axes."""
    points = model.points
    names = {"in": "input channels", "out": "output channels", "other": "channels"}
    profiled = {tuple(values) for values in points.values.tolist()}
    lines = []
    for others in sorted({tuple(np.delete(values, axis)) for values in points.values}):
        measured = {key: ms for key, ms in model.exact.items() if tuple(np.delete(key, axis)) == others}
        widths = [key[axis] for key in measured]
        across = np.arange(min(widths), max(widths) + 1)
        asked = np.insert(np.tile(np.array(others), (len(across), 1)), axis, across, axis=1)
        name = ", ".join(
            f"{value * scale:g} {role if role != 'other' else ''}".strip()
            for value, scale, role in zip(
                others, np.delete(points.channels_per_unit, axis), np.delete(points.roles, axis), strict=True
            )
        )
        scale = points.channels_per_unit[axis]
        lines.append(
            StaircaseLine(
                name,
                [(key[axis] * scale, ms) for key, ms in measured.items() if key in profiled],
                [(key[axis] * scale, ms) for key, ms in measured.items() if key not in profiled],
                list(zip((across * scale).tolist(), model.predict_at(asked).tolist(), strict=True)),
            )
        )
    drawn = {tuple(np.delete(values, axis)) for values in points.values}
    apart = [key for key in model.exact if tuple(np.delete(key, axis)) not in drawn]
    return StaircasePanel(
        names[points.roles[axis]],
        lines,
        [(key[axis] * points.channels_per_unit[axis], model.exact[key]) for key in apart],
    )


def _latency(space: Workspace, settings: Settings, progress: Progress) -> closing[LatencyModel]:
    """The workspace's latency model, to be used as a context."""
    from amc_mobile.workflows.latency_model import latency_model
    from amc_mobile.workflows.network import default_grids, load_network

    open_table(space).close()
    network = load_network(space, settings)
    return closing(latency_model(space, settings, network, default_grids(network), progress))


def _judged(latency: LatencyModel, known: Sequence[KernelMeasurement], progress: Progress) -> Verdict:
    """Measures some of `known` again, outside the table. Raises InvalidInput when none belongs to the network."""
    pairs = latency.measure_again(known, progress, store=False)
    return judge({old.label: new.low_ms / old.low_ms for old, new in pairs})


def _adoptable(table: LatencyTable, now: Conditions) -> Conditions:
    """The newest conditions of the same device, runtime and threads."""
    same = ("device", "soc", "runtime", "delegate", "threads", "protocol_version")
    for conditions in reversed(table.conditions()):
        # Older tables do not tell their layout.
        other_layout = conditions.layout not in ("", now.layout)
        if not other_layout and not set(same) & set(now.differences(conditions)):
            return conditions
    raise InvalidInput(
        f"the table holds nothing of {now.device} ({now.soc}) with {now.runtime}, {now.threads} thread(s)",
        next_step="run `amc-mobile profile`",
    )


def _counts(contents: Contents) -> dict[str, Any]:
    return {
        "conditions": len(contents.conditions), "kernels": len(contents.kernels), "models": len(contents.models),
        "passes": len(contents.passes), "adoptions": len(contents.adoptions),
    }  # fmt: skip


def _added(path: Path, contents: Contents, new: int) -> TableResult:
    facts = _counts(contents) | {"new_passes": new, "path": str(path)}
    devices = ", ".join(sorted({f"{c.device} ({c.soc})" for c in contents.conditions.values()})) or "no device"
    return TableResult(f"added {new} of {facts['passes']} passes of {facts['kernels']} kernels from {devices}", facts)
