"""The file that lets a killed training run continue after its last finished epoch."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from amc_mobile.errors import CorruptFile, InvalidConfig
from amc_mobile.models.checkpoints import write_tensors
from amc_mobile.store import parse_json, parse_object

# 1: tensors `model.NAME` and `momentum.NAME`; metadata `identity` and `reports` as JSON
# 2: tensors `average.NAME` where weights are averaged
# 3: tensors `best.NAME` where the best epoch is kept
FORMAT_VERSION = 3


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of training gave. Accuracies, in [0, 1], are top-1 unless the task has another.

    `train_top1` is on the augmented images; None for an accuracy that takes a whole set.
    """

    epoch: int  # the first is 1
    epochs: int
    train_loss: float
    train_top1: float | None
    validation_top1: float | None
    learning_rate: float  # in its last step
    seconds: float  # validation included


@dataclass
class TrainingState:
    """`model`, `optimizer` (SGD with momentum) and averaged weights of one run, with the reports of the epochs done.

    `identity`: what must be equal in the file and in the run that wants to continue from it. `best`: the state dict
    that `keep_as_best` copied last.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, str]
    reports: list[EpochReport] = field(default_factory=list)
    averaged: nn.Module | None = None
    best: dict[str, Tensor] | None = None

    def keep_as_best(self) -> None:
        """Copies the weights as they are now, or their moving average."""
        self.best = copy.deepcopy((self.averaged or self.model).state_dict())

    def save(self, path: Path) -> None:
        """Replaces `path`, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (self.best or {}).items()}
        for name, parameter in self.model.named_parameters():
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "identity": json.dumps(self.identity),
            "reports": json.dumps([asdict(report) for report in self.reports]),
        }
        write_tensors(path, tensors, metadata)

    def load(self, path: Path) -> None:
        """Puts the file's weights, momentum and reports in place of this state's.

        Raises CorruptFile, and InvalidConfig when the file is of another run.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = int(metadata["format_version"])
            identity: dict[str, str] = parse_object(metadata["identity"])
            reports = [EpochReport(**report) for report in parse_json(metadata["reports"])]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise CorruptFile(
                path, f"not a training checkpoint ({error})", next_step="delete the file to start the training anew"
            ) from error
        if version > FORMAT_VERSION:
            raise CorruptFile(path, f"has format {version}, this version reads up to {FORMAT_VERSION}")
        self._refuse_another_run(path, identity, tensors)
        self.model.load_state_dict(_under("model.", tensors))
        if self.averaged is not None:
            self.averaged.load_state_dict(_under("average.", tensors))
        self.best = _under("best.", tensors) or None
        for name, parameter in self.model.named_parameters():
            momentum = tensors.get(f"momentum.{name}")
            if momentum is not None:
                # Laid out in memory as the parameter is: the sums of the next steps then come out bit for bit alike.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        self.reports = reports

    def _refuse_another_run(self, path: Path, identity: dict[str, str], tensors: dict[str, Tensor]) -> None:
        keys = sorted({*identity, *self.identity})
        differences = [
            f"{key} {str(identity.get(key))[:20]} there, {str(self.identity.get(key))[:20]} here"
            for key in keys
            if identity.get(key) != self.identity.get(key)
        ]
        shapes = {f"model.{name}": tuple(value.shape) for name, value in self.model.state_dict().items()}
        if not differences and shapes != {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("model.")}:
            differences = ["the model has other layers or widths"]
        if differences:
            raise InvalidConfig(
                f"{path} is of another training run: {'; '.join(differences)}",
                next_step="delete the file to start anew, or use the settings it was made with",
            )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
