"""What a network is trained for: its loss, its accuracy and how its labels move with the image.

A network without an attribute `task` classifies. One that does something else holds its task under that name, which
`load_model` takes; training, searching, fine-tuning and exporting then follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from amc_mobile.errors import InvalidInput
from amc_mobile.models.augmentation import augmented
from amc_mobile.packing import Packing


@runtime_checkable
class Task(Protocol):
    """`outputs`: what the network gives for a batch, (N, ...); `labels`: those of a LabelledImages, (N, ...)."""

    @property
    def metric(self) -> str:
        """The name of `accuracy`, e.g. "top-1"."""

    @property
    def of_single_images(self) -> bool:
        """Whether `accuracy` is the share of the images that are right, so that parts of a set can be added up."""

    @property
    def learning_rate(self) -> float:
        """That training from scratch does well with, at its highest, unless told otherwise."""

    def num_classes(self, outputs: Tensor) -> int | None:
        """None where outputs do not tell it. Raises InvalidInput when they have not the shape that the task reads."""

    def check_labels(self, labels: Tensor) -> None:
        """Raises InvalidInput when the labels are another task's."""

    def loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """The mean over the batch."""

    def distillation_loss(self, outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """How far a student's outputs are from the teacher's `targets`, at a scale like that of `loss`."""

    def augmented(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator, *, mirrors: bool
    ) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) randomly changed, with the labels that they have then."""

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        """In [0, 1], over a whole set."""

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(N,) bool: the images without a mistake."""

    def predicted_classes(self, outputs: Tensor) -> Tensor:
        """int64, one or several an image: what has to agree between two runtimes."""

    def is_guessing(self, outputs: Tensor, labels: Tensor) -> bool:
        """Whether the outputs are no better than those of random weights. False where that cannot be told."""


class Classification:
    """Logits (N, classes) for labels (N,) int64."""

    metric = "top-1"
    of_single_images = True
    learning_rate = 0.1

    def num_classes(self, outputs: Tensor) -> int:
        if outputs.ndim != 2:
            raise InvalidInput(f"logits must be of shape (1, classes), the network gave {tuple(outputs.shape)}")
        return int(outputs.shape[1])

    def check_labels(self, labels: Tensor) -> None:
        if labels.ndim != 1:
            raise InvalidInput(
                f"labels of shape {tuple(labels.shape)} are boxes, and the network classifies whole images",
                next_step="choose a detector, e.g. --model ssdlite_mobilenet_v2, or a data set with one class an image",
            )

    def loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        return functional.cross_entropy(outputs, labels, label_smoothing=label_smoothing)

    def distillation_loss(self, outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """KL divergence of softened class probabilities times temperature squared (Hinton et al. 2015, section 2.1)."""
        student = functional.log_softmax(outputs / temperature, dim=1)
        tutor = functional.log_softmax(targets / temperature, dim=1)
        return functional.kl_div(student, tutor, reduction="batchmean", log_target=True) * temperature**2

    def augmented(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator, *, mirrors: bool
    ) -> tuple[Tensor, Tensor]:
        return augmented(pixels, generator, mirrors=mirrors), labels

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        return float(self.right(outputs, labels).float().mean())

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.argmax(1) == labels

    def predicted_classes(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def is_guessing(self, outputs: Tensor, labels: Tensor) -> bool:
        """At most three standard errors above one in so many classes."""
        images, chance = len(labels), 1 / outputs.shape[1]
        return float(self.right(outputs, labels).sum()) <= images * chance + 3 * math.sqrt(
            images * chance * (1 - chance)
        )


CLASSIFICATION = Classification()


@dataclass(frozen=True)
class OwnTask:
    """A task by the user's own functions of outputs, as the network returns them, and labels (N, ...).

    `accuracy_of` gives a number in [0, 1] for a batch, `loss_of` the mean loss of one; without it the network learns
    from its original alone. `packing`: of a network with several inputs or outputs.
    """

    accuracy_of: Callable[[Any, Tensor], Any]
    loss_of: Callable[[Any, Tensor], Any] | None = None
    packing: Packing | None = None

    metric = "accuracy"
    of_single_images = False
    learning_rate = 0.01

    def num_classes(self, outputs: Tensor) -> int | None:
        return None

    def check_labels(self, labels: Tensor) -> None:
        """They are the user's functions' to read."""

    def loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """0 without a loss of the user's."""
        if self.loss_of is None:
            return outputs.sum() * 0
        return torch.as_tensor(self._called("loss", self.loss_of, outputs, labels))

    def distillation_loss(self, outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """The squared error of each output in terms of its variance, averaged over the outputs."""
        pairs = zip(self._parts(outputs), self._parts(targets), strict=True)
        errors = [(found - wanted).square().mean() / wanted.var().clamp_min(1e-6) for found, wanted in pairs]
        return torch.stack(errors).mean()

    def augmented(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator, *, mirrors: bool
    ) -> tuple[Tensor, Tensor]:
        """As they are: what a shift does to the labels is not known."""
        return pixels, labels

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        value = float(self._called("accuracy", self.accuracy_of, outputs, labels))
        if not 0 <= value <= 1:
            raise InvalidInput(f"the accuracy function gave {value}", next_step="let it return a number in [0, 1]")
        return value

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The images whose own accuracy is at least one half."""
        return torch.tensor([self.accuracy(outputs[i : i + 1], labels[i : i + 1]) >= 0.5 for i in range(len(labels))])

    def predicted_classes(self, outputs: Tensor) -> Tensor:
        """(N, positions): at each position of each output the strongest channel; of a single channel, its sign."""
        parts = [part if part.ndim > 1 else part[:, None] for part in self._parts(outputs)]
        strongest = [part.argmax(1) if part.shape[1] > 1 else (part > 0).long()[:, 0] for part in parts]
        return torch.cat([part.reshape(len(outputs), -1) for part in strongest], 1)

    def is_guessing(self, outputs: Tensor, labels: Tensor) -> bool:
        return False

    def _parts(self, outputs: Tensor) -> list[Tensor]:
        return [outputs] if self.packing is None else self.packing.outputs(outputs)

    def _called(self, name: str, function: Callable[[Any, Tensor], Any], outputs: Tensor, labels: Tensor) -> Any:
        given = outputs if self.packing is None else self.packing.structured(outputs)
        try:
            return function(given, labels)
        except Exception as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in self._parts(outputs))
            raise InvalidInput(
                f"the {name} function failed for outputs of {shapes} and labels of {tuple(labels.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
