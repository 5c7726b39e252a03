"""One run's folder: what was asked, the plan, the weights of each stage, and how to load them again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from amc_mobile.channels import surgery
from amc_mobile.channels.plan import PruningPlan
from amc_mobile.errors import InvalidInput
from amc_mobile.export.precision import FLOAT32
from amc_mobile.models.loading import load_checkpoint, save_checkpoint
from amc_mobile.store import read_json, write_json
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.workspace import Settings

FORMAT_VERSION = 1


def run_name(*parts: object) -> str:
    """A folder name made of `parts`, safe for any model spec."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(str(part) for part in parts if part != "")).strip("-.")


def precision_part(settings: Settings) -> str:
    """Of a run's name: runs of other precisions than float32 are other runs."""
    return "" if settings.precision == FLOAT32 else settings.precision


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

    def begin(self, settings: Settings, wanted: Mapping[str, Any]) -> None:
        self.write("settings", {"settings": asdict(settings), "search": dict(wanted)})

    def settings(self) -> Settings:
        return Settings(**self.read("settings")["settings"])

    def plan(self) -> PruningPlan:
        return PruningPlan.from_document(self.read("search")["plan"])

    def weights(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"

    def save_weights(self, stage: str, model: nn.Module) -> None:
        save_checkpoint(model, self.weights(stage))

    def load_pruned(self, network: Network, stage: str) -> nn.Module:
        """The pruned network with the weights of a stage: "pruned" (refitted) or "finetuned"."""
        model = surgery.apply(network.module, network.groups, self.plan().kept())
        load_checkpoint(model, self.weights(stage))
        return model.eval()

    def best_stage(self) -> str:
        """The weights to export: fine-tuned ones where that step found them better."""
        return "finetuned" if self.has("finetune") and self.read("finetune")["kept"] else "pruned"
