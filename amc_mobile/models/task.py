"""Outputs and accuracy of a network on an image set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.errors import InvalidInput
from amc_mobile.packing import Packing


class StoredImages(Protocol):
    """A (N, C, H, W) tensor, or what is indexed like one."""

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class LabelledImages(Protocol):
    @property
    def images(self) -> StoredImages:
        """(N, C, H, W), as stored."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, or (N, objects, 5) float32 for detectors."""

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image keeps its label."""

    def __len__(self) -> int: ...

    def normalised(self, select: slice) -> Tensor:
        """The selected images as float32 (N, C, H, W), ready for the network."""

    def normalise(self, images: Tensor) -> Tensor:
        """The same for images that were stored here and changed since."""

    def fingerprint(self) -> str:
        """Equal for equal images, labels and normalisation only."""


SHIFT_SHARE = 8  # images move by up to this fraction (one eighth) of their side


def augmented(pixels: Tensor, generator: torch.Generator, *, mirrors: bool) -> Tensor:
    """(N, C, H, W) -> the same shape and data type: each image shifted, and mirrored left-right half of the time.

    What a shift uncovers is filled by reflection. The same generator state gives the same result.
    """
    count, _, height, width = pixels.shape
    rows = _shifted(count, height, generator)
    columns = _shifted(count, width, generator)
    if mirrors:
        flips = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    # Indexing around the channel dimension gives (N, H, W, C): channels last, as the convolutions want it.
    return pixels.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, side) source positions: 0..side-1 plus one random offset per image, reflected at the borders."""
    reach = side // SHIFT_SHARE
    offset = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    position = (torch.arange(side)[None, :] + offset).abs()
    return (side - 1) - ((side - 1) - position).abs()


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


def logits(
    model: nn.Module,
    images: LabelledImages,
    batch_size: int = 64,
    *,
    channels_last: bool | None = None,
    bf16: bool = False,
) -> Tensor:
    """(N, ...) outputs on the CPU, in evaluation mode; the model's mode and weights are left as they were.

    `channels_last`: the memory layout of the batches; None tries one image, since `view` on a map needs the other.
    `bf16`: compute in bfloat16 where that is safe; the outputs are float32 all the same.
    """
    if len(images) == 0:
        raise InvalidInput("there are no images to evaluate on")
    if channels_last is None:
        channels_last = runs_channels_last(model, images.normalised(slice(0, 1)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    outputs = []
    with _evaluating(model), torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(images), batch_size):
            batch = images.normalised(slice(start, start + batch_size))
            outputs.append(model(batch.to(device).contiguous(memory_format=layout)).float().cpu())
    # Cloned outside inference mode: the result may take part in later computations.
    return torch.cat(outputs).clone()


def bf16_is_fast() -> bool:
    """Whether this CPU multiplies in bfloat16: then that takes about half the time of float32."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def runs_channels_last(model: nn.Module, example: Tensor) -> bool:
    """Whether the network runs in that memory layout. `example`: (N, C, H, W), on any device."""
    parameter = next(model.parameters(), None)
    images = example.to(parameter.device if parameter is not None else "cpu")
    try:
        with _evaluating(model), torch.inference_mode():
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def evaluate(model: nn.Module, images: LabelledImages, batch_size: int = 64, *, task: Task = CLASSIFICATION) -> float:
    """The task's accuracy in [0, 1]: top-1 unless told."""
    return task.accuracy(logits(model, images, batch_size), images.labels)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Module by module: a network may hold frozen batch norms in another mode than the rest.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
