"""Mean average precision at an overlap of one half, as the Pascal VOC challenge counts since 2010."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_mobile.models.detection_boxes import overlaps

LEAST_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, best first. `boxes` (D, 4) as corners, `classes` (D,) int64, `scores` (D,)."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor

    def at_least(self, score: float) -> Detections:
        sure = self.scores >= score
        return Detections(self.boxes[sure], self.classes[sure], self.scores[sure])


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
