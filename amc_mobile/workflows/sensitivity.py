"""How much accuracy each channel group costs: one group cut at a time, all others whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amc_mobile.channels.plan import PruningPlan
from amc_mobile.data.split import DataSplit
from amc_mobile.errors import InvalidInput
from amc_mobile.models.loading import weights_sha256
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.report.charts import group_lines
from amc_mobile.report.content import TOP1
from amc_mobile.report.pages import Picture, SeriesPage, write_series_page
from amc_mobile.report.tables import NOTHING, Section, percent, render_rows
from amc_mobile.store import from_document, read_json, to_document, write_json
from amc_mobile.workflows.network import Network, default_grids, load_network, require_trained
from amc_mobile.workflows.plans import ChannelPlans, PlanScorer, Preparations
from amc_mobile.workflows.search_config import SensitivityConfig
from amc_mobile.workflows.workspace import Progress, Settings, Workspace

FORMAT_VERSION = 1  # 1: identity, points
MOST_SENSITIVE = 5  # named under the table


@dataclass(frozen=True)
class ScoredCut:
    """One channel group cut alone, and what the network scored so."""

    group: str
    kept: int
    top1: float | None
    fidelity: float | None
    macs: float | None


@dataclass(frozen=True)
class SensitivityPoint(ScoredCut):
    channels: int  # of the group in the original
    ratio: float  # as asked for


@dataclass(frozen=True)
class SensitivityIdentity:
    """What must be equal for points of an earlier call to be compared with new ones."""

    model: str
    weights: str
    seed: int
    input: tuple[int, ...]
    train: str
    sizes: Mapping[str, int]
    channel_choice: str
    calibration_images: int
    reward_images: int | None


@dataclass(frozen=True)
class SensitivityRecord:
    """What sensitivity.json keeps. `points`: one per group and number of channels."""

    identity: SensitivityIdentity
    original_top1: float
    accuracy_on: str
    images: int
    points: tuple[ScoredCut, ...]


@dataclass(frozen=True)
class Sensitivity:
    """`points`: one per group and ratio; `paths`: the files."""

    model: str
    original_top1: float
    images: int
    accuracy_on: str
    kinds: Mapping[str, str]
    points: tuple[SensitivityPoint, ...]
    paths: tuple[Path, ...] = ()
    metric: str = TOP1

    @property
    def ratios(self) -> list[float]:
        return sorted({point.ratio for point in self.points})

    def document(self) -> dict[str, Any]:
        shown = ("model", "original_top1", "images", "accuracy_on", "metric", "points")
        return {name: to_document(getattr(self, name)) for name in shown}

    def heading(self) -> str:
        original = f"{self.metric} {percent(self.original_top1)}"
        return f"{self.model}: original {original} on {self.images} {self.accuracy_on}"

    def table(self) -> Section:
        """One row per group; a column of accuracies per keep ratio."""
        rows = []
        for group, kind in self.kinds.items():
            points = {point.ratio: point for point in self.points if point.group == group}
            channels = str(next(iter(points.values())).channels)
            cells = [f"{percent(p.top1)} ({p.kept})" if (p := points.get(r)) else NOTHING for r in self.ratios]
            rows.append((group, kind, channels, *cells))
        headers = ("channel group", "kind", "channels", *(f"keep {ratio:g}" for ratio in self.ratios))
        note = f"{self.metric} on {self.images} {self.accuracy_on} (kept channels); all other groups whole"
        return Section("sensitivity", "Each group cut alone", headers, tuple(rows), "No channel groups.", note)

    def most_sensitive(self) -> list[SensitivityPoint]:
        """The groups that lose most at the lowest ratio, worst first."""
        lowest = [point for point in self.points if point.ratio == self.ratios[0]]
        return sorted(lowest, key=lambda point: (point.top1, point.fidelity))[:MOST_SENSITIVE]

    def text(self) -> str:
        table = self.table()
        worst = ", ".join(f"{p.group} {percent(p.top1)}" for p in self.most_sensitive())
        lines = [self.heading(), render_rows(table.headers, table.rows), table.note]
        return "\n".join(
            [*lines, f"most sensitive at {self.ratios[0]:g}: {worst}", *(f"wrote {p}" for p in self.paths)]
        )

    def page(self) -> SeriesPage:
        chart = group_lines(
            [(f"keep {p.ratio:g}", p.group, 100 * (p.top1 or 0.0)) for p in self.points], self.kinds,
            description="accuracy with one group cut", title=f"{self.metric} on {self.images} {self.accuracy_on}, %",
            reference=(f"original {100 * self.original_top1:.1f}", 100 * self.original_top1),
        )  # fmt: skip
        caption = (
            "One group cut to that share of its channels, its readers refitted by least squares; all others whole."
        )
        picture = Picture("sensitivity", "Sensitivity of each channel group", caption, chart)
        return SeriesPage(f"Sensitivity: {self.model}", (self.heading() + ".",), (picture,), (self.table(),))


def sensitivity(
    space: Workspace, settings: Settings, wanted: SensitivityConfig, *, network: Network | None = None,
    progress: Progress, untrained: bool = False,
) -> Sensitivity:  # fmt: skip
    """Cuts each group alone to each ratio, refits its readers in one shot and scores the network on the reward images.

    Writes sensitivity.json after every point, and goes on from it; sensitivity.html and .svg at the end. `network`:
    the one that the settings name, where it is open already.
    Raises InvalidInput when the file is of another network or other images, or another call is writing it.
    """
    with space.writing("sensitivity"):
        network = load_network(space, settings, network)
        data = network.split(calibration=wanted.calibration_images, reward=wanted.reward_images, seed=settings.seed)
        split = data.record()
        identity = SensitivityIdentity(
            settings.model, weights_sha256(network.module), settings.seed, network.input_shape, split.train_sha256,
            split.sizes, wanted.channel_choice, wanted.calibration_images, wanted.reward_images,
        )  # fmt: skip
        path = space.folder / "sensitivity.json"
        record = _stored(path, identity)
        cuts = _cuts(network, wanted)
        scored = {(cut.group, cut.kept): cut for cut in (record.points if record else ())}
        # Two ratios may come to the same number of channels.
        missing = {key: plan for key, _, plan in cuts if key not in scored}
        if missing:
            if not untrained:
                require_trained(network, data.reward)
            matrices = Matrices(settings.memory_bytes, space.folder)
            scorer = _scorer(network, data, wanted, settings.seed, matrices, progress)
            record = SensitivityRecord(identity, scorer.original_top1, data.reward_on, len(data.reward), ())
            for key, plan in missing.items():
                progress("sensitivity", len(scored), len(cuts), f"{key[0]} keeps {key[1]}")
                outcome = scorer(plan.widths)
                scored[key] = ScoredCut(*key, outcome.top1, outcome.fidelity, outcome.macs)
                record = replace(record, points=tuple(scored.values()))
                write_json(path, to_document(record), format_version=FORMAT_VERSION)
        assert record is not None  # there is at least one ratio
        progress("sensitivity", len(cuts), len(cuts))
        channels = network.groups.channels
        points = tuple(SensitivityPoint(**vars(scored[key]), channels=channels[key[0]], ratio=r) for key, r, _ in cuts)
        result = Sensitivity(
            settings.model, record.original_top1, record.images, record.accuracy_on, network.groups.kinds, points,
            metric=network.task.metric,
        )  # fmt: skip
        space.remember(settings)
        pages = write_series_page(result.page(), space.folder / "sensitivity.html")
        return replace(result, paths=(path, *pages))


def _cuts(network: Network, wanted: SensitivityConfig) -> list[tuple[tuple[str, int], float, PruningPlan]]:
    """For each group and ratio: the group with its kept channels, the ratio, and the plan that cuts it alone."""
    full = PruningPlan.full(network.groups.channels)
    cuts = []
    for name in network.groups.channels:
        for ratio in wanted.ratios:
            plan = full.keeping(name, ratio, multiple=wanted.multiple)
            cuts.append(((name, plan.kept_channels[name]), ratio, plan))
    return cuts


def _scorer(
    network: Network, data: DataSplit, wanted: SensitivityConfig, seed: int, matrices: Matrices, progress: Progress
) -> PlanScorer:
    statistics = Preparations().statistics(
        network, data, channel_choice=wanted.channel_choice, seed=seed, matrices=matrices, progress=progress
    )
    return PlanScorer(network, data, ChannelPlans(network, default_grids(network), statistics), "top1")


def _stored(path: Path, identity: SensitivityIdentity) -> SensitivityRecord | None:
    """What an earlier call left. Raises InvalidInput, naming what differs, where it is of something else."""
    if not path.exists():
        return None
    document = read_json(path, format_version=FORMAT_VERSION)
    del document["format_version"]
    record = from_document(SensitivityRecord, document, path.name)
    for key, value in vars(identity).items():
        if (stored := getattr(record.identity, key)) != value:
            raise InvalidInput(
                f"{path} was made with {key} {stored!r}, not {value!r}",
                next_step="delete the file, or work in another --workspace",
            )
    return record
