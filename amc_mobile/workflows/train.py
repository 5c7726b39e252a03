"""Train the original network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from amc_mobile.channels.exported import exported
from amc_mobile.data import held_out
from amc_mobile.errors import InvalidConfig
from amc_mobile.models.evaluation import evaluate
from amc_mobile.models.loading import save_checkpoint
from amc_mobile.models.task import OwnTask
from amc_mobile.models.training import TrainConfig, train
from amc_mobile.store import write_json
from amc_mobile.workflows.network import load_model_and_data, resolved_checkpoint
from amc_mobile.workflows.progress import Progress, TrainingProgress
from amc_mobile.workflows.workspace import FORMAT_VERSION, Settings, Workspace


@dataclass(frozen=True)
class TrainResult:
    model: str
    top1: float
    test_images: int
    epochs: int
    checkpoint: str
    accuracy_on: str
    metric: str  # what `top1` is

    def document(self) -> dict[str, Any]:
        return {
            "model": self.model, "test_top1": self.top1, "test_images": self.test_images, "epochs": self.epochs,
            "checkpoint": self.checkpoint, "accuracy_on": self.accuracy_on, "metric": self.metric,
        }  # fmt: skip

    def text(self) -> str:
        return (
            f"{self.model}: {self.metric} {self.top1:.1%} on {self.test_images} {self.accuracy_on} "
            f"after {self.epochs} epochs\n"
            f"weights: {self.checkpoint}"
        )


def train_network(
    space: Workspace,
    settings: Settings,
    *,
    epochs: int,
    learning_rate: float | None = None,
    batch_size: int,
    bf16: bool = False,
    progress: Progress,
) -> TrainResult:
    """Trains on the data's training set and keeps the weights in the workspace.

    Some training images are held out: those that searches score plans on. The test set only gives
    the accuracy that is reported. A killed run continues after its last epoch. Raises InvalidInput while another call
    trains in this workspace.
    """
    with space.writing("train"):
        return _trained(space, settings, epochs, learning_rate, batch_size, bf16=bf16, progress=progress)


def _trained(
    space: Workspace, settings: Settings, epochs: int, learning_rate: float | None, batch_size: int, *, bf16: bool,
    progress: Progress,
) -> TrainResult:  # fmt: skip
    spec = settings.required("model")
    settings.required("data")
    checkpoint = resolved_checkpoint(space, settings) if settings.checkpoint else None
    loaded, data = load_model_and_data(settings, checkpoint)
    assert data is not None  # the settings name one
    if isinstance(loaded.task, OwnTask) and loaded.task.loss_of is None:
        raise InvalidConfig("training with an accuracy function of your own needs a loss", next_step="pass --loss too")
    exported(loaded.module, torch.zeros(loaded.input_shape))  # what cannot be pruned is not worth being trained
    config = TrainConfig(
        epochs=epochs, learning_rate=loaded.task.learning_rate if learning_rate is None else learning_rate,
        batch_size=batch_size, bf16=bf16, seed=settings.seed,
    )  # fmt: skip
    parts = held_out(data)
    del data  # its training set is in `parts`, too
    state = space.folder / "train.safetensors"
    size = " x ".join(map(str, loaded.input_shape[1:]))
    steps = TrainingProgress(
        progress, "train", loaded.task.metric, f"{len(parts.train)} images of {size}, {epochs} epochs"
    )
    train(
        loaded.module, parts.train, config, task=loaded.task, resume=state, on_epoch=steps.on_epoch,
        on_step=steps.on_step,
    )  # fmt: skip
    space.trained_record.unlink(missing_ok=True)  # never beside the weights of another training
    save_checkpoint(loaded.module, space.trained_checkpoint)
    record = {"held_out_sha256": parts.reward.fingerprint(), "started_from": settings.checkpoint}
    write_json(space.trained_record, record, format_version=FORMAT_VERSION)
    state.unlink(missing_ok=True)
    space.remember(replace(settings, checkpoint=""))
    top1, weights = evaluate(loaded.module, parts.test, task=loaded.task), str(space.trained_checkpoint)
    return TrainResult(spec, top1, len(parts.test), epochs, weights, parts.accuracy_on, loaded.task.metric)
