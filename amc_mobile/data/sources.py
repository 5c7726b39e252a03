"""Where data sets come from: digits, drawn shapes, CIFAR-10, a folder of images, the user's own function or object.

A source is a function of (spec, the part of `spec` behind its colon, ReadOptions); SOURCES lists all.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits as sklearn_digits
from torch import Tensor

from amc_mobile.data.images import (
    RESIZE_TO_CROP,
    Dataset,
    FileImages,
    ImageSet,
    Normalisation,
    normalisation_tensors,
    resized,
    with_channels,
)
from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.user_file import load_function, names_a_function

LOG = logging.getLogger(__name__)
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
COLOURS = 3


@dataclass(frozen=True)
class ReadOptions:
    """How a network wants its images; None where the source decides.

    `image_size`: side in pixels. `normalisation`: the mean and the deviation per channel that it was trained with.
    `workers`: threads that decode image folders whenever images are used; 0: all are held in memory.
    """

    image_size: int | None = None
    channels: int | None = None
    normalisation: Normalisation | None = None
    workers: int = 0

    def images(self, stored: Tensor, labels: Tensor, usual: Normalisation, *, mirrors: bool = True) -> ImageSet:
        """(N, C, H, W) images at the size and with the channels asked for. `usual`: the source's own normalisation."""
        if self.image_size is not None:
            stored = resized(stored, self.image_size)
        stored = with_channels(stored, self.channels or COLOURS)
        return ImageSet(stored, labels, *self.normaliser(usual), mirrors=mirrors)

    def normaliser(self, usual: Normalisation) -> tuple[Tensor, Tensor]:
        """(C,) mean and deviation."""
        return normalisation_tensors(*(self.normalisation or usual), self.channels or COLOURS)


def load_dataset(
    spec: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    normalisation: Normalisation | None = None,
    workers: int = 0,
) -> Dataset:
    """Reads the data set that `spec` names: one of SOURCES, `path/to/file.py:function`, or a name of `name_data`.

    Parameters: as in ReadOptions. Raises InvalidInput, naming what was expected, for anything that cannot be read.
    """
    if image_size is not None and image_size < 1:
        raise InvalidConfig(f"image_size is {image_size}; it must be at least 1")
    options = ReadOptions(image_size, channels, normalisation, workers)
    kind, colon, location = spec.partition(":")
    # An image folder's path is free text, so the table is looked at before `.py:function`.
    source = SOURCES.get(f"{kind}:PATH" if colon and location else spec)
    if source is not None:
        return source(spec, location, options)
    if names_a_function(spec):
        return load_user_function(spec, options)
    if spec.startswith(OBJECT_NAME):
        return load_object(spec, options)
    raise InvalidInput(
        f"no data set {spec!r}", next_step=f"choose one of {', '.join(SOURCES)}, path/to/file.py:function"
    )


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY_RECORD_BYTES = 1 + 3 * 32 * 32  # label, then red, green and blue planes
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load_cifar(spec: str, location: str, options: ReadOptions) -> Dataset:
    """`location`: an .npz file with x_train, y_train, x_test, y_test (images NHWC uint8) and perhaps `classes`; a
    folder with one such file; or the folder of the binary version (data_batch_*.bin, test_batch.bin).

    Without a normalisation of the network the images get ImageNet's, as the public pretrained nets expect.
    """
    classes, train, test = _read(Path(location).expanduser())
    height, width = train[0].shape[2:]
    train_set, test_set = (options.images(*part, IMAGENET) for part in (train, test))
    return Dataset(train_set, test_set, classes, spec, resized_from=(height, width), resize="stretch")


Part = tuple[Tensor, Tensor]


def _read(path: Path) -> tuple[tuple[str, ...], Part, Part]:
    if path.is_file() and path.suffix == ".npz":
        return _read_npz(path)
    if not path.is_dir():
        raise InvalidInput(f"no CIFAR-10 at {path}", next_step="give an .npz file or a folder: cifar10:PATH")
    for folder in (path, path / "cifar-10-batches-bin"):
        train = sorted(folder.glob("data_batch_*.bin"))
        if train and (folder / "test_batch.bin").is_file():
            return CIFAR_CLASSES, _read_binary(train), _read_binary([folder / "test_batch.bin"])
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
    classes = tuple(str(name) for name in arrays["classes"]) if "classes" in arrays else CIFAR_CLASSES
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


