"""Labelled images, in memory or in files: what every data source gives."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from amc_mobile.errors import InvalidInput

LOG = logging.getLogger(__name__)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation per channel, for pixels in 0..1
Decode = Callable[[str], NDArray[np.uint8]]


class FileImages:
    """Indexed like a (N, C, H, W) uint8 tensor; each use decodes anew, so that no more than a batch is in memory.

    `decode`: a file's name -> (C, H, W), called from `workers` threads at once: decoding JPEG holds no lock.
    `identity`: what tells these files from others, e.g. their sizes.
    """

    dtype = torch.uint8

    def __init__(
        self, names: Sequence[str], decode: Decode, shape: tuple[int, int, int], *, workers: int, identity: str
    ) -> None:
        self._names, self._decode, self._identity = tuple(names), decode, identity
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.threads = workers
        self.shape = torch.Size((len(self._names), *shape))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, select: slice | Tensor) -> Tensor:
        """The selected images, decoded. Raises what `decode` does for a broken file."""
        names = self._selected(select)
        images = torch.empty((len(names), *self.shape[1:]), dtype=self.dtype)
        for place, decoded in zip(images, self._workers.map(self._decode, names), strict=True):
            place.copy_(torch.from_numpy(decoded))
        return images

    def subset(self, index: Tensor) -> FileImages:
        """The images at `index`, still in their files."""
        shape = (self.shape[1], self.shape[2], self.shape[3])
        return FileImages(self._selected(index), self._decode, shape, workers=self.threads, identity=self._identity)

    def fingerprint(self) -> bytes:
        """Of the files' names and `identity`: reading every pixel would take as long as an epoch."""
        return hashlib.sha256("\0".join((self._identity, *self._names)).encode()).digest()

    def _selected(self, select: slice | Tensor) -> list[str]:
        if isinstance(select, slice):
            return list(self._names[select])
        return [self._names[int(i)] for i in select]


