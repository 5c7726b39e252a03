"""The task of single-shot detectors: SSD's loss (Liu et al. 2016, section 2.2) and what is detected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from amc_mobile.errors import InvalidInput
from amc_mobile.models.detection_boxes import corners, decoded, encoded, overlaps, suppressed
from amc_mobile.models.mean_average_precision import Detections, matched, mean_average_precision

MATCHING_OVERLAP = 0.5  # from here on an anchor stands for an object
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
        wanted = (1, len(self.anchors), 1 + self.classes + 4)
        if tuple(outputs.shape) != wanted:
            raise InvalidInput(f"the detector gives {tuple(outputs.shape)}, its anchors and classes ask for {wanted}")
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
        wanted, boxes = self.matching(labels)
        is_matched = wanted > 0
        entropy = functional.cross_entropy(
            logits.transpose(1, 2), wanted, label_smoothing=label_smoothing, reduction="none"
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

        An anchor stands for the object that it overlaps most, by at least one half. The anchor that overlaps an object
        most stands for it however little that is; where it is the best of two objects, for the one it overlaps more.
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
            sure = found.at_least(SURE_SCORE)
            answers.append(len(sure.scores) == len(objects) and bool(matched(sure, objects).all()))
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