DIGITS_SIZE = 32
DIGITS_NORMALISATION: Normalisation = ((0.305,), (0.323,))  # of the pixels (0..1) of all images at 32x32
TEST_SHARE = 0.2


def load_digits(spec: str, location: str, options: ReadOptions) -> Dataset:
    """scikit-learn's 1,797 digits. A fifth of them, always the same ones, is the test set."""
    digits = sklearn_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None].mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    options = replace(options, image_size=options.image_size or DIGITS_SIZE)
    every = options.images(pixels, labels, DIGITS_NORMALISATION, mirrors=False)
    train, test = (every.subset(index) for index in _shuffled_parts(len(every)))
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(train, test, classes, spec, resized_from=(DIGITS_SIZE, DIGITS_SIZE), resize="stretch")


def _shuffled_parts(count: int) -> tuple[Tensor, Tensor]:
    """Ascending indices of training and test images."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    tests = max(1, round(TEST_SHARE * count))
    return order[tests:].sort().values, order[:tests].sort().values


SHAPE_CLASSES = ("rectangle", "ellipse", "triangle")
SHAPES_SIZE = 64
TRAINING_IMAGES, TEST_IMAGES = 2000, 400
MOST_OBJECTS = 3
SMALLEST, LARGEST = 0.2, 0.6  # of the image's side
MOST_HIDDEN = 0.15  # of a box's area by another one, so that every shape can be recognised


def load_shapes(spec: str, location: str, options: ReadOptions) -> Dataset:
    """Rectangles, ellipses and triangles with their boxes, for detectors; always the same images."""
    size = options.image_size or SHAPES_SIZE

    def image_set(count: int, entropy: tuple[int, ...]) -> ImageSet:
        rng = np.random.default_rng(entropy)
        images = np.empty((count, 3, size, size), dtype=np.uint8)
        labels = np.full((count, MOST_OBJECTS, 5), (-1, 0, 0, 0, 0), dtype=np.float32)
        for image, objects in zip(images, labels, strict=True):
            _draw(image, objects, rng)
        return options.images(torch.from_numpy(images), torch.from_numpy(labels), ((0.5,), (0.25,)))

    return Dataset(image_set(TRAINING_IMAGES, (0,)), image_set(TEST_IMAGES, (1, 0)), SHAPE_CLASSES, spec)


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
        kind = int(rng.integers(len(SHAPE_CLASSES)))
        across, down = (x - left) / width, (y - top) / height
        inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
        if SHAPE_CLASSES[kind] == "ellipse":
            inside &= (across - 0.5) ** 2 + (down - 0.5) ** 2 <= 0.25
        elif SHAPE_CLASSES[kind] == "triangle":  # its tip in the middle of the upper side
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


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")
LARGEST_DEFAULT_SIZE = 224
# Above this share of the memory the images would push everything else out.
MEMORY_SHARE = 0.5

LAYOUT = "train/CLASS/IMAGE and val/CLASS/IMAGE"


def load_folder(spec: str, location: str, options: ReadOptions) -> Dataset:
    """`location`: a folder or .zip file. Classes are the sorted folder names of train/.

    Without an image size: the shorter side of the first training image, at most 224. An image whose shorter side
    differs is resized to 256/224 of that (shorter side), and the middle is cut out. Without a normalisation of the
    network the images get ImageNet's.
    """
    path, channels, workers = Path(location).expanduser(), options.channels or COLOURS, options.workers
    if channels not in (1, 3):
        raise InvalidInput(f"images can be read with 1 or 3 channels, not {channels}")
    files = _Files(path)
    train_files, test_files = _find_parts(path, files.names())
    classes = tuple(sorted({file.parent.name for file in train_files}))
    unknown = sorted({file.parent.name for file in test_files} - set(classes))
    if unknown:
        raise InvalidInput(f"{path}: classes in the validation images only: {', '.join(unknown[:5])}")
    size = options.image_size or min(min(_decoded(files, path, train_files[0], "RGB").size), LARGEST_DEFAULT_SIZE)
    if not workers:
        _refuse_more_than_memory(path, len(train_files) + len(test_files), channels * size * size)

    def decode(name: str) -> NDArray[np.uint8]:
        image = fitted(_decoded(files, path, PurePosixPath(name), "RGB" if channels == 3 else "L"), size)
        return np.ascontiguousarray(np.array(image).reshape(size, size, channels).transpose(2, 0, 1))

    def image_set(paths: Sequence[PurePosixPath]) -> ImageSet:
        labels = torch.tensor([classes.index(file.parent.name) for file in paths], dtype=torch.int64)
        names = [str(file) for file in paths]
        identity = f"{size} {[files.size(name) for name in names]}"
        images = FileImages(names, decode, (channels, size, size), workers=max(workers, 1), identity=identity)
        return ImageSet(images, labels, *options.normaliser(IMAGENET))

    train, test = image_set(train_files), image_set(test_files)
    return Dataset(*((train, test) if workers else (train.in_memory(), test.in_memory())), classes, spec)


def fitted(image: Image.Image, size: int) -> Image.Image:
    """`image` as size x size: unchanged if its sides are that, else resized and the middle cut out."""
    if min(image.size) != size:
        scale = round(size * RESIZE_TO_CROP) / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # a copy when the size is the same
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


class _Files:
    """The files of a folder or a .zip file, by their paths in it. May be read by several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            return
        if not path.is_file():
            raise InvalidInput(f"no folder or .zip file {path}", next_step=f"give imagefolder:PATH with {LAYOUT}")
        try:
            self._archive = zipfile.ZipFile(path)  # closed with this object
        except (zipfile.BadZipFile, OSError) as error:
            raise CorruptFile(path, f"not a .zip file ({error})") from error

    def names(self) -> list[str]:
        if self._archive is not None:
            return [entry.filename for entry in self._archive.infolist() if not entry.is_dir()]
        return [file.relative_to(self._path).as_posix() for file in self._path.rglob("*") if file.is_file()]

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes() if self._archive is None else self._archive.read(name)

    def size(self, name: str) -> int:
        return (self._path / name).stat().st_size if self._archive is None else self._archive.getinfo(name).file_size


