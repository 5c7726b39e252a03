"""Images in a folder or a .zip file: train/CLASS/* and val/CLASS/*."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from amc_mobile.data_sources.file_images import FileImages
from amc_mobile.data_sources.images import IMAGENET_MEAN, IMAGENET_STD, Dataset, ImageSet, normalisation_tensors
from amc_mobile.errors import CorruptFile, InvalidInput

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")
LARGEST_DEFAULT_SIZE = 224
# The evaluation habit of ImageNet nets: the shorter side to 256, then the middle 224x224.
RESIZE_TO_CROP = 256 / 224
# Above this share of the memory the images would push everything else out.
MEMORY_SHARE = 0.5

LAYOUT = "train/CLASS/IMAGE and val/CLASS/IMAGE"


def load(
    spec: str,
    path: Path,
    *,
    image_size: int | None,
    channels: int,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
    workers: int = 0,
) -> Dataset:
    """Classes are the sorted folder names of train/. All images are decoded into memory; with `workers`, so many
    threads decode them whenever they are used.

    `image_size` None: the shorter side of the first training image, at most 224. An image whose shorter side
    differs is resized to 256/224 of `image_size` (shorter side), and the middle is cut out. Without
    `normalisation` the images get ImageNet's mean and deviation.
    """
    if channels not in (1, 3):
        raise InvalidInput(f"images can be read with 1 or 3 channels, not {channels}")
    with _opened(path) as files:
        train_files, test_files = _find_parts(path, files.names())
        classes = tuple(sorted({file.parent.name for file in train_files}))
        unknown = sorted({file.parent.name for file in test_files} - set(classes))
        if unknown:
            raise InvalidInput(f"{path}: classes in the validation images only: {', '.join(unknown[:5])}")
        size = image_size or min(min(_decoded(files, path, train_files[0], "RGB").size), LARGEST_DEFAULT_SIZE)
        mean, std = normalisation_tensors(*(normalisation or (IMAGENET_MEAN, IMAGENET_STD)), channels)
        if not workers:
            _refuse_more_than_memory(path, len(train_files) + len(test_files), channels * size * size)
        # A file of its own, which stays open as long as images may be asked for.
        source = _reopened(path) if workers else files

        def decode(name: str) -> NDArray[np.uint8]:
            image = fitted(_decoded(source, path, PurePosixPath(name), "RGB" if channels == 3 else "L"), size)
            return np.ascontiguousarray(np.array(image).reshape(size, size, channels).transpose(2, 0, 1))

        def image_set(names: Sequence[PurePosixPath]) -> ImageSet:
            labels = torch.tensor([classes.index(name.parent.name) for name in names], dtype=torch.int64)
            if workers:
                identity = f"{size} {[source.size(str(name)) for name in names]}"
                pixels = FileImages([str(n) for n in names], decode, (channels, size, size), workers=workers,
                                    identity=identity)  # fmt: skip
                return ImageSet(pixels, labels, mean, std)
            held = torch.empty((len(names), channels, size, size), dtype=torch.uint8)
            for index, name in enumerate(names):
                held[index] = torch.from_numpy(decode(str(name)))
            return ImageSet(held, labels, mean, std)

        return Dataset(image_set(train_files), image_set(test_files), classes, spec)


def fitted(image: Image.Image, size: int) -> Image.Image:
    """`image` as size x size: unchanged if its sides are that, else resized and the middle cut out."""
    if min(image.size) != size:
        scale = round(size * RESIZE_TO_CROP) / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # a copy when the size is the same
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


class _Files(Protocol):
    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def size(self, name: str) -> int: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        return [file.relative_to(self._root).as_posix() for file in self._root.rglob("*") if file.is_file()]

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._reading = Lock()  # the threads share one file position

    def names(self) -> list[str]:
        return [entry.filename for entry in self._archive.infolist() if not entry.is_dir()]

    def read(self, name: str) -> bytes:
        with self._reading:
            return self._archive.read(name)

    def size(self, name: str) -> int:
        return self._archive.getinfo(name).file_size


def _reopened(path: Path) -> _Files:
    return _Folder(path) if path.is_dir() else _Zip(zipfile.ZipFile(path))


@contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    if path.is_dir():
        yield _Folder(path)
        return
    if not path.is_file():
        raise InvalidInput(f"no folder or .zip file {path}", next_step=f"give imagefolder:PATH with {LAYOUT}")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CorruptFile(path, f"not a .zip file ({error})") from error
    with archive:
        yield _Zip(archive)


def _find_parts(path: Path, names: Sequence[str]) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """The training and the test images, each sorted; folders above train/ and below CLASS/ are not looked into."""
    images = sorted(
        file
        for file in map(PurePosixPath, names)
        if file.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in file.parts)
    )
    parts: list[list[PurePosixPath]] = []
    for wanted in (TRAIN_NAMES, TEST_NAMES):
        # One folder around everything is common in archives.
        chosen: list[PurePosixPath] = []
        for name in wanted:
            chosen = [file for file in images if len(file.parts) in (3, 4) and file.parts[-3].lower() == name]
            if chosen:
                break
        parts.append(chosen)
    if not parts[0] or not parts[1]:
        tops = sorted({file.parts[0] for file in images if len(file.parts) > 1})
        found = f"{len(images)} images in {', '.join(tops[:6]) or 'no folder'}{' ...' if len(tops) > 6 else ''}"
        raise InvalidInput(
            f"{path}: expected {LAYOUT}, found {found}",
            next_step="make a train and a val folder with the class folders in each; keep the val images apart",
        )
    return parts[0], parts[1]


def _decoded(files: _Files, path: Path, name: PurePosixPath, mode: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(files.read(str(name)))) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    # Pillow's decoders raise many types for broken content, zipfile RuntimeError for encrypted entries.
    except Exception as error:
        raise InvalidInput(
            f"{path}: {name} cannot be read as an image ({error})", next_step="delete or replace the file"
        ) from error


def _refuse_more_than_memory(path: Path, images: int, bytes_per_image: int) -> None:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed_bytes = images * bytes_per_image
    if needed_bytes > MEMORY_SHARE * memory_bytes:
        raise InvalidInput(
            f"{path}: {images} images need {needed_bytes / 2**30:.1f} GiB decoded, this computer has "
            f"{memory_bytes / 2**30:.1f} GiB of memory",
            next_step="pass --workers 2 to decode them as they are used, or use fewer images or a smaller image size",
        )
