"""A data set made by a function in the user's own file."""

from __future__ import annotations

import inspect
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
)
from amc_mobile.errors import AmcMobileError, InvalidInput
from amc_mobile.user_file import load_function


def load(
    spec: str,
    *,
    image_size: int | None,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Dataset:
    """Calls the function `spec` names, with `image_size` if it takes one; it returns (train, test) or a Dataset,
    which can also say what its accuracies are on.

    Each of the two is an ImageSet, a pair (images, labels) of arrays, or a sequence of (image, label) such as a
    torch Dataset; an image is a PIL image, an (H, W, C) uint8 array or a (C, H, W) tensor. Floating-point images
    are taken as normalised already; uint8 images get `normalisation`, or ImageNet's. For detectors the labels of a pair
    are boxes, (N, objects, 5) as in an ImageSet.
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
    train, test = (_image_set(spec, part, image_size, normalisation) for part in result)
    named = getattr(result[0], "classes", None)
    count = 1 + max(int(part.classes.max()) for part in (train, test) if len(part)) if len(train) else 0
    classes = tuple(str(name) for name in named) if named is not None else tuple(str(i) for i in range(count))
    return Dataset(train, test, classes, spec)


def _image_set(
    spec: str, part: Any, image_size: int | None, normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> ImageSet:
    if isinstance(part, ImageSet):
        return part
    if isinstance(part, tuple) and len(part) == 2 and hasattr(part[0], "shape"):
        images, labels = torch.as_tensor(part[0]), torch.as_tensor(part[1])
        labels = labels.float() if labels.ndim == 3 else labels.reshape(-1).long()
    else:
        images, labels = _collected(spec, part)
    if images.dtype != torch.uint8:
        images = images.to(torch.float32)
    if images.ndim != 4:
        raise InvalidInput(f"{spec}: images must be (N, C, H, W), got {tuple(images.shape)}")
    if image_size is not None:
        images = resized(images, image_size)
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