def _find_parts(path: Path, names: Sequence[str]) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """The training and the test images, each sorted; folders above train/ and below CLASS/ are not looked into."""
    images = sorted(
        file
        for file in map(PurePosixPath, names)
        if file.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in file.parts)
    )
    parts: list[list[PurePosixPath]] = []
    for names_of_part in (TRAIN_NAMES, TEST_NAMES):
        # One folder around everything is common in archives.
        chosen: list[PurePosixPath] = []
        for name in names_of_part:
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


MOST_COLOURS = 4  # channels of an image whose channels come last: grey, grey and alpha, RGB, RGBA
LARGEST_NORMALISED = 30.0  # deviations from the mean; pixels from 0 to 255 go beyond


def load_user_function(spec: str, options: ReadOptions) -> Dataset:
    """Calls the function `spec` names, with `image_size` if it takes one; it returns (train, test), or a
    Dataset, which can also say what its accuracies are on.

    Each of the two is an ImageSet, a pair (images, labels) of arrays, or a sequence of (image, label) such as a
    torch Dataset; an image is a PIL image, an (H, W, C) uint8 array or a (C, H, W) tensor. Arrays of images are
    (N, C, H, W), or (N, H, W, C) with up to four channels, or (N, H, W) in grey. Floating-point images are taken as
    normalised already; uint8 images get `normalisation`, or ImageNet's. For detectors the labels of a pair are boxes,
    (N, objects, 5) as in an ImageSet; for a task of the user's own they are (N, ...) numbers.
    A network with several inputs gets them as a tuple of arrays in place of the images: ((first, second), labels).
    """
    function = load_function(spec)
    accepts_size = "image_size" in inspect.signature(function).parameters
    try:
        sized = accepts_size and options.image_size is not None
        result = function(image_size=options.image_size) if sized else function()
    except AmcMobileError:
        raise
    except Exception as error:
        raise InvalidInput(f"{spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(result, Dataset) and (not isinstance(result, tuple | list) or len(result) != 2):
        raise InvalidInput(f"{spec} must return (train, test) or a Dataset, it returned a {type(result).__name__}")
    return _dataset(spec, result, options)


OBJECTS: dict[str, Any] = {}  # data sets that this process was given as objects, by name
OBJECT_NAME = "data@"  # followed by the first digits of their fingerprint


def name_data(data: Any) -> str:
    """A name by which `load_dataset` finds `data` as long as this process lives; the same for equal images and labels.

    `data`: a Dataset; a pair (train, test), each an ImageSet, a pair (images, labels) of arrays or a torch Dataset; or
    (images, labels) alone, of which a fifth, drawn at random, becomes the test set. What arrays may look like:
    `load_user_function`. Everything is read into memory here, once. Raises InvalidInput.
    """
    spec = "the data"
    if not isinstance(data, Dataset):
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise InvalidInput(
                f"the data must be (train, test), (images, labels) or a Dataset, not a {type(data).__name__}"
            )
        if hasattr(data[0], "shape"):
            data = _with_test_images(spec, *data)
        elif not _has_several_inputs(data):
            data = [_Collected(_collected_or_given(spec, part), getattr(part, "classes", None)) for part in data]
    dataset = _dataset(spec, data, ReadOptions())
    digest = hashlib.sha256(f"{dataset.train.fingerprint()} {dataset.test.fingerprint()}".encode()).hexdigest()
    name = f"{OBJECT_NAME}{digest[:12]}"
    OBJECTS[name] = data
    return name


def load_object(spec: str, options: ReadOptions) -> Dataset:
    """The data that `name_data` gave this name."""
    if spec not in OBJECTS:
        raise InvalidInput(f"{spec} was given as a Python object, in another process", next_step="pass the data again")
    return _dataset(spec, OBJECTS[spec], options)


@dataclass(frozen=True, eq=False)
class _Collected:
    """Images and labels in memory, with the names of the classes where the user's object had any."""

    content: ImageSet | tuple[Tensor, Tensor]
    classes: Sequence[Any] | None


def _with_test_images(spec: str, images: Any, labels: Any) -> list[_Collected]:
    """Training and test images of (images, labels)."""
    pixels, targets = _tensor(spec, images), _labels(spec, labels)
    if len(pixels) != len(targets):
        raise InvalidInput(f"{spec}: {len(pixels)} images and {len(targets)} labels")
    parts = [(pixels[index], targets[index]) for index in _shuffled_parts(len(pixels))]
    return [_Collected(_collected_or_given(spec, part), None) for part in parts]


def _has_several_inputs(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], tuple) for part in parts)


