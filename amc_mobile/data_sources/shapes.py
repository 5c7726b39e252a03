"""Drawn images for detectors: one to three coloured shapes on noise with their boxes, built in."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from amc_mobile.data_sources.images import Dataset, ImageSet, normalisation_tensors, with_channels

CLASSES = ("rectangle", "ellipse", "triangle")
DEFAULT_SIZE = 64
TRAINING_IMAGES, TEST_IMAGES = 2000, 400
MOST_OBJECTS = 3
SMALLEST, LARGEST = 0.2, 0.6  # of the image's side
MOST_HIDDEN = 0.15  # of a box's area by another one, so that every shape can be told


def load(
    spec: str,
    *,
    image_size: int | None,
    channels: int,
    seed: int,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Dataset:
    """`seed` decides the test images; the training images are always the same."""
    size = image_size or DEFAULT_SIZE
    mean, std = normalisation_tensors(*(normalisation or ((0.5,), (0.25,))), channels)

    def image_set(count: int, entropy: tuple[int, ...]) -> ImageSet:
        rng = np.random.default_rng(entropy)
        images = np.empty((count, 3, size, size), dtype=np.uint8)
        labels = np.full((count, MOST_OBJECTS, 5), (-1, 0, 0, 0, 0), dtype=np.float32)
        for image, objects in zip(images, labels, strict=True):
            _draw(image, objects, rng)
        return ImageSet(with_channels(torch.from_numpy(images), channels), torch.from_numpy(labels), mean, std)

    return Dataset(image_set(TRAINING_IMAGES, (0,)), image_set(TEST_IMAGES, (1, seed)), CLASSES, spec)


def _draw(image: NDArray[np.uint8], objects: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Fills `image` (3, size, size) and as many rows of `objects` as there is room for, at least one."""
    size = image.shape[1]
    background = rng.uniform(0, 255, 3)
    canvas = background[:, None, None] + rng.normal(0, 25, image.shape)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    drawn = 0
    for _ in range(int(rng.integers(1, len(objects) + 1))):
        width, height = rng.uniform(SMALLEST, LARGEST, 2)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        box = np.array([left, top, left + width, top + height])
        if any(_hidden(box, other[1:]) > MOST_HIDDEN for other in objects[:drawn]):
            continue
        kind = int(rng.integers(len(CLASSES)))
        across, down = (x - left) / width, (y - top) / height
        inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
        if CLASSES[kind] == "ellipse":
            inside &= (across - 0.5) ** 2 + (down - 0.5) ** 2 <= 0.25
        elif CLASSES[kind] == "triangle":  # its tip in the middle of the upper side
            inside &= np.abs(across - 0.5) <= down / 2
        colour = (background + rng.uniform(70, 186, 3)) % 256  # apart from the background in every channel
        canvas[:, inside] = colour[:, None] + rng.normal(0, 15, (3, int(inside.sum())))
        objects[drawn] = (kind, *box)
        drawn += 1
    image[:] = canvas.clip(0, 255)


def _hidden(box: NDArray[np.float64], other: NDArray[np.float32]) -> float:
    """The shared area over the smaller box's."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / float(min(np.prod(b[2:] - b[:2]) for b in (box, other)))
