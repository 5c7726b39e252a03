"""What networks are trained and judged by: classification, detection, or the user's own functions.

Boxes are (x1, y1, x2, y2) in shares of the image's sides; `centred` ones are (cx, cy, width, height).

A network without an attribute `task` classifies. One that does something else holds its task under that name, which
`load_model` takes; training, searching, fine-tuning and exporting then follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
        """Default for training from scratch, at its highest."""

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
        """Whether the outputs are no better than those of random weights. False where that is unknown."""


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
        """At most three standard errors above the share that guessing gets right."""
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
        errors = [(output - target).square().mean() / target.var().clamp_min(1e-6) for output, target in pairs]
        return torch.stack(errors).mean()

    def augmented(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator, *, mirrors: bool
    ) -> tuple[Tensor, Tensor]:
        """As they are: a shift may change the labels in any way."""
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


# Single-shot detectors: SSD's anchors and loss (Liu et al. 2016, section 2.2), and what is detected.
ASPECT_RATIOS = (1.0, 2.0, 0.5)  # width over height; one more square lies between two scales
LOWEST_SCALE, HIGHEST_SCALE = 0.2, 0.95  # of the image's side, from the first map to the last
# What an offset of 1 means: SSD's variances, which bring the offsets of matched boxes to a like spread.
VARIANCES = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class SsdAnchors:
    """Liu et al. 2016, section 2.2. `map_sizes`: sides of the feature maps, largest first."""

    map_sizes: tuple[int, ...]

    def boxes(self) -> Tensor:
        """(anchors, 4), centred: map by map, then row by row, column by column, shape by shape."""
        count = len(self.map_sizes)
        step = (HIGHEST_SCALE - LOWEST_SCALE) / max(count - 1, 1)
        scales = [LOWEST_SCALE + step * k for k in range(count)] + [1.0]
        every = []
        for k, side in enumerate(self.map_sizes):
            shapes = [(scales[k] * math.sqrt(r), scales[k] / math.sqrt(r)) for r in ASPECT_RATIOS]
            shapes.append((math.sqrt(scales[k] * scales[k + 1]),) * 2)
            middles = (torch.arange(side) + 0.5) / side
            y, x = torch.meshgrid(middles, middles, indexing="ij")
            centres = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).expand(-1, len(shapes), 2)
            every.append(torch.cat([centres, torch.tensor(shapes).expand_as(centres)], dim=2).reshape(-1, 4))
        return torch.cat(every)


def corners(centred: Tensor) -> Tensor:
    """(..., 4) centred boxes as (x1, y1, x2, y2)."""
    middle, size = centred[..., :2], centred[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)


def encoded(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(..., 4) offsets that `decoded` turns back into `boxes`. `anchors`: centred."""
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-6)
    shift, growth = (middle - anchors[..., :2]) / anchors[..., 2:], (size / anchors[..., 2:]).log()
    return torch.cat([shift, growth], dim=-1) / boxes.new_tensor(VARIANCES)


