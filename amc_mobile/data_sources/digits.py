"""scikit-learn's handwritten digits: 1,797 grey 8x8 images in ten classes, no download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from amc_mobile.data_sources.images import Dataset, ImageSet, normalisation_tensors, resized, with_channels

DEFAULT_SIZE = 32
TEST_SHARE = 0.2

# Of the pixels (0..1) of all images at 32x32.
MEAN, STD = (0.305,), (0.323,)


def load(
    spec: str,
    *,
    image_size: int | None,
    channels: int,
    seed: int,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Dataset:
    """A fifth of the images, drawn by `seed`, is the test set."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None].mul(255 / 16).round().to(torch.uint8)
    images = with_channels(resized(images, image_size or DEFAULT_SIZE), channels)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    mean, std = normalisation_tensors(*(normalisation or (MEAN, STD)), channels)
    every = ImageSet(images, labels, mean, std, mirrors=False)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    tests = round(TEST_SHARE * len(every))
    return Dataset(
        every.subset(order[tests:].sort().values),
        every.subset(order[:tests].sort().values),
        tuple(str(digit) for digit in range(10)),
        spec,
        resized_from=(DEFAULT_SIZE, DEFAULT_SIZE),
    )
