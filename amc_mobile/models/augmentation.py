"""Random shifts and mirroring of whole batches, as one indexing step on the stored pixels."""

from __future__ import annotations

import torch
from torch import Tensor

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