def _dataset(spec: str, given: Any, options: ReadOptions) -> Dataset:
    """Of a Dataset, or of a training and a test set in one of the forms of `load_user_function`."""
    if isinstance(given, Dataset):
        return replace(given, spec=spec)
    if _has_several_inputs(given):
        return _several_inputs(spec, given, options)
    parts = [_collected_or_given(spec, part) for part in given]
    before = parts[0][0].shape[2:] if isinstance(parts[0], tuple) else parts[0].images.shape[2:]
    train, test = (_image_set(part, options) for part in parts)
    named = getattr(given[0], "classes", None)
    if isinstance(named, Tensor):  # an ImageSet's classes are those of its images
        named = None
    count = 1 + max(int(part.classes.max()) for part in (train, test) if len(part)) if len(train) else 0
    classes = tuple(str(name) for name in named) if named is not None else tuple(str(i) for i in range(count))
    return Dataset(train, test, classes, spec, resized_from=(int(before[0]), int(before[1])))


def _collected_or_given(spec: str, part: Any) -> ImageSet | tuple[Tensor, Tensor]:
    """An ImageSet as it is; of anything else the images, (N, C, H, W) uint8 or float32, and the labels."""
    if isinstance(part, _Collected):
        return part.content
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


def _several_inputs(spec: str, parts: Sequence[Any], options: ReadOptions) -> Dataset:
    """Every input normalised, behind each other."""
    sets, shapes = [], []
    for inputs, given in parts:
        chosen = [_collected_or_given(spec, (values, given)) for values in inputs]
        normalised = [
            _image_set(part, ReadOptions(normalisation=options.normalisation)).normalised() for part in chosen
        ]
        shapes.append(tuple(tuple(values.shape[1:]) for values in normalised))
        packed = torch.cat([values.flatten(1) for values in normalised], 1)[:, :, None, None]
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


def _image_set(part: ImageSet | tuple[Tensor, Tensor], options: ReadOptions) -> ImageSet:
    """Floating-point images are normalised already; where the network leaves its channels open, images keep theirs."""
    if isinstance(part, ImageSet):
        return part
    images, labels = part
    options = replace(options, channels=options.channels or images.shape[1])
    if images.dtype == torch.float32:
        options = replace(options, normalisation=((0.0,), (1.0,)))
    return options.images(images, labels, IMAGENET)


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


Source = Callable[[str, str, ReadOptions], Dataset]
SOURCES: dict[str, Source] = {
    "digits": load_digits,
    "shapes": load_shapes,
    "cifar10:PATH": load_cifar,
    "imagefolder:PATH": load_folder,
}
