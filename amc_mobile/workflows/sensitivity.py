"""How much accuracy each channel group costs: one group cut at a time, all others whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
from amc_mobile.store import read_json, write_json
from amc_mobile.workflows.network import Network, load_network, require_trained
from amc_mobile.workflows.plans import ChannelPlans, PlanScorer, Preparations
from amc_mobile.workflows.search_config import SensitivityConfig
from amc_mobile.workflows.workspace import Progress, Settings, Workspace

FORMAT_VERSION = 1  # 1: identity, points
MOST_SENSITIVE = 5  # named under the table


@dataclass(frozen=True)
class Sensitivity:
    """`points`: group, channels, kept, ratio (as asked), top1, fidelity and macs of each cut; `paths`: the files."""

    model: str
    original_top1: float
    images: int
    accuracy_on: str
    kinds: dict[str, str]
    points: tuple[dict[str, Any], ...]
    paths: tuple[Path, ...] = ()
    metric: str = TOP1

    @property
    def ratios(self) -> list[float]:
        return sorted({point["ratio"] for point in self.points})

    def document(self) -> dict[str, Any]:
        return {
            "model": self.model, "original_top1": self.original_top1, "images": self.images,
            "accuracy_on": self.accuracy_on, "metric": self.metric, "points": list(self.points),
        }  # fmt: skip

    def heading(self) -> str:
        original = f"{self.metric} {percent(self.original_top1)}"
        return f"{self.model}: original {original} on {self.images} {self.accuracy_on}"

    def table(self) -> Section:
        """One row per group; a column of accuracies per keep ratio."""
        rows = []
        for group, kind in self.kinds.items():
            mine = {point["ratio"]: point for point in self.points if point["group"] == group}
            channels = str(next(iter(mine.values()))["channels"])
            cells = [f"{percent(p['top1'])} ({p['kept']})" if (p := mine.get(r)) else NOTHING for r in self.ratios]
            rows.append((group, kind, channels, *cells))
        headers = ("channel group", "kind", "channels", *(f"keep {ratio:g}" for ratio in self.ratios))
        note = f"{self.metric} on {self.images} {self.accuracy_on} (kept channels); all other groups whole"
        return Section("sensitivity", "Each group cut alone", headers, tuple(rows), "No channel groups.", note)

    def most_sensitive(self) -> list[dict[str, Any]]:
        """The groups that lose most at the lowest ratio, worst first."""
        lowest = [point for point in self.points if point["ratio"] == self.ratios[0]]
        return sorted(lowest, key=lambda point: (point["top1"], point["fidelity"]))[:MOST_SENSITIVE]

    def text(self) -> str:
        table = self.table()
        worst = ", ".join(f"{p['group']} {percent(p['top1'])}" for p in self.most_sensitive())
        lines = [self.heading(), render_rows(table.headers, table.rows), table.note]
        return "\n".join(
            [*lines, f"most sensitive at {self.ratios[0]:g}: {worst}", *(f"wrote {p}" for p in self.paths)]
        )

    def page(self) -> SeriesPage:
        chart = group_lines(
            [(f"keep {point['ratio']:g}", point["group"], 100 * point["top1"]) for point in self.points], self.kinds,
            description="accuracy with one group cut", title=f"{self.metric} on {self.images} {self.accuracy_on}, %",
            reference=(f"original {100 * self.original_top1:.1f}", 100 * self.original_top1),
        )  # fmt: skip
        caption = (
            "One group cut to that share of its channels, its readers refitted by least squares; all others whole."
        )
        picture = Picture("sensitivity", "Sensitivity of each channel group", caption, chart)
        return SeriesPage(f"Sensitivity: {self.model}", (self.heading() + ".",), (picture,), (self.table(),))


def sensitivity(
    space: Workspace, settings: Settings, wanted: SensitivityConfig, *, progress: Progress, untrained: bool = False
) -> Sensitivity:
    """Cuts each group alone to each ratio, refits its readers in one shot and scores the network on the reward images.

    Writes sensitivity.json after every point, and goes on from it; sensitivity.html and .svg at the end.
    Raises InvalidInput when the file is of another network or other images, or another call is writing it.
    """
    with space.writing("sensitivity"):
        return _sensitivity(space, settings, wanted, progress, untrained=untrained)


def _sensitivity(
    space: Workspace, settings: Settings, wanted: SensitivityConfig, progress: Progress, *, untrained: bool
) -> Sensitivity:
    network = load_network(space, settings)
    data = network.split(calibration=wanted.calibration_images, reward=wanted.reward_images, seed=settings.seed)
    path = space.folder / "sensitivity.json"
    identity = _identity(settings, wanted, network, data)
    known = _known(path, identity)
    plans = _plans(network, wanted)
    # Two ratios may come to the same number of channels.
    missing = {key: plan for plan in plans if (key := (plan["group"], plan["kept"])) not in known}
    original_top1 = read_json(path, format_version=FORMAT_VERSION)["original_top1"] if known else 0.0
    if missing:
        if not untrained:
            require_trained(network, data.reward)
        scored = ChannelPlans(network, multiple=wanted.multiple, min_keep_ratio=1.0, keep="")
        scored = scored.prepared(
            lambda: Preparations().statistics(
                network, data, channel_choice=wanted.channel_choice, seed=settings.seed,
                matrices=Matrices(settings.memory_bytes, space.folder), progress=progress,
            )
        )  # fmt: skip
        scorer = PlanScorer(network, data, scored, "top1")
        original_top1 = scorer.original_top1
        full = PruningPlan.full(network.groups.channels)
        for key, plan in missing.items():
            progress("sensitivity", len(known), len(plans), f"{plan['group']} keeps {plan['kept']}")
            widths = full.keeping(plan["group"], plan["ratio"], multiple=wanted.multiple).widths
            outcome = scorer(widths)
            scores = {"top1": outcome.top1, "fidelity": outcome.fidelity, "macs": outcome.macs}
            known[key] = scores
            stored = [{"group": group, "kept": kept, **point} for (group, kept), point in known.items()]
            document = {"identity": identity, "original_top1": original_top1, "accuracy_on": data.reward_on,
                        "images": len(data.reward), "points": stored}  # fmt: skip
            write_json(path, document, format_version=FORMAT_VERSION)
    progress("sensitivity", len(plans), len(plans))
    points = [{**plan, **known[plan["group"], plan["kept"]]} for plan in plans]
    found = Sensitivity(
        settings.model,
        original_top1,
        len(data.reward),
        data.reward_on,
        network.groups.kinds,
        tuple(points),
        metric=network.task.metric,
    )
    space.remember(settings)
    pages = write_series_page(found.page(), space.folder / "sensitivity.html")
    return Sensitivity(**{**vars(found), "paths": (path, *pages)})


def _plans(network: Network, wanted: SensitivityConfig) -> list[dict[str, Any]]:
    full = PruningPlan.full(network.groups.channels)
    return [
        {
            "group": name, "channels": channels, "ratio": ratio,
            "kept": full.keeping(name, ratio, multiple=wanted.multiple).kept_channels[name],
        }
        for name, channels in network.groups.channels.items()
        for ratio in wanted.ratios
    ]  # fmt: skip


def _identity(settings: Settings, wanted: SensitivityConfig, network: Network, data: DataSplit) -> dict[str, Any]:
    """What must be equal for points of an earlier call to stand beside new ones."""
    chosen = {key: value for key, value in asdict(wanted).items() if key not in ("ratios", "multiple")}
    split = data.document()
    return {
        "model": settings.model, "weights": weights_sha256(network.module), "seed": settings.seed,
        "input": list(network.input_shape), "train": split["train_sha256"], "sizes": split["sizes"], **chosen,
    }  # fmt: skip


def _known(path: Path, identity: dict[str, Any]) -> dict[tuple[str, int], dict[str, float | None]]:
    if not path.exists():
        return {}
    document = read_json(path, format_version=FORMAT_VERSION)
    for key, value in identity.items():
        if document["identity"].get(key) != value:
            raise InvalidInput(
                f"{path} was made with {key} {document['identity'].get(key)!r}, not {value!r}",
                next_step="delete the file, or work in another --workspace",
            )
    return {(p["group"], p["kept"]): {key: p[key] for key in ("top1", "fidelity", "macs")} for p in document["points"]}
