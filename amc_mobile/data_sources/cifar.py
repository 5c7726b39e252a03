"""CIFAR-10 from an .npz file or from the folder of its binary version."""

from __future__ import annotations

import zipfile
from pathlib import Path

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
from amc_mobile.errors import CorruptFile, InvalidInput

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY_RECORD_BYTES = 1 + 3 * 32 * 32  # label, then red, green and blue planes
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load(
    spec: str,
    path: Path,
    *,
    image_size: int | None,
    channels: int,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Dataset:
    """`path`: an .npz file with x_train, y_train, x_test, y_test (images NHWC uint8) and perhaps `classes`; a
    folder with one such file; or the folder of the binary version (data_batch_*.bin, test_batch.bin).

    Without `normalisation` the images get ImageNet's mean and deviation, as the public pretrained nets expect.
    """
    classes, (train, train_labels), (test, test_labels) = _read(path)
    mean, std = normalisation_tensors(*(normalisation or (IMAGENET_MEAN, IMAGENET_STD)), channels)

    def image_set(images: Tensor, labels: Tensor) -> ImageSet:
        if image_size is not None:
            images = resized(images, image_size)
        return ImageSet(with_channels(images, channels), labels, mean, std)

    height, width = train.shape[2:]
    return Dataset(
        image_set(train, train_labels), image_set(test, test_labels), classes, spec, resized_from=(height, width)
    )


Part = tuple[Tensor, Tensor]


def _read(path: Path) -> tuple[tuple[str, ...], Part, Part]:
    if path.is_file() and path.suffix == ".npz":
        return _read_npz(path)
    if not path.is_dir():
        raise InvalidInput(f"no CIFAR-10 at {path}", next_step="give an .npz file or a folder: cifar10:PATH")
    for folder in (path, path / "cifar-10-batches-bin"):
        train = sorted(folder.glob("data_batch_*.bin"))
        if train and (folder / "test_batch.bin").is_file():
            return CLASSES, _read_binary(train), _read_binary([folder / "test_batch.bin"])
    archives = sorted(path.glob("*.npz"))
    if len(archives) == 1:
        return _read_npz(archives[0])
    if list(path.glob("data_batch_*")) or (path / "cifar-10-batches-py").is_dir():
        raise InvalidInput(
            f"{path} holds CIFAR-10's Python version, which is pickled and could run any code",
            next_step="use the binary version (cifar-10-binary.tar.gz, unpacked) or an .npz file",
        )
    raise InvalidInput(
        f"{path} holds neither one .npz file nor data_batch_*.bin and test_batch.bin", next_step="give cifar10:PATH"
    )


def _read_npz(path: Path) -> tuple[tuple[str, ...], Part, Part]:
    try:
        # Opened here, because np.load leaves its file open when the content is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFile(path, f"not an .npz file of plain arrays ({error})") from error
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise InvalidInput(f"{path} has no {', '.join(missing)}; it has {', '.join(arrays)}")
    parts = []
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"].reshape(-1)
        if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
            raise InvalidInput(f"x_{part} of {path} must be (N, H, W, 3) uint8, got {images.shape} {images.dtype}")
        planes = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        parts.append((planes, torch.from_numpy(labels.astype(np.int64))))
    classes = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else CLASSES
    return classes, parts[0], parts[1]


def _read_binary(paths: list[Path]) -> Part:
    records = []
    for path in paths:
        content = np.fromfile(path, dtype=np.uint8)
        if content.size == 0 or content.size % BINARY_RECORD_BYTES:
            raise CorruptFile(path, f"{content.size} bytes are no whole number of {BINARY_RECORD_BYTES}-byte records")
        records.append(content.reshape(-1, BINARY_RECORD_BYTES))
    every = np.concatenate(records)
    images = every[:, 1:].reshape(-1, 3, 32, 32).copy()
    return torch.from_numpy(images), torch.from_numpy(every[:, 0].astype(np.int64))
