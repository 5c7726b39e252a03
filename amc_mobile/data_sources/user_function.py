"""A data set made by a function in the user's own file."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc_mobile.data_sources.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Dataset,
    ImageSet,
    normalisation_tensors,
    resized,
    with_channels,
)
from amc_mobile.errors import AmcMobileError, InvalidInput
from amc_mobile.user_file import load_function

LOG = logging.getLogger(__name__)
MOST_COLOURS = 4  # channels of an image whose channels come last: grey, grey and alpha, RGB, RGBA
LARGEST_NORMALISED = 30.0  # deviations from the mean; pixels from 0 to 255 go beyond


def load(
    spec: str,
    *,
    image_size: int | None,
    channels: int | None,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Dataset:
    """Calls the function `spec` names, with `image_size` if it takes one; it returns (train, test) or a Dataset,
    which can also say what its accuracies are on.

    Each of the two is an ImageSet, a pair (images, labels) of arrays, or a sequence of (image, label) such as a
    torch Dataset; an image is a PIL image, an (H, W, C) uint8 array or a (C, H, W) tensor. Arrays of images are
    (N, C, H, W), or (N, H, W, C) with up to four channels, or (N, H, W) in grey. Floating-point images are taken as
    normalised already; uint8 images get `normalisation`, or ImageNet's. For detectors the labels of a pair are boxes,
    (N, objects, 5) as in an ImageSet; for a task of the user's own they are (N, ...) numbers.
    A network with several inputs gets them as a tuple of arrays in place of the images: ((first, second), labels).
    `channels`: what the network takes, 1 or 3; None: what the images have.
    """
    function = load_function(spec)
    accepts_size = "image_size" in inspect.signature(function).parameters
    try:
        result = function(image_size=image_size) if accepts_size and image_size is not None else function()
    except AmcMobileError:
        raise
    except Exception as error:
        raise InvalidInput(f"{spec} failed: {type(error).__name__}: {error}") from error
    if isinstance(result, Dataset):
        return replace(result, spec=spec)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise InvalidInput(f"{spec} must return (train, test) or a Dataset, it returned a {type(result).__name__}")
    if all(isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], tuple) for part in result):
        return _several_inputs(spec, result, normalisation)
    parts = [_collected_or_given(spec, part) for part in result]
    before = parts[0][0].shape[2:] if isinstance(parts[0], tuple) else parts[0].images.shape[2:]
    train, test = (_image_set(part, image_size, channels, normalisation) for part in parts)
    named = getattr(result[0], "classes", None)
    count = 1 + max(int(part.classes.max()) for part in (train, test) if len(part)) if len(train) else 0
    classes = tuple(str(name) for name in named) if named is not None else tuple(str(i) for i in range(count))
    return Dataset(train, test, classes, spec, resized_from=(int(before[0]), int(before[1])))


def _collected_or_given(spec: str, part: Any) -> ImageSet | tuple[Tensor, Tensor]:
    """An ImageSet as it is; of anything else the images, (N, C, H, W) uint8 or float32, and the labels."""
    if isinstance(part, ImageSet):
        return part
    if isinstance(part, tuple) and len(part) == 2 and hasattr(part[0], "shape"):
        images, labels = _tensor(spec, part[0]), _labels(spec, part[1])
    else:
        images, labels = _collected(spec, part)
    if images.dtype != torch.uint8:
        images = images.to(torch.float32)
        if len(images) and images.min() >= 0 and images.max() > LARGEST_NORMALISED:
            LOG.warning(
                "warning: %s gives floating-point images with values from %g to %g, and those are taken as normalised "
                "already. Give uint8 for pixels, or subtract their mean and divide by their deviation.",
                spec, float(images.min()), float(images.max()),
            )  # fmt: skip
    return _channels_first(spec, images), labels


def _tensor(spec: str, given: Any) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"{spec}: its images are no array of numbers ({error})",
            next_step="return (images, labels) with images of one size: (N, C, H, W), uint8 or float32",
        ) from error


def _labels(spec: str, given: Any) -> Tensor:
    """(N,) int64 of whole numbers, else (N, ...) float32 or int64."""
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = ", ".join(repr(str(label)) for label in given[:3])
        raise InvalidInput(
            f"{spec}: labels must be numbers of classes, it returned {shown} ...",
            next_step="number them: names = sorted(set(labels)); labels = [names.index(label) for label in labels]",
        ) from error
    labels = labels.float() if labels.is_floating_point() else labels.long()
    if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
        return labels[:, 0]
    if labels.ndim == 1 and labels.is_floating_point():
        return labels.long() if bool((labels == labels.round()).all()) else labels[:, None]
    return labels


def _several_inputs(
    spec: str, parts: Sequence[Any], normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> Dataset:
    """Every input normalised, behind each other."""
    sets, shapes = [], []
    for inputs, given in parts:
        chosen = [_collected_or_given(spec, (one, given)) for one in inputs]
        normalised = [_image_set(part, None, None, normalisation).normalised() for part in chosen]
        shapes.append(tuple(tuple(one.shape[1:]) for one in normalised))
        packed = torch.cat([one.flatten(1) for one in normalised], 1)[:, :, None, None]
        plain = torch.zeros(packed.shape[1]), torch.ones(packed.shape[1])
        sets.append(ImageSet(packed, _labels(spec, given), *plain, mirrors=False))
    count = 1 + max(int(part.classes.max()) for part in sets)
    return Dataset(sets[0], sets[1], tuple(str(i) for i in range(count)), spec, input_shapes=shapes[0])


def _channels_first(spec: str, images: Tensor) -> Tensor:
    """(N, C, H, W) of images in one of the usual arrangements. Raises InvalidInput where that is not clear."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise InvalidInput(f"{spec}: images must be (N, C, H, W), got {tuple(images.shape)}")
    _, first, second, last = images.shape
    if first > MOST_COLOURS >= last:
        return images.permute(0, 3, 1, 2).contiguous()
    if first == second != last and first > last:
        raise InvalidInput(
            f"{spec}: images of shape {tuple(images.shape)} look like (N, H, W, C) with {last} channels",
            next_step="return (N, C, H, W): images.transpose(0, 3, 1, 2)",
        )
    return images


def _image_set(
    part: ImageSet | tuple[Tensor, Tensor],
    image_size: int | None,
    channels: int | None,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> ImageSet:
    if isinstance(part, ImageSet):
        return part
    images, labels = part
    if image_size is not None:
        images = resized(images, image_size)
    if channels is not None:
        images = with_channels(images, channels)
    plain = ((0.0,), (1.0,))
    chosen = plain if images.dtype == torch.float32 else normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = normalisation_tensors(*chosen, images.shape[1])
    return ImageSet(images, labels, mean, std)


def _collected(spec: str, part: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    try:
        # By index, not by iterating: a torch Dataset without __iter__ need not raise IndexError at its end.
        for index in range(len(part)):
            image, label = part[index]
            images.append(_one_image(image))
            labels.append(int(label))
        return torch.stack(images), torch.tensor(labels, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise InvalidInput(
            f"{spec}: not a sequence of (image, label) with images of one size ({error})",
            next_step="return (train, test), each a list or torch Dataset of (image, label)",
        ) from error


def _one_image(image: Any) -> Tensor:
    """(C, H, W), from a tensor of that shape or anything numpy reads as (H, W) or (H, W, C)."""
    if isinstance(image, Tensor):
        return image
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