# The evaluation habit of ImageNet nets: the shorter side to 256, then the middle 224x224.
RESIZE_TO_CROP = 256 / 224
RESIZE_BATCH = 256  # resizing goes through float32; this many images at a time keep that small


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels, kept as stored and normalised batch by batch.

    `images`: (N, C, H, W), uint8 in 0..255 or float32 in the scale of `mean` and `std`, or files to decode; several
    inputs lie behind each other in (N, numbers, 1, 1);
    `labels`: (N,) int64, or (N, objects, 5) float32 for detectors: class and corners x1, y1, x2, y2 in shares of the
    sides, class -1 where an image has fewer objects; `mean`, `std`: (C,) float32, for pixel values in 0..1 (uint8 is
    divided by 255 first). `mirrors`: whether a mirrored image keeps its label, so that training may flip it (not so
    for digits).
    """

    images: Tensor | FileImages
    labels: Tensor
    mean: Tensor
    std: Tensor
    mirrors: bool = True

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise InvalidInput(f"images must be (N, C, H, W) uint8 or float32, got {shape} {self.images.dtype}")
        found, is_int = tuple(self.labels.shape), self.labels.dtype == torch.int64
        if found[:1] != shape[:1] or not ((len(found) == 1 and is_int) or len(found) > 1):
            raise InvalidInput(
                f"labels must be ({shape[0]},) int64, or ({shape[0]}, ...) for detectors and tasks of one's own, "
                f"got {found} {self.labels.dtype}"
            )
        if not self.mean.shape == self.std.shape == (shape[1],):
            raise InvalidInput(
                f"mean and std must have {shape[1]} values, one per channel, got {len(self.mean)} and {len(self.std)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_boxes(self) -> bool:
        return self.labels.ndim == 3 and self.labels.shape[2] == 5 and self.labels.is_floating_point()

    @property
    def classes(self) -> Tensor:
        """(N,) int64, or (N, objects) of images with boxes; zeros for labels of another kind."""
        if self.has_boxes:
            return self.labels[..., 0].long()
        return self.labels if self.labels.ndim == 1 else torch.zeros(len(self), dtype=torch.int64)

    def normalised(self, select: slice | Tensor | Sequence[int] = slice(None)) -> Tensor:
        """The selected images as float32 (N, C, H, W), channels last in memory, ready for the network."""
        chosen = self.images[select if isinstance(select, slice) else torch.as_tensor(select, dtype=torch.int64)]
        return self.normalise(chosen)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalises images of this set's data type and channels, on their own device."""
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean = (self.mean * scale).to(images.device)[:, None, None]
        std = (self.std * scale).to(images.device)[:, None, None]
        batch = images.to(torch.float32).contiguous(memory_format=torch.channels_last)
        return batch.sub_(mean).div_(std) if batch is not images else (batch - mean) / std

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at `indices`, in that order, copied; those in files stay there."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images.subset(index) if isinstance(self.images, FileImages) else self.images[index]
        return replace(self, images=images, labels=self.labels[index])

    def in_memory(self) -> ImageSet:
        """The same set, its files decoded."""
        return replace(self, images=self.images[:]) if isinstance(self.images, FileImages) else self

    def fingerprint(self) -> str:
        """SHA-256 over everything that a network sees of this set: equal for equal data only."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype} {self.mirrors}".encode())
        if isinstance(self.images, FileImages):
            digest.update(self.images.fingerprint())
        tensors = (self.labels, self.mean, self.std)
        for tensor in tensors if isinstance(self.images, FileImages) else (self.images, *tensors):
            digest.update(tensor.contiguous().numpy().data)  # as it lies in memory, not a copy
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set and a test set with the same classes; `spec` is the text it was loaded by.

    `accuracy_on`: what every accuracy on the test set is said to be on. "training images" where a network with
    published weights has seen them. `resized_from`: height and width that the images had before, where they had one.
    `input_shapes`: of several inputs that lie behind each other in the images, (C, H, W) each. `resize`: how images
    are brought to their size, "stretch" or "crop" (shorter side to RESIZE_TO_CROP of the size, then the middle); "": as
    the user's own code does it.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    spec: str
    accuracy_on: str = "test images"
    resized_from: tuple[int, int] | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    resize: str = ""

    def __post_init__(self) -> None:
        for name, images in (("training", self.train), ("test", self.test)):
            if len(images) == 0:
                raise InvalidInput(f"the {name} set of {self.spec!r} is empty")
            low, high = int(images.classes.min()), int(images.classes.max())
            if low < (-1 if images.has_boxes else 0) or high >= len(self.classes):
                raise InvalidInput(
                    f"the {name} set of {self.spec!r} has labels {low} to {high} for {len(self.classes)} classes"
                )
        only = set(self.train.classes.flatten().tolist()) - {-1}
        if len(only) == 1 and self.train.labels.ndim == 1:
            LOG.warning(
                "warning: all %d training images of %s are of class %s: no accuracy tells anything.",
                len(self.train), self.spec, self.classes[only.pop()],
            )  # fmt: skip
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise InvalidInput(
                f"training images of {self.spec!r} are {tuple(self.train.images.shape[1:])}, "
                f"test images {tuple(self.test.images.shape[1:])}"
            )

    @property
    def num_classes(self) -> int | None:
        """None where the labels are no classes."""
        return len(self.classes) if self.train.labels.ndim == 1 or self.train.has_boxes else None

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(1, C, H, W)"""
        channels, height, width = self.train.images.shape[1:]
        return (1, channels, height, width)


def resized(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) images as (N, C, size, size), bilinear, antialiased when made smaller; the data type is kept."""
    if images.shape[2:] == (size, size):
        return images
    out = torch.empty((*images.shape[:2], size, size), dtype=images.dtype)
    for start in range(0, len(images), RESIZE_BATCH):
        batch = images[start : start + RESIZE_BATCH].float()
        batch = functional.interpolate(batch, (size, size), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + RESIZE_BATCH] = (
            batch.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else batch
        )
    return out


def with_channels(images: Tensor, channels: int) -> Tensor:
    """(N, C, H, W) images with 1 or 3 channels: grey repeated, colour weighted to luma (ITU-R BT.601)."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1:
        return images.repeat(1, channels, 1, 1)
    if have == 3 and channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114])
        grey = torch.einsum("nchw,c->nhw", images.float(), weights)[:, None]
        return grey.round().to(torch.uint8) if images.dtype == torch.uint8 else grey
    raise InvalidInput(f"images with {have} channels cannot be given as {channels} channels")


def normalisation_tensors(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[Tensor, Tensor]:
    """(C,) mean and std; where the images have no three channels, every channel gets the average of the values.

    Raises InvalidInput for other lengths and for a standard deviation that is not above 0.
    """
    if min(std, default=0.0) <= 0:
        raise InvalidInput(f"the standard deviation must be above 0, got {tuple(std)}")
    result = []
    for values in (mean, std):
        if len(values) == channels:
            result.append(torch.tensor(values, dtype=torch.float32))
        elif channels != 3 or len(values) == 1:
            result.append(torch.full((channels,), sum(values) / len(values), dtype=torch.float32))
        else:
            raise InvalidInput(f"{len(values)} values to normalise {channels} channels with")
    return result[0], result[1]
