"""One run's folder: what was asked, the plan, the weights of each stage, and how to load them again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from amc_mobile.channels import surgery
from amc_mobile.channels.plan import PruningPlan
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.formats import FLOAT32, TFLITE
from amc_mobile.models.loading import load_checkpoint, save_checkpoint, weights_sha256, write_tensors
from amc_mobile.pruning.magnitude import hold_masks
from amc_mobile.search.budget import Unit
from amc_mobile.store import read_json, write_json
from amc_mobile.workflows.network import Network, load_network
from amc_mobile.workflows.workspace import BEGUN, Settings, Workspace, safe_name, settings_from_document

FORMAT_VERSION = 1


def run_name(*parts: object) -> str:
    """A folder name made of `parts`, safe for any model spec."""
    return safe_name("-".join(str(part) for part in parts if part != ""))


def precision_part(settings: Settings) -> str:
    """Of a run's name: runs of other precisions than float32 are other runs."""
    return "" if settings.precision == FLOAT32 else settings.precision


def place_part(settings: Settings, unit: Unit) -> str:
    """Of a run's name: where its latency budget holds, what is the default left out; empty for other budgets."""
    if unit != "ms":
        return ""
    parts = (
        "" if settings.device == Settings.device else settings.device,
        "" if settings.runtime in ("", TFLITE.runtime) else settings.runtime,
        "" if settings.threads == Settings.threads else f"t{settings.threads}",
    )
    return "-".join(filter(None, parts))


@dataclass(frozen=True)
class Run:
    """Paths and documents of one run."""

    folder: Path

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        write_json(self.folder / f"{name}.json", dict(document), format_version=FORMAT_VERSION)

    def read(self, name: str) -> dict[str, Any]:
        """The document of a step. Raises InvalidInput naming the step when it has not run."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            raise InvalidInput(f"run {self.folder.name} has no {name} yet", next_step=f"run `amc-mobile {name}` first")
        return read_json(path, format_version=FORMAT_VERSION)

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    @property
    def has_begun(self) -> bool:
        return (self.folder / BEGUN).exists()

    def begin(self, settings: Settings, wanted: Mapping[str, Any], network: Network) -> None:
        weights = weights_sha256(network.module)
        self.write("settings", {"settings": asdict(settings), "search": dict(wanted), "weights_sha256": weights})

    def original(self, space: Workspace, settings: Settings) -> Network:
        """The network that the run prunes. Raises InvalidInput where its weights are no longer those of the search."""
        network = load_network(space, settings)
        if self.read("settings").get("weights_sha256") != weights_sha256(network.module):
            raise InvalidInput(
                f"the original network's weights are not those that run {self.folder.name} was searched with",
                next_step="bring back that checkpoint, or search again: `amc-mobile search --run NAME`",
            )
        return network

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def settings(self) -> Settings:
        return settings_from_document(self.folder / "settings.json", self.read("settings")["settings"])

    def plan(self) -> PruningPlan:
        try:
            return PruningPlan.from_document(self.read("search")["plan"])
        except InvalidInput as error:
            raise CorruptFile(self.folder / "search.json", error.message, next_step="search again") from error

    def accuracy_kept(self) -> bool | None:
        """Whether the network as it is keeps the accuracy that --max-loss asks for; None: nothing was asked.

        The refitted network is judged on the reward images, a fine-tuned one on the images held out of its training.
        """
        search, tuned = self.read("search"), self.finetuned()
        if search.get("accuracy_kept") is None or tuned is None or not tuned["kept"]:
            return search.get("accuracy_kept")
        lowest = search["original_reward_top1"] - search["max_loss"] - 1e-9
        best = [report for report in tuned["epoch_reports"] if report["epoch"] == tuned["best_epoch"]]
        return bool(best[0]["validation_top1"] >= lowest) if best else bool(search["accuracy_kept"])

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
        masks = self.masks()
        kept = {} if masks else self.plan().kept()
        model = surgery.apply(network.module, network.groups, kept)
        load_checkpoint(model, self.weights(stage))
        hold_masks(model, masks)
        return model.eval()

    def stage_sha256(self, stage: str) -> str:
        """Of the file with a stage's weights."""
        return hashlib.sha256(self.weights(stage).read_bytes()).hexdigest()

    def finetuned(self) -> dict[str, Any] | None:
        """What fine-tuning the plan as it is now gave; None before it, and where a longer search found another plan."""
        if not self.has("finetune"):
            return None
        document = self.read("finetune")
        return document if document.get("pruned_sha256") in (None, self.stage_sha256("pruned")) else None

    def best_stage(self) -> str:
        """The weights to export: fine-tuned ones where that step found them better."""
        tuned = self.finetuned()
        return "finetuned" if tuned is not None and tuned["kept"] else "pruned"

    def is_outdated(self, export: Mapping[str, Any]) -> bool:
        """Whether the exported files hold other weights than those that an export would take now."""
        stage = self.best_stage()
        return export["stage"] != stage or export.get("weights_sha256") not in (None, self.stage_sha256(stage))
