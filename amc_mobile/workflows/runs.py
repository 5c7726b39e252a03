"""One run's folder: what was asked, what each step left there as typed records, and the weights of each stage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from amc_mobile.channels import surgery
from amc_mobile.channels.plan import PruningPlan, WeightPlan
from amc_mobile.channels.structure import KeptGroup
from amc_mobile.data.split import SplitRecord
from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidInput
from amc_mobile.export.parity import Parity
from amc_mobile.formats import FLOAT32, TFLITE
from amc_mobile.latency.gate import Gate, is_accuracy_kept
from amc_mobile.latency.measurement import ModelMeasurement, PairMeasurement
from amc_mobile.models.loading import load_checkpoint, save_checkpoint, weights_sha256, write_tensors
from amc_mobile.models.training import EpochReport, Epochs
from amc_mobile.pruning.magnitude import hold_masks
from amc_mobile.report.content import LayerRow, Predictions
from amc_mobile.search.budget import Unit, format_cost
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.search.loop import OverBudget
from amc_mobile.store import LATER, from_document, read_json, to_document, write_json
from amc_mobile.workflows.network import Network, load_network
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.workspace import BEGUN, Progress, Settings, Workspace, check_settings, safe_name, silent

if TYPE_CHECKING:
    from amc_mobile.workflows.export import ExportResult
    from amc_mobile.workflows.report import ReportResult
    from amc_mobile.workflows.training import FinetuneResult

FORMAT_VERSION = 1
WITHIN, OVER = "within", "over"  # a budget, as the search sees it: measured, or an exact count


@dataclass(frozen=True)
class SettingsRecord:
    """What a run was begun with."""

    settings: Settings
    search: SearchConfig
    weights_sha256: str  # of the original network


@dataclass(frozen=True)
class GridMultiple:
    """What kept channels are multiples of, and why."""

    used: int
    why: str

    def text(self) -> str:
        return f"kept channels are multiples of {self.used}: {self.why}"


@dataclass(frozen=True)
class LimitRecord:
    """A run's own budget, fixed when the run begins. `place`: device, runtime and threads, as in a run's name.

    `limit` is in the budget's unit. `reference_ms`: the original's p50 then, 0 for other units than ms; `drift`: how
    many times as long as at the profile the original took then.
    """

    asked: str
    place: str
    limit: float
    reference_ms: float
    drift: float


@dataclass(frozen=True)
class ReferenceRecord:
    """The original's p50 on a further device, and its drift, when the run began."""

    asked: str
    reference_ms: float
    drift: float


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan measured next to the original. `measured_ms`: the p50 by the speed-up; `raw`: as the clock showed it."""

    predicted_ms: float
    measured_ms: float
    ci_high_ms: float
    low_ms: float
    raw_p50_ms: float
    raw_original_p50_ms: float


@dataclass(frozen=True)
class MeasuredPlans:
    """By widths, separated by commas: the plans measured on one device."""

    plans: Mapping[str, MeasuredPlan]


@dataclass(frozen=True)
class SearchedBudget:
    """The budget that episodes are counted in, as it was searched with."""

    unit: Unit
    limit: float
    asked: str
    reference_ms: float
    drift: float


@dataclass(frozen=True)
class BudgetRecord:
    """One budget and what the plan costs there, in `unit`; `predicted_cost` without the band that the search adds.

    `drift`: of the device when the run began; `drift_at_plan`: when the plan was measured.
    """

    asked: str  # as the user put it
    unit: Unit
    limit: float
    device: str
    runtime: str
    predicted_cost: float
    measured_ms: float | None
    ci_high_ms: float | None
    verdict: str
    drift: float
    drift_at_plan: float | None

    def count_gate(self) -> Gate:
        """Of MACs or parameters, whose cost is exact. A latency budget is decided by measuring the exported file."""
        text = f"{format_cost(self.predicted_cost, self.unit)} of {format_cost(self.limit, self.unit)}"
        return Gate(self.verdict == WITHIN, self.predicted_cost, self.limit, text)


@dataclass(frozen=True)
class MultipleRecord(GridMultiple):
    """`groups`: what narrow groups keep multiples of instead."""

    groups: Mapping[str, int]


@dataclass(frozen=True)
class RefitRecord:
    """The final network: "refitted" by `method` on so many images, or "one-shot" where that is nearer to the original.

    `reward_fidelity`: of either on the reward images.
    """

    kept: str
    method: str
    images: int
    reward_fidelity: Mapping[str, float]

    def text(self) -> str:
        scores = self.reward_fidelity
        compared = f"{scores['refitted']:.4f} against {scores['one-shot']:.4f} on the reward images"
        done = f"{self.method} on {self.images} images"
        if self.kept == "refitted":
            return f"{done}: fidelity {compared}"
        return f"kept as it was scored; {done} it loses fidelity: {compared}"


@dataclass(frozen=True)
class SearchRecord:
    """What a search found. Costs are in the unit of `budget`; accuracies in [0, 1], named by `metric`.

    `offline`: with the table alone. `kernel_sources`: by source of a kernel's latency, the kernels. `better_over`:
    better plans that were measured over the budget. `cpu_s`: by part of the work. `test_top1`: of "original",
    "one-shot" and "refitted" network.
    """

    budgets: tuple[BudgetRecord, ...]  # the first is `budget`
    budget: SearchedBudget
    conditions: Conditions | None
    multiple: MultipleRecord
    offline: bool
    kernel_sources: Mapping[str, tuple[str, ...]]
    policy: str
    episodes: int
    evaluations: int
    better_over: tuple[OverBudget, ...]
    measurements: int
    reward: float
    episode: int  # that found the plan
    predicted_cost: float
    measured_ms: float | None
    ci_high_ms: float | None
    plan: PruningPlan | WeightPlan
    granularity: str
    macs: float
    original_macs: float
    parameters: float
    original_parameters: float
    cpu_s: Mapping[str, float]
    reward_top1: float | None
    original_reward_top1: float
    max_loss: float | None
    refitted_reward_top1: float | None
    reward_images_may_be_seen: bool
    accuracy_kept: bool | None
    test_images: int
    metric: str
    accuracy_on: str
    group_kinds: Mapping[str, str]
    refit: RefitRecord
    test_top1: Mapping[str, float]

    def max_loss_text(self) -> str:
        """What became of --max-loss, where it was asked for."""
        kept = "kept" if self.accuracy_kept else "NOT KEPT"
        seen = "; the checkpoint may have been trained on some of them" if self.reward_images_may_be_seen else ""
        return (
            f"--max-loss {self.max_loss:g} {kept}: on the reward images the refitted network has {self.metric} "
            f"{self.refitted_reward_top1:.1%}, the original {self.original_reward_top1:.1%}{seen}"
        )


@dataclass(frozen=True)
class SearchDetails:
    """What a search keeps for reports, which then need neither network nor latency table.

    `profiled_p50_ms`: of the original, as the latency table has it; None where that knows no whole models.
    `episodes_p50_ms`: of the plan of each line of the episode log, predicted with all that the search measured.
    """

    layers: tuple[LayerRow, ...] = ()
    predictions: Predictions = field(default_factory=Predictions)
    kept_groups: tuple[KeptGroup, ...] = ()
    profiled_p50_ms: float | None = None
    episodes_p50_ms: tuple[float, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """What older versions did not keep is left out where there is nothing of it."""
        document = {f.name: to_document(getattr(self, f.name)) for f in fields(self)}
        if not self.episodes_p50_ms:
            del document["episodes_p50_ms"]
        later = ("channel_step", "nodes")
        layers = [{k: v for k, v in row.items() if v or k not in later} for row in document["layers"]]
        return {**document, "layers": layers}


@dataclass(frozen=True)
class FinetuneRecord:
    """What fine-tuning gave. `kept`: its weights are taken; `best_epoch`: 0 where there was none to choose from."""

    pruned_sha256: str  # of the weights that it began with
    epochs: int
    learning_rate: float
    batch_size: int
    distill_weight: float
    test_images: int
    test_top1_before: float
    test_top1: float
    metric: str
    accuracy_on: str
    kept: bool
    ema_decay: float
    held_out_images: int
    held_out_top1_before: float
    best_epoch: int
    epoch_reports: tuple[EpochReport, ...]
    ends_itself: bool = field(default=False, metadata=LATER)  # with --epochs auto
    int8_epochs: int = field(default=0, metadata=LATER)  # the last ones, which round weights and activations
    int8_top1: float | None = field(default=None, metadata=LATER)  # on test images, rounded


@dataclass(frozen=True)
class OutputParity:
    """One output of a network with several, exported against torch. `largest`: of torch, to judge `max_abs` by."""

    output: int
    shape: tuple[int, ...]
    max_abs: float
    largest: float


@dataclass(frozen=True)
class Float32File:
    """The float32 file that a quantised one was made from."""

    path: str
    bytes: int
    test_top1: float


@dataclass(frozen=True)
class ExportedFile:
    """One exported file. `pair`: it and the original measured, None without a device; `decision`: of the budget that
    it is held against. `original_bytes`: of the file that it was measured against."""

    format: str
    precision: str
    runtime: str
    path: str
    bytes: int
    sha256: str
    test_top1: float
    parity: Parity
    output_parity: tuple[OutputParity, ...]
    sqnr_db: float | None
    float32: Float32File | None
    problem: str
    not_delegated: tuple[str, ...] | None
    pair: PairMeasurement | None
    decision: Gate | None
    original_bytes: int | None

    @property
    def accuracy(self) -> float:
        """Of the file itself on the test images, in [0, 1]."""
        return self.test_top1

    @property
    def latency(self) -> ModelMeasurement | None:
        """Of the file, measured next to the original; None where it was not measured."""
        return self.pair.after if self.pair is not None else None


@dataclass(frozen=True)
class FurtherGate(Gate):
    """What was decided about the further budget `asked`, and by which measurement."""

    asked: str = ""
    pair: PairMeasurement | None = None


@dataclass(frozen=True)
class ExportGate(Gate):
    """Of all budgets together; `cost`, `limit` and `attempts` are those of the first, which passed as `own_passed`."""

    own_passed: bool | None = None
    own_text: str = ""
    further: tuple[FurtherGate, ...] = ()


@dataclass(frozen=True)
class ExportRecord:
    """What an export wrote, and what was decided about every budget. `runtime`: of the search."""

    stage: str
    weights_sha256: str
    runtime: str
    precision: str
    granularity: str
    test_top1: float
    metric: str
    accuracy_on: str
    files: tuple[ExportedFile, ...]
    gate: ExportGate
    accuracy_kept: bool | None


RECORDS: Mapping[type, str] = {
    SettingsRecord: "settings", SplitRecord: "split", GridMultiple: "multiple", LimitRecord: "budget",
    ReferenceRecord: "budget", MeasuredPlans: "measured", SearchRecord: "search", SearchDetails: "details",
    FinetuneRecord: "finetune", ExportRecord: "export",
}  # fmt: skip
Record = TypeVar("Record")


def run_name(*parts: object) -> str:
    """A folder name made of `parts`, safe for any model spec."""
    return safe_name("-".join(str(part) for part in parts if part != ""))


def precision_part(precision: str) -> str:
    """Of a run's name: runs of other precisions than float32 are other runs."""
    return "" if precision == FLOAT32 else precision