def decoded(offsets: Tensor, anchors: Tensor) -> Tensor:
    """(..., 4) boxes of a network's `offsets` from its centred `anchors`, cut off at the image's borders."""
    offsets = offsets * offsets.new_tensor(VARIANCES)
    # An untrained network may ask for any size: 4 is beyond what an image holds, and keeps the exponential finite.
    size = offsets[..., 2:].clamp(max=4).exp() * anchors[..., 2:]
    middle = offsets[..., :2] * anchors[..., 2:] + anchors[..., :2]
    return corners(torch.cat([middle, size], dim=-1)).clamp(0, 1)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """(A, B) intersection over union of (A, 4) and (B, 4) boxes; 0 for boxes without an area."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None, :] - shared).clamp_min(1e-9)


def suppressed(boxes: Tensor, classes: Tensor, most_overlap: float) -> Tensor:
    """Positions that non-maximum suppression keeps. `boxes` (N, 4), best first; `classes` (N,) suppress their own."""
    rivals = (overlaps(boxes, boxes) > most_overlap) & (classes[:, None] == classes[None, :])
    rows = rivals.tolist()
    kept: list[int] = []
    for candidate in range(len(rows)):
        if not any(rows[candidate][better] for better in kept):
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64)


LEAST_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, best first. `boxes` (D, 4) as corners, `classes` (D,) int64, `scores` (D,)."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor


def matched(found: Detections, objects: Tensor) -> Tensor:
    """(D,) bool: which detections are right. `objects`: (O, 5) class and corners of what is in the image.

    A detection counts for the object of its class that it overlaps most, by at least one half; the second one for the
    same object is wrong.
    """
    hits = torch.zeros(len(found.scores), dtype=torch.bool)
    if len(objects) == 0 or len(hits) == 0:
        return hits
    shared = overlaps(found.boxes, objects[:, 1:])
    shared[found.classes[:, None] != objects[None, :, 0].long()] = 0.0
    best, which = shared.max(dim=1)
    taken: set[int] = set()
    for position, (overlap, number) in enumerate(zip(best.tolist(), which.tolist(), strict=True)):
        if overlap >= LEAST_OVERLAP and number not in taken:
            taken.add(number)
            hits[position] = True
    return hits


def average_precision(hits: Tensor, scores: Tensor, objects: int) -> float:
    """Area under precision over recall of one class, the precision made falling first (all-point interpolation).

    `hits` (D,) bool, `scores` (D,): detections in any order; `objects`: how many there were to find, at least 1.
    """
    right = hits[scores.argsort(descending=True, stable=True)].double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    highest_later = precision.flip(0).cummax(0).values.flip(0)
    return float((highest_later * right).sum() / objects)


def mean_average_precision(found: Sequence[Detections], objects: Sequence[Tensor]) -> float:
    """In [0, 1]: the mean over the classes that occur. `objects`: for each image (O, 5), class and corners."""
    hits = torch.cat([matched(f, o) for f, o in zip(found, objects, strict=True)])
    scores, classes = torch.cat([f.scores for f in found]), torch.cat([f.classes for f in found])
    there = torch.cat([o[:, 0] for o in objects]).long()
    precisions = [
        average_precision(hits[classes == c], scores[classes == c], int((there == c).sum()))
        for c in sorted(set(there.tolist()))
    ]
    return sum(precisions) / max(len(precisions), 1)


MATCHING_OVERLAP = 0.5  # from here on an anchor is matched to an object
NEGATIVES = 3  # background anchors in the loss for each matched one: the hardest
SUPPRESSING_OVERLAP = 0.45
CHANCE = 0.005  # mean average precision of random weights
LEAST_SCORE = 0.01
MOST_DETECTIONS = 100  # candidates of an image before suppression
SURE_SCORE = 0.5  # what a user of the detector would be shown


@dataclass(frozen=True, eq=False)
class Detection:
    """Outputs (N, anchors, 1 + classes + 4): class logits, background first, then offsets from the anchors.

    Labels (N, objects, 5) float32: class, x1, y1, x2, y2 in shares of the sides; class -1 where there is no object.
    `anchors`: (anchors, 4), centred.
    """

    anchors: Tensor
    classes: int

    metric = "mAP@0.5"
    of_single_images = False
    learning_rate = 0.01  # the loss adds up an image's anchors: three times as much already learns far less

    def num_classes(self, outputs: Tensor) -> int:
        expected = (1, len(self.anchors), 1 + self.classes + 4)
        if tuple(outputs.shape) != expected:
            raise InvalidInput(f"the detector gives {tuple(outputs.shape)}, its anchors and classes ask for {expected}")
        return self.classes

    def check_labels(self, labels: Tensor) -> None:
        if labels.ndim == 3 and (labels.shape[2] != 5 or not labels.is_floating_point()):
            raise InvalidInput(
                f"labels of shape {tuple(labels.shape)} {labels.dtype} are no boxes",
                next_step="give (N, objects, 5) float32: class, x1, y1, x2, y2 in shares of the sides",
            )
        if labels.ndim != 3:
            raise InvalidInput(
                "the network detects objects, and the labels of the data set are classes of whole images",
                next_step="use --data shapes, or a loader whose labels are (N, objects, 5): class and box",
            )

    def loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross entropy of matched anchors and of the hardest others, plus smooth L1 of the matched ones' offsets."""
        logits, offsets = outputs[..., : 1 + self.classes], outputs[..., 1 + self.classes :]
        classes, boxes = self.matching(labels)
        is_matched = classes > 0
        entropy = functional.cross_entropy(
            logits.transpose(1, 2), classes, label_smoothing=label_smoothing, reduction="none"
        )
        hardness = entropy.detach().masked_fill(is_matched, -1.0)
        rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)
        is_hard = ~is_matched & (rank < NEGATIVES * is_matched.sum(dim=1, keepdim=True))
        anchors = self.anchors.to(outputs.device).expand_as(boxes)
        away = functional.smooth_l1_loss(
            offsets[is_matched], encoded(boxes[is_matched], anchors[is_matched]), reduction="sum"
        )
        return (entropy[is_matched | is_hard].sum() + away) / is_matched.sum().clamp_min(1)

    def matching(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """For each anchor its class, (N, anchors) int64 with 0 for background, and its object's box.

        An anchor is matched to the object that it overlaps most, by at least one half. The anchor that overlaps an
        object most is matched to it however little that is; of two such objects, to the one it overlaps more.
        """
        images, objects = labels.shape[:2]
        anchors = corners(self.anchors.to(labels.device))
        shared = (
            overlaps(anchors, labels[..., 1:].reshape(-1, 4)).reshape(len(anchors), images, objects).transpose(0, 1)
        )
        is_object = labels[..., 0] >= 0
        shared = shared.masked_fill(~is_object[:, None, :], -1.0)
        is_best = torch.zeros_like(shared).scatter_(1, shared.argmax(dim=1, keepdim=True), 1.0)
        shared = shared + is_best * is_object[:, None, :]
        overlap, which = shared.max(dim=2)
        classes = labels[..., 0].gather(1, which).long() + 1
        boxes = labels[..., 1:].gather(1, which[..., None].expand(-1, -1, 4))
        return torch.where(overlap >= MATCHING_OVERLAP, classes, 0), boxes

    def distillation_loss(self, outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """KL divergence of softened classes, and L1 of offsets where the teacher sees an object.

        Both are divided by the anchors that the teacher calls objects, as SSD's loss is by the matched ones.
        """
        split = 1 + self.classes
        log_targets = (targets[..., :split] / temperature).log_softmax(dim=2)
        found = (outputs[..., :split] / temperature).log_softmax(dim=2)
        is_object = 1 - targets[..., :split].softmax(dim=2)[..., 0]
        divergence = functional.kl_div(found, log_targets, reduction="none", log_target=True).sum(dim=2)
        away = functional.smooth_l1_loss(outputs[..., split:], targets[..., split:], reduction="none").sum(dim=2)
        return (divergence * temperature**2 + away * is_object).sum() / is_object.sum().clamp_min(1.0)

    def augmented(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator, *, mirrors: bool
    ) -> tuple[Tensor, Tensor]:
        """Half of the images mirrored left-right, with their boxes, where the data set allows it."""
        flips = (torch.rand(len(pixels), generator=generator) < 0.5) & mirrors
        flipped = flips.to(labels.device)[:, None, None]
        mirrored = torch.stack([labels[..., i] for i in (0, 3, 2, 1, 4)], dim=-1)
        mirrored[..., [1, 3]] = 1 - mirrored[..., [1, 3]]
        return torch.where(flips[:, None, None, None], pixels.flip(3), pixels), torch.where(flipped, mirrored, labels)

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        """Mean average precision at an overlap of one half."""
        return mean_average_precision(self.detections(outputs), _objects(labels))

    def right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Every object found with a score of one half, and nothing else."""
        answers = []
        for found, objects in zip(self.detections(outputs), _objects(labels), strict=True):
            sure = found.scores >= SURE_SCORE
            shown = Detections(found.boxes[sure], found.classes[sure], found.scores[sure])
            answers.append(len(shown.scores) == len(objects) and bool(matched(shown, objects).all()))
        return torch.tensor(answers)

    def predicted_classes(self, outputs: Tensor) -> Tensor:
        """(N, anchors), 0 for background."""
        return outputs[..., : 1 + self.classes].argmax(dim=-1)

    def is_guessing(self, outputs: Tensor, labels: Tensor) -> bool:
        """Random boxes hardly ever overlap an object by half."""
        return self.accuracy(outputs, labels) < CHANCE

    def detections(self, outputs: Tensor) -> list[Detections]:
        """The objects of each image after non-maximum suppression, best first. `outputs` as the network gives them."""
        boxes = decoded(outputs[..., 1 + self.classes :], self.anchors)
        scores = outputs[..., : 1 + self.classes].softmax(dim=2)[..., 1:]
        return [self._of_image(b, s) for b, s in zip(boxes, scores, strict=True)]

    def _of_image(self, boxes: Tensor, scores: Tensor) -> Detections:
        best, place = scores.flatten().topk(min(MOST_DETECTIONS, scores.numel()))
        place = place[best >= LEAST_SCORE]
        best, anchor, classes = best[: len(place)], place // self.classes, place % self.classes
        kept = suppressed(boxes[anchor], classes, SUPPRESSING_OVERLAP)
        return Detections(boxes[anchor][kept], classes[kept], best[kept])


def _objects(labels: Tensor) -> list[Tensor]:
    return [image[image[:, 0] >= 0] for image in labels]


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


def evaluate(model: nn.Module, images: LabelledImages, *, task: Task = CLASSIFICATION) -> float:
    """The task's accuracy in [0, 1]."""
    return task.accuracy(logits(model, images), images.labels)


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
