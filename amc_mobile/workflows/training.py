"""Train the original network, and train the pruned one on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amc_mobile.channels.trace import exported
from amc_mobile.data.split import held_out
from amc_mobile.device.host import allowed_cores
from amc_mobile.errors import InvalidConfig
from amc_mobile.export.converters import calibration_choice
from amc_mobile.formats import INT8
from amc_mobile.models.loading import save_checkpoint
from amc_mobile.models.task import OwnTask, evaluate, logits
from amc_mobile.models.training import Epochs, TrainConfig, best_epoch, train
from amc_mobile.pruning.fake_quantize import fake_quantized, find_rounding, put_back
from amc_mobile.pruning.magnitude import hold_masks
from amc_mobile.store import to_document, write_json
from amc_mobile.workflows.network import load_model_and_data, resolved_checkpoint
from amc_mobile.workflows.runs import FinetuneRecord, Run
from amc_mobile.workflows.workspace import (
    FORMAT_VERSION,
    Progress,
    Settings,
    TrainingProgress,
    Workspace,
)


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
    epochs: Epochs,
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
        spec = settings.required("model")
        settings.required("data")
        checkpoint = resolved_checkpoint(space, spec, settings.checkpoint) if settings.checkpoint else None
        loaded, data = load_model_and_data(settings, checkpoint)
        assert data is not None  # the settings name one
        if isinstance(loaded.task, OwnTask) and loaded.task.loss_of is None:
            raise InvalidConfig(
                "training with an accuracy function of your own needs a loss", next_step="pass --loss too"
            )
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
            progress, "train", loaded.task.metric, f"{len(parts.train)} images of {size}{_of(epochs)}"
        )
        reports = train(
            loaded.module, parts.train, config, task=loaded.task, resume=state, on_epoch=steps.on_epoch,
            on_step=steps.on_step, validate=parts.reward if epochs == "auto" else None,
        )  # fmt: skip
        space.trained_record.unlink(missing_ok=True)  # never beside the weights of another training
        save_checkpoint(loaded.module, space.trained_checkpoint)
        record = {"held_out_sha256": parts.reward.fingerprint(), "started_from": settings.checkpoint}
        write_json(space.trained_record, record, format_version=FORMAT_VERSION)
        state.unlink(missing_ok=True)
        space.remember(replace(settings, checkpoint=""))
        top1, weights = evaluate(loaded.module, parts.test, task=loaded.task), str(space.trained_checkpoint)
        return TrainResult(spec, top1, len(parts.test), len(reports), weights, parts.accuracy_on, loaded.task.metric)


DISTILL_WEIGHT = 0.7  # share of the loss that follows the original network
SLOWER = 5  # the learning rate, than for training from scratch
# The last epochs of a network that is exported in int8 round as its file will, at a lower rate. A fifth and a tenth:
# scripts/benchmarks/int8_finetuning.py.
INT8_SHARE, INT8_SLOWER = 0.2, 10


@dataclass(frozen=True)
class FinetuneResult:
    run: str
    result: FinetuneRecord

    def document(self) -> dict[str, Any]:
        return {"run": self.run, **to_document(self.result)}

    def text(self) -> str:
        r = self.result
        kept = "kept" if r.kept else "not kept: clearly fewer of the held-out images are right"
        int8 = "" if r.int8_top1 is None else f", rounded to int8 {r.int8_top1:.1%} (the last {r.int8_epochs} epochs)"
        return (
            f"run {self.run}: {r.epochs} epochs, the weights of epoch {r.best_epoch}, "
            f"{r.metric} {r.test_top1_before:.1%} -> {r.test_top1:.1%}{int8} on {r.test_images} {r.accuracy_on}; {kept}"
        )


def finetune_run(
    space: Workspace,
    *,
    run: str | None,
    epochs: Epochs,
    learning_rate: float | None = None,
    batch_size: int,
    bf16: bool = False,
    ema_decay: float = 0.0,
    precision: str | None = None,
    workers: int | None = None,
    progress: Progress,
) -> FinetuneResult:
    """Fine-tunes a run's pruned network; goes on where it was killed.

    `precision`: None: as the run was searched. "int8": the last epochs round weights and activations.

    The reward images, which training never sees, decide which epoch's weights are taken, and whether they are kept;
    test images only report.
    """
    folder = Run(space.run_folder(run))
    with space.working_on(folder.name):
        search, seed = folder.search_config(), folder.settings().seed
        is_int8 = (precision or folder.settings().precision) == INT8
        network = folder.original(workers=workers)
        data = network.split(calibration=search.calibration_images, reward=search.reward_images, seed=seed)
        if learning_rate is None:
            learning_rate = network.task.learning_rate / SLOWER
        model = folder.load_pruned(network, "pruned")
        before, outputs = evaluate(model, data.test, task=network.task), logits(model, data.reward)
        right = network.task.right(outputs, data.reward.labels)
        held_out_before = network.task.accuracy(outputs, data.reward.labels)
        # Mixed precision where a GPU does it: there it costs nothing and saves half the time.
        mixed = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        unrounded = epochs if epochs == "auto" or not is_int8 else epochs - _int8_epochs(epochs)
        config = TrainConfig(
            epochs=unrounded, learning_rate=learning_rate, batch_size=batch_size, distill_weight=DISTILL_WEIGHT,
            bf16=bf16 or mixed, ema_decay=ema_decay, seed=seed,
            threads=len(allowed_cores()),  # those of `settings` are for timing
        )  # fmt: skip
        state = folder.folder / "finetune-state.safetensors"
        place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = " x ".join(map(str, network.input_shape[1:]))
        steps = TrainingProgress(
            progress, "fine-tune", network.task.metric, f"{len(data.train)} images of {size}{_of(unrounded)}"
        )
        train_on = partial(
            train, images=data.train, task=network.task, teacher=network.module.to(place), validate=data.reward,
            keep_best=True,
        )  # fmt: skip
        reports = chosen_of = train_on(
            model.to(place), config=config, resume=state, on_epoch=steps.on_epoch, on_step=steps.on_step
        )
        model.to("cpu")
        rounded_epochs = _int8_epochs(len(reports) if epochs == "auto" else epochs) if is_int8 else 0
        int8_top1, rounded_state = None, state.with_stem(f"{state.stem}-int8")
        if rounded_epochs:
            rounding = find_rounding(model, data.calibration.normalised(slice(0, 1)))
            ranges = data.calibration.subset(calibration_choice(len(data.calibration)))
            rounded = fake_quantized(model, rounding, ranges).to(place)
            hold_masks(rounded, {name: mask.to(place) for name, mask in folder.masks().items()})
            config = replace(config, epochs=rounded_epochs, learning_rate=learning_rate / INT8_SLOWER)
            steps = replace(steps, stage="fine-tune in int8", note=f"{rounded_epochs} epochs", steps=0)
            found = train_on(
                rounded, config=config, resume=rounded_state, on_epoch=steps.on_epoch, on_step=steps.on_step
            )
            all_epochs = len(reports) + rounded_epochs
            chosen_of = [replace(r, epoch=len(reports) + r.epoch, epochs=all_epochs) for r in found]
            reports = [*reports, *chosen_of]
            put_back(rounded.to("cpu"), model, rounding.folding)
            int8_top1 = evaluate(rounded, data.test, task=network.task)
        best = best_epoch(chosen_of)
        kept = not clearly_worse(right, network.task.right(logits(model, data.reward), data.reward.labels))
        folder.save_weights("finetuned", model)
        record = FinetuneRecord(
            pruned_sha256=folder.stage_sha256("pruned"),
            epochs=len(reports),
            ends_itself=epochs == "auto",
            learning_rate=learning_rate,
            batch_size=batch_size,
            distill_weight=DISTILL_WEIGHT,
            test_images=len(data.test),
            test_top1_before=before,
            test_top1=evaluate(model, data.test, task=network.task),
            metric=network.task.metric,
            accuracy_on=data.accuracy_on,
            kept=kept,
            ema_decay=ema_decay,
            held_out_images=len(data.reward),
            held_out_top1_before=held_out_before,
            best_epoch=best.epoch if best else 0,
            epoch_reports=tuple(reports),
            int8_epochs=rounded_epochs,
            int8_top1=int8_top1,
        )
        folder.save(record)
        state.unlink(missing_ok=True)
        rounded_state.unlink(missing_ok=True)
        return FinetuneResult(folder.name, record)


def _int8_epochs(epochs: int) -> int:
    return max(1, round(INT8_SHARE * epochs)) if epochs else 0


def _of(epochs: Epochs) -> str:
    return ", until the held-out accuracy stops rising" if epochs == "auto" else f", {epochs} epochs"


def clearly_worse(before: Tensor, after: Tensor) -> bool:
    """Whether more images were lost than won by over one standard error. Both (N,) bool: without a mistake.

    A few hundred held-out images tell no smaller loss from chance, and fine-tuning usually gains.
    """
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return bool(lost - won > math.sqrt(lost + won))
