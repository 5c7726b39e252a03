"""Boxes of detectors: SSD's anchors, their encoding, overlaps and non-maximum suppression.

Boxes are (x1, y1, x2, y2) in shares of the image's sides; `centred` ones are (cx, cy, width, height).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
