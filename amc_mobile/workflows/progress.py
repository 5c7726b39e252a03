"""How long work tells the caller where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from amc_mobile.models.training_state import EpochReport


class Progress(Protocol):
    """Called with a stage, how much of it is done, its total (0: unknown) and a short note."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Reports nothing."""


@dataclass
class TrainingProgress:
    """Reports every step of a training of several epochs, with what the last epoch gave."""

    progress: Progress
    stage: str
    metric: str  # what the accuracies are
    note: str  # until the first epoch is done
    steps: int = 0  # of all epochs

    def on_step(self, done: int, steps: int) -> None:
        self.steps = steps
        if done < steps:  # the last epoch reports the last step
            self.progress(self.stage, done, steps, self.note)

    def on_epoch(self, report: EpochReport) -> None:
        parts = [f"epoch {report.epoch}/{report.epochs}: loss {report.train_loss:.3f}"]
        if report.validation_top1 is not None:
            parts.append(f"held-out {self.metric} {report.validation_top1:.1%}")
        elif report.train_top1 is not None:
            parts.append(f"{self.metric} {report.train_top1:.1%}")
        self.note = ", ".join(parts)
        if report.epoch == report.epochs:
            self.progress(self.stage, self.steps, self.steps, self.note)