def place_part(settings: Settings, unit: Unit) -> str:
    """Of a run's name: where its latency budget holds, what is the default left out; empty for other budgets."""
    if unit != "ms":
        return ""
    parts = (
        "" if settings.device == Settings.device else settings.device,
        "" if settings.runtime in ("", TFLITE.runtime) else settings.runtime,
        "" if settings.threads == Settings.threads else f"t{settings.threads}",
        "" if settings.accelerator == Settings.accelerator else settings.accelerator,
    )
    return "-".join(filter(None, parts))


@dataclass(frozen=True)
class Run:
    """Paths and documents of one run."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def save(self, record: object, *, device: str = "") -> None:
        """Writes a step's record. `device`: for one that each further device of a run has."""
        write_json(self._path(type(record), device), to_document(record), format_version=FORMAT_VERSION)

    def load(self, kind: type[Record], *, device: str = "") -> Record:
        """The record of a step. Raises InvalidInput naming the step when it has not run, CorruptFile."""
        path = self._path(kind, device)
        step = path.stem if kind in (FinetuneRecord, ExportRecord) else "search"
        if not path.exists():
            raise InvalidInput(f"run {self.name} has no {path.stem} yet", next_step=f"run `amc-mobile {step}` first")
        document = read_json(path, format_version=FORMAT_VERSION)
        del document["format_version"]
        try:
            return from_document(kind, document, path.stem)
        except AmcMobileError as error:
            again = f"run the same `amc-mobile {step}` again"
            raise CorruptFile(
                path, error.message, next_step=f"{again}: its episodes are kept" if step == "search" else again
            ) from error

    def find(self, kind: type[Record], *, device: str = "") -> Record | None:
        """As `load`; None where the step has not run."""
        return self.load(kind, device=device) if self._path(kind, device).exists() else None

    def _path(self, kind: type, device: str) -> Path:
        name = RECORDS[kind]
        return self.folder / (f"{name}-{device}.json" if device else f"{name}.json")

    def search(self) -> SearchRecord:
        return self.load(SearchRecord)

    @property
    def has_begun(self) -> bool:
        return (self.folder / BEGUN).exists()

    def begin(self, settings: Settings, search: SearchConfig, network: Network) -> None:
        self.save(SettingsRecord(settings, search, weights_sha256(network.module)))

    def original(self, *, workers: int | None = None) -> Network:
        """The network that the run prunes. `workers`: None for as many as it was searched with.

        Raises InvalidInput where its weights are no longer those of the search.
        """
        settings = self.settings()
        if workers is not None:
            settings = replace(settings, workers=workers)
            check_settings(settings)
        network = load_network(self.space, settings)
        if self.load(SettingsRecord).weights_sha256 != weights_sha256(network.module):
            raise InvalidInput(
                f"the original network's weights are not those that run {self.name} was searched with",
                next_step="bring back that checkpoint, or search again: `amc-mobile search --run NAME`",
            )
        return network

    def remove(self, kind: type) -> None:
        self._path(kind, "").unlink(missing_ok=True)

    def settings(self) -> Settings:
        return self.load(SettingsRecord).settings

    def search_config(self) -> SearchConfig:
        return self.load(SettingsRecord).search

    def accuracy_kept(self) -> bool | None:
        """Whether the network as it is keeps the accuracy that --max-loss asks for; None: nothing was asked.

        The refitted network is judged on the reward images, a fine-tuned one on the images held out of its training.
        """
        search, tuned = self.search(), self.finetuned()
        if search.max_loss is None or search.accuracy_kept is None or tuned is None or not tuned.kept:
            return search.accuracy_kept
        best = [report.validation_top1 for report in tuned.epoch_reports if report.epoch == tuned.best_epoch]
        if not best or best[0] is None:
            return search.accuracy_kept
        return is_accuracy_kept(best[0], search.original_reward_top1, search.max_loss)

    def weights(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"

    def save_weights(self, stage: str, model: nn.Module) -> None:
        save_checkpoint(model, self.weights(stage))

    @property
    def _masks(self) -> Path:
        return self.folder / "masks.safetensors"

    def save_masks(self, masks: Mapping[str, Tensor]) -> None:
        """By parameter, the weights that stay: 1 in the file. Nothing is written where whole channels went."""
        if masks:
            write_tensors(self._masks, {name: mask.to(torch.uint8) for name, mask in masks.items()})

    def masks(self) -> dict[str, Tensor]:
        return {name: mask.bool() for name, mask in load_file(self._masks).items()} if self._masks.exists() else {}

    def load_pruned(self, network: Network, stage: str) -> nn.Module:
        """The pruned network with the weights of a stage: "pruned" (refitted) or "finetuned".

        Where single weights were pruned, no training changes them: their gradients are masked.
        """
        masks, plan = self.masks(), self.search().plan
        kept = plan.kept() if isinstance(plan, PruningPlan) else {}
        model = surgery.apply(network.module, network.groups, kept)
        load_checkpoint(model, self.weights(stage))
        hold_masks(model, masks)
        return model.eval()

    def stage_sha256(self, stage: str) -> str:
        """Of the file with a stage's weights."""
        return hashlib.sha256(self.weights(stage).read_bytes()).hexdigest()

    def finetuned(self) -> FinetuneRecord | None:
        """What fine-tuning the plan as it is now gave; None before it, and where a longer search found another plan."""
        record = self.find(FinetuneRecord)
        return record if record is not None and record.pruned_sha256 == self.stage_sha256("pruned") else None

    def best_stage(self) -> str:
        """The weights to export: fine-tuned ones where that step found them better."""
        tuned = self.finetuned()
        return "finetuned" if tuned is not None and tuned.kept else "pruned"

    def is_outdated(self, export: ExportRecord) -> bool:
        """Whether the exported files hold other weights than those that an export would take now."""
        stage = self.best_stage()
        return (export.stage, export.weights_sha256) != (stage, self.stage_sha256(stage))

    def finetune(
        self,
        *,
        epochs: Epochs = 10,
        learning_rate: float | None = None,
        batch_size: int = 64,
        ema_decay: float = 0.0,
        bf16: bool = False,
        precision: str | None = None,
        workers: int | None = None,
        progress: Progress = silent,
    ) -> FinetuneResult:
        """Trains the pruned network on, distilled from the original; goes on where it was stopped.

        `epochs`: "auto" ends when the accuracy on held-out images stops rising. `learning_rate`: the highest; None:
        0.02, of detectors 0.002. `ema_decay`: keeps a moving average of the weights, e.g. 0.999; 0: the last ones. The
        weights are kept unless clearly worse. `precision`: of the files to come; None: as the run was searched. With
        "int8" the last fifth of the epochs round as those files will.

            run.finetune(epochs=20).result.test_top1
        """
        from amc_mobile.workflows.training import finetune_run

        return finetune_run(
            self.space, run=self.name, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size,
            bf16=bf16, ema_decay=ema_decay, precision=precision, workers=workers, progress=progress,
        )  # fmt: skip

    def export(
        self,
        *formats: str,
        precision: str | None = None,
        offline: bool = False,
        serial: str | None = None,
        waive: Sequence[str] = (),
        clock_mode: str | None = None,
        kotlin: bool = False,
        progress: Progress = silent,
    ) -> ExportResult:
        """Writes the pruned network as "tflite", "onnx" or both, checks the files against torch and measures them.

        `precision`: "float32", "int8" or "float16"; None, as for the others: as the run was searched. `offline`: the
        files are not measured, and a latency budget stays open. `kotlin`: writes Classify.kt, which feeds the files on
        Android. Raises DeviceUnavailable for a phone that is not there.

            files = run.export("tflite", "onnx")
            files.passed, files["tflite"].latency.p50_ms, files["tflite"].accuracy
        """
        from amc_mobile.workflows.export import export_run

        changed = {
            "precision": precision, "serial": serial, "waive": ",".join(waive) or None, "clock_mode": clock_mode,
        }  # fmt: skip
        return export_run(
            self.space,
            run=self.name,
            formats=list(formats),
            changed=changed,
            offline=offline,
            kotlin=kotlin,
            progress=progress,
        )

    def report(self) -> ReportResult:
        """Writes report.html, report.json, report.md and more into the run's folder; `paths` of the result names them.

        print(run.report().text())
        """
        from amc_mobile.workflows.report import report_run

        return report_run(self.space, run=self.name)

    def module(self, stage: str | None = None) -> nn.Module:
        """The pruned network with its weights, in evaluation mode. `stage`: "pruned" or "finetuned"; None: the best."""
        return self.load_pruned(self.original(), stage or self.best_stage())

    def episodes(self) -> Any:
        """A pandas DataFrame, one row per plan tried: episode, policy, reward, predicted_cost, measured_ms ..."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in EpisodeLog(self.folder / "episodes.csv").rows])

    def layers(self) -> Any:
        """A pandas DataFrame, one row per kernel of the network: channels, ms and MACs before and after pruning.

        Empty where the budget is not a latency.
        """
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.load(SearchDetails).layers])

    def plan(self) -> PruningPlan | WeightPlan:
        """The plan that the network was pruned by. Raises InvalidInput before the search has ended."""
        return self.search().plan

    @property
    def space(self) -> Workspace:
        """The workspace that the run is in."""
        return Workspace(self.folder.parents[1])


def load_pruned(run: Path | str) -> nn.Module:
    """The pruned network of a run's folder, a torch module with its weights, in evaluation mode.

    The fine-tuned weights where there are any and they were kept. The network itself is built by what the run was made
    with: a file of yours has to be where it was, and a network that was given as a module must have been opened in this
    process, by `Workspace.network`. Raises InvalidInput where it cannot be.

        module = amc.load_pruned("amc-workspace/runs/NAME")
    """
    folder = Path(run)
    return Workspace(folder.parents[1]).run(folder.name).module()
