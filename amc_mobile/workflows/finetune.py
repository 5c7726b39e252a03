"""Train the pruned network on, distilled from the original."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amc_mobile.models.evaluation import evaluate, logits
from amc_mobile.models.training import TrainConfig, best_epoch, train
from amc_mobile.workflows.progress import Progress, TrainingProgress
from amc_mobile.workflows.runs import Run
from amc_mobile.workflows.workspace import Workspace, check_settings

DISTILL_WEIGHT = 0.7  # share of the loss that follows the original network
SLOWER = 5  # the learning rate, than for training from scratch


@dataclass(frozen=True)
class FinetuneResult:
    run: str
    result: dict[str, Any]

    def document(self) -> dict[str, Any]:
        return {"run": self.run, **self.result}

    def text(self) -> str:
        r = self.result
        kept = "kept" if r["kept"] else "not kept: clearly fewer of the held-out images are right"
        return (
            f"run {self.run}: {r['epochs']} epochs, the weights of epoch {r['best_epoch']}, "
            f"{r['metric']} {r['test_top1_before']:.1%} -> {r['test_top1']:.1%} "
            f"on {r['test_images']} {r['accuracy_on']}; {kept}"
        )


def finetune_run(
    space: Workspace,
    *,
    run: str | None,
    epochs: int,
    learning_rate: float | None = None,
    batch_size: int,
    bf16: bool = False,
    ema_decay: float = 0.0,
    workers: int | None = None,
    progress: Progress,
) -> FinetuneResult:
    """Fine-tunes a run's pruned network; goes on where it was killed.

    The reward images, which training never sees, decide which epoch's weights are taken, and whether they are kept;
    test images only report.
    """
    folder = Run(space.run_folder(run))
    with space.working_on(folder.folder.name):
        return _finetuned(
            space, folder, epochs, learning_rate, batch_size, bf16=bf16, ema_decay=ema_decay, workers=workers,
            progress=progress,
        )  # fmt: skip


def _finetuned(
    space: Workspace, folder: Run, epochs: int, learning_rate: float | None, batch_size: int, *, bf16: bool,
    ema_decay: float, workers: int | None, progress: Progress,
) -> FinetuneResult:  # fmt: skip
    settings = folder.settings()
    if workers is not None:
        settings = replace(settings, workers=workers)
        check_settings(settings)
    wanted = folder.read("settings")["search"]
    network = folder.original(space, settings)
    data = network.split(calibration=wanted["calibration_images"], reward=wanted["reward_images"], seed=settings.seed)
    if learning_rate is None:
        learning_rate = network.task.learning_rate / SLOWER
    model = folder.load_pruned(network, "pruned")
    before, outputs = evaluate(model, data.test, task=network.task), logits(model, data.reward)
    right = network.task.right(outputs, data.reward.labels)
    held_out_before = network.task.accuracy(outputs, data.reward.labels)
    # Mixed precision where a GPU does it: there it costs nothing and saves half the time.
    mixed = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    config = TrainConfig(
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, distill_weight=DISTILL_WEIGHT,
        bf16=bf16 or mixed, ema_decay=ema_decay, seed=settings.seed,
        threads=os.cpu_count(),  # those of `settings` are for timing
    )  # fmt: skip
    state = folder.folder / "finetune-state.safetensors"
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = " x ".join(map(str, network.input_shape[1:]))
    steps = TrainingProgress(
        progress, "fine-tune", network.task.metric, f"{len(data.train)} images of {size}, {epochs} epochs"
    )
    reports = train(
        model.to(place), data.train, config, task=network.task, teacher=network.module.to(place), resume=state,
        validate=data.reward, keep_best=True, on_epoch=steps.on_epoch, on_step=steps.on_step,
    )  # fmt: skip
    model.to("cpu")
    best = best_epoch(reports)
    kept = not clearly_worse(right, network.task.right(logits(model, data.reward), data.reward.labels))
    folder.save_weights("finetuned", model)
    document = {
        "pruned_sha256": folder.stage_sha256("pruned"),
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "distill_weight": DISTILL_WEIGHT,
        "test_images": len(data.test), "test_top1_before": before,
        "test_top1": evaluate(model, data.test, task=network.task), "metric": network.task.metric,
        "accuracy_on": data.accuracy_on, "kept": kept, "ema_decay": ema_decay, "held_out_images": len(data.reward),
        "held_out_top1_before": held_out_before, "best_epoch": best.epoch if best else 0,
        "epoch_reports": [asdict(report) for report in reports],
    }  # fmt: skip
    folder.write("finetune", document)
    state.unlink(missing_ok=True)
    return FinetuneResult(folder.folder.name, document)


def clearly_worse(before: Tensor, after: Tensor) -> bool:
    """Whether more images were lost than won by over one standard error. Both (N,) bool: without a mistake.

    A few hundred held-out images tell no smaller loss from chance, and fine-tuning usually gains.
    """
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return bool(lost - won > math.sqrt(lost + won))
