from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amc_mobile.data.images import Dataset, FileImages, ImageSet
from amc_mobile.data.sources import fitted, load_dataset, name_data
from amc_mobile.data.split import split
from amc_mobile.errors import CorruptFile, InvalidConfig, InvalidInput

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def png(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def image_files(*, top: str = "") -> dict[str, bytes]:
    """Three training images and one validation image of each of two colours."""
    files = {f"{top}train/{name}/{i}.png": png(rgb) for name, rgb in COLOURS.items() for i in range(3)}
    return files | {f"{top}val/{name}/9.png": png(rgb) for name, rgb in COLOURS.items()}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_cifar_npz(path: Path, **replaced: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "x_test": random.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8),
        "y_test": np.array([[8], [9]], dtype=np.uint8),
    }
    np.savez(path, **(arrays | replaced))
    return path


def some_images(count: int, classes: int = 4) -> ImageSet:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 2).contiguous()
    labels = torch.arange(count) % classes
    return ImageSet(images, labels, torch.tensor([0.0]), torch.tensor([1.0]))


def some_dataset(count: int) -> Dataset:
    return Dataset(some_images(count), some_images(8), ("a", "b", "c", "d"), "made here")


# The image set


def test_pixels_are_divided_by_255_and_normalised_per_channel() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 1, 1)
    images = ImageSet(pixels, torch.tensor([0, 1]), torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.25, 1.0]))
    batch = images.normalised()
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[:, :, 0, 0], torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 1.0]]))


def test_normalising_floating_point_images_leaves_the_stored_ones_alone() -> None:
    stored = torch.ones(2, 1, 2, 2)
    images = ImageSet(stored, torch.tensor([0, 1]), torch.tensor([1.0]), torch.tensor([1.0]))
    assert float(images.normalised(slice(0, 1)).abs().max()) == 0.0
    assert float(stored.min()) == 1.0


def test_a_subset_keeps_the_asked_order() -> None:
    subset = some_images(8).subset([5, 2])
    assert subset.images[:, 0, 0, 0].tolist() == [5, 2]
    assert subset.labels.tolist() == [1, 2]


def test_labels_that_do_not_match_the_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"labels must be \(3,\)"):
        ImageSet(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1]), torch.zeros(1), torch.ones(1))


def test_the_fingerprint_changes_with_one_pixel_and_with_the_normalisation() -> None:
    images = some_images(8)
    changed = images.images.clone()
    changed[3, 0, 1, 1] += 1
    prints = {
        images.fingerprint(),
        ImageSet(changed, images.labels, images.mean, images.std).fingerprint(),
        ImageSet(images.images, images.labels, images.mean + 1, images.std).fingerprint(),
    }
    assert len(prints) == 3
    assert some_images(8).fingerprint() in prints


# Digits


def test_digits_come_as_colour_images_of_the_asked_size_that_training_may_not_mirror() -> None:
    digits = load_dataset("digits", image_size=16)
    assert digits.input_shape == (1, 3, 16, 16)
    assert len(digits.train) + len(digits.test) == 1797
    assert not digits.train.mirrors
    assert digits.train.normalised().std().item() == pytest.approx(1.0, abs=0.15)


def test_digits_for_training_and_testing_are_not_the_same_pictures() -> None:
    digits = load_dataset("digits", image_size=8, channels=1)
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (digits.train, digits.test))
    assert not train & test


# Image folders


@pytest.mark.parametrize("top", ["", "photos/"])
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_folders_and_archives_give_the_same_labelled_images(tmp_path: Path, top: str, write) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "photos.zip", image_files(top=top))
    photos = load_dataset(f"imagefolder:{path}")
    assert photos.classes == ("blue", "red")
    assert photos.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert photos.test.images[:, :, 8, 8].tolist() == [[0, 0, 255], [255, 0, 0]]
    assert photos.input_shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"blue/1.png": png((0, 0, 255))}, r"expected train/CLASS/IMAGE and val/CLASS/IMAGE, found 1 images in blue"),
        (image_files() | {"val/green/1.png": png((0, 255, 0))}, "validation images only: green"),
        (image_files() | {"train/red/broken.jpg": b"not an image"}, r"train/red/broken\.jpg cannot be read"),
        (None, r"not a \.zip file"),
    ],
)
def test_folders_that_cannot_be_read_are_refused(tmp_path: Path, files: dict[str, bytes] | None, said: str) -> None:
    path = tmp_path / "photos.zip"
    if files is None:
        path.write_bytes(b"PK but not really")
    else:
        write_zip(path, files)
    with pytest.raises(InvalidInput if files else CorruptFile, match=said):
        load_dataset(f"imagefolder:{path}")


def test_images_left_in_their_files_are_the_same_images(tmp_path: Path) -> None:
    spec = f"imagefolder:{write_zip(tmp_path / 'photos.zip', image_files())}"
    held, filed = (load_dataset(spec, image_size=12, workers=workers) for workers in (0, 3))
    index = torch.tensor([5, 0, 3])
    assert isinstance(held.train.images, torch.Tensor)
    assert torch.equal(filed.train.images[index], held.train.images[index])
    assert torch.equal(filed.test.normalised(), held.test.normalised())
    assert torch.equal(filed.train.subset([4, 1]).normalised(slice(1, 2)), held.train.normalised([1]))
    assert filed.input_shape == held.input_shape == (1, 3, 12, 12)
    prints = [load_dataset(spec, image_size=size, workers=1).train.fingerprint() for size in (12, 8)]
    assert filed.train.fingerprint() == prints[0] != prints[1]


def test_only_what_is_looked_at_again_and_again_is_held(tmp_path: Path) -> None:
    files = {f"{name}{i}": content for name, content in image_files().items() for i in range(4)}
    path = write_zip(tmp_path / "photos.zip", {name.replace(".png", "") + ".png": c for name, c in files.items()})
    parts = split(load_dataset(f"imagefolder:{path}", workers=2), calibration=4, reward=4)
    assert isinstance(parts.train.images, FileImages)
    assert isinstance(parts.test.images, FileImages)
    assert isinstance(parts.reward.images, torch.Tensor)
    assert isinstance(parts.calibration.images, torch.Tensor)


def test_a_broken_image_is_named_when_it_is_needed(tmp_path: Path) -> None:
    path = write_folder(tmp_path, image_files() | {"train/red/2.png": b"no image"})
    photos = load_dataset(f"imagefolder:{path}", image_size=16, workers=2)
    with pytest.raises(InvalidInput, match=r"train/red/2\.png"):
        photos.train.normalised()


def test_more_images_than_the_memory_holds_are_refused_unread_and_can_stay_in_their_files(tmp_path: Path) -> None:
    spec, size = f"imagefolder:{write_folder(tmp_path, image_files())}", 10_000_000
    with pytest.raises(InvalidInput, match="GiB of memory") as caught:
        load_dataset(spec, image_size=size)
    assert "--workers" in caught.value.next_step
    assert load_dataset(spec, image_size=size, workers=1).train.images.shape[2] == size


def test_an_image_between_crop_and_resize_keeps_its_middle_pixels() -> None:
    image = Image.new("RGB", (256, 256))
    image.putpixel((128, 128), (9, 9, 9))
    assert fitted(image, 224).size == (224, 224)
    assert fitted(image, 224).getpixel((112, 112)) == (9, 9, 9)


def test_a_wide_image_is_made_square_without_distortion() -> None:
    image = Image.new("RGB", (400, 100), (255, 255, 255))
    assert fitted(image, 32).size == (32, 32)
    assert np.array(fitted(image, 32)).min() == 255


# CIFAR-10


def test_cifar_arrays_come_with_channels_first_and_flat_labels(tmp_path: Path) -> None:
    path = write_cifar_npz(tmp_path / "cifar.npz")
    cifar = load_dataset(f"cifar10:{tmp_path}")
    stored = np.load(path)["x_test"]
    assert cifar.input_shape == (1, 3, 32, 32)
    assert cifar.test.labels.tolist() == [8, 9]
    assert cifar.test.images[1, 2, 3, 4] == stored[1, 3, 4, 2]
    assert cifar.classes[8] == "ship"


def test_cifar_s_binary_records_are_read(tmp_path: Path) -> None:
    records = np.random.default_rng(1).integers(0, 10, (4, 3073), dtype=np.uint8)
    (tmp_path / "data_batch_1.bin").write_bytes(records[:2].tobytes())
    (tmp_path / "data_batch_2.bin").write_bytes(records[2:3].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(records[3:].tobytes())
    cifar = load_dataset(f"cifar10:{tmp_path}")
    assert cifar.train.labels.tolist() == records[:3, 0].tolist()
    assert cifar.test.images[0, 0, 0, 1] == records[3, 2]


def test_cifar_s_pickled_version_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({}))
    with pytest.raises(InvalidInput, match="could run any code") as caught:
        load_dataset(f"cifar10:{tmp_path}")
    assert "binary version" in caught.value.next_step


def test_archives_of_python_objects_and_cut_off_ones_are_refused(tmp_path: Path) -> None:
    path = write_cifar_npz(tmp_path / "cifar.npz", y_train=np.array([{}, {}], dtype=object))
    with pytest.raises(CorruptFile, match="plain arrays"):
        load_dataset(f"cifar10:{path}")
    path.write_bytes(write_cifar_npz(path).read_bytes()[:5000])
    with pytest.raises(CorruptFile):
        load_dataset(f"cifar10:{path}")


# A user's function


def of_function(tmp_path: Path, source: str, **options: Any) -> Dataset:
    (tmp_path / "mine.py").write_text(f"import numpy as np\nimport torch\n{source}\n")
    return load_dataset(f"{tmp_path}/mine.py:load", **options)


def test_a_user_s_function_may_return_arrays_of_the_size_asked_for(tmp_path: Path) -> None:
    source = (
        "def load(image_size=12):\n"
        "    part = np.full((4, 3, image_size, image_size), 7, np.uint8), np.array([0, 1, 2, 1])\n"
        "    return part, part\n"
    )
    mine = of_function(tmp_path, source, image_size=10)
    assert mine.input_shape == (1, 3, 10, 10)
    assert mine.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("body", "message", "next_step"),
    [
        ("return 5", "must return", ""),
        ("return [(1, 2)], [(1, 2)]", "not a sequence of", "(image, label)"),
        ("raise OSError('no disk')", "OSError: no disk", ""),
        ("return [(np.zeros((2, 3, 8, 8), np.uint8), ['cat', 'dog'])] * 2",
         "numbers of classes, it returned 'cat', 'dog'", ".index("),
        ("return [(np.array(['a', 'b']), [0, 1])] * 2", "images are no array of numbers", "uint8 or float32"),
        ("return [(np.zeros((6, 12, 12, 6), np.uint8), np.arange(6) % 2)] * 2",
         r"look like \(N, H, W, C\) with 6 channels", "transpose"),
    ],
)  # fmt: skip
def test_what_a_user_s_function_does_wrong_is_said(tmp_path: Path, body: str, message: str, next_step: str) -> None:
    with pytest.raises(InvalidInput, match=message) as raised:
        of_function(tmp_path, f"def load():\n    {body}")
    assert next_step in raised.value.next_step


def of_images(images: np.ndarray, classes: int = 2) -> Dataset:
    part = images, np.arange(len(images)) % classes
    return load_dataset(name_data((part, part)))


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((6, 12, 20, 3), (1, 3, 12, 20)),
        ((6, 12, 20), (1, 1, 12, 20)),
        ((6, 3, 12, 20), (1, 3, 12, 20)),
        ((6, 6, 12, 12), (1, 6, 12, 12)),
    ],
)
def test_the_usual_arrangements_of_images_are_recognised(stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert of_images(np.zeros(stored, np.uint8)).input_shape == shape


def test_pixels_as_if_normalised_and_a_single_class_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    of_images(np.linspace(-2, 2, 6 * 3 * 64).reshape(6, 3, 8, 8))
    assert not caplog.text
    of_images(np.linspace(0, 255, 6 * 3 * 64).reshape(6, 3, 8, 8), classes=1)
    assert "floating-point images with values from 0 to 255" in caplog.text
    assert "all 6 training images" in caplog.text


def test_an_unknown_data_set_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidInput, match="'mnist'") as caught:
        load_dataset("mnist")
    assert "imagefolder:PATH" in caught.value.next_step


# The split


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reward_images_are_in_no_other_part_and_each_class_has_its_share(seed: int) -> None:
    dataset = some_dataset(40)
    parts = split(dataset, calibration=8, reward=12, seed=seed)
    train, calibration, reward = (
        set(part.images[:, 0, 0, 0].tolist()) for part in (parts.train, parts.calibration, parts.reward)
    )
    assert calibration < train and not reward & train and train | reward == set(range(40))
    assert torch.bincount(parts.reward.labels).tolist() == [3, 3, 3, 3]
    assert all(1 <= count <= 3 for count in torch.bincount(parts.calibration.labels).tolist())
    record = parts.record()
    assert record.sizes == {"train": 28, "calibration": 8, "reward": 12, "test": 8}
    assert torch.equal(dataset.train.subset(list(record.reward_indices)).images, parts.reward.images)
    assert record == split(dataset, calibration=8, reward=12, seed=seed).record()


def test_a_split_that_leaves_no_image_to_train_on_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="from 40 training images"):
        split(some_dataset(40), calibration=20, reward=20)


@pytest.mark.skipif("AMC_MOBILE_DATA" not in os.environ, reason="AMC_MOBILE_DATA names no folder of real data")
def test_the_pixels_of_real_cifar_are_read() -> None:
    cifar = load_dataset(f"cifar10:{os.environ['AMC_MOBILE_DATA']}/cifar10/cifar10_lossless.npz")
    assert (len(cifar.train), len(cifar.test)) == (4000, 500)
    assert cifar.train.normalised(slice(0, 500)).std().item() == pytest.approx(1.1, abs=0.1)


def test_arrays_given_as_objects_become_training_and_test_images() -> None:
    images, labels = np.zeros((20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 4
    images[:, 0, 0, 0] = np.arange(20)
    name = name_data((images, labels))
    data = load_dataset(name, image_size=16)
    assert (len(data.train), len(data.test)) == (16, 4) and data.train.images.shape[1:] == (3, 16, 16)
    assert data.classes == ("0", "1", "2", "3") and data.spec == name
    assert name_data((images, labels)) == name != name_data((images + 1, labels))


def test_pairs_of_torch_data_sets_and_data_sets_of_ours_are_taken_as_objects() -> None:
    tensors = torch.utils.data.TensorDataset(torch.randn(12, 3, 8, 8), torch.arange(12) % 3)
    data = load_dataset(name_data((tensors, tensors)))
    assert torch.equal(data.train.normalised(), tensors.tensors[0])
    again = load_dataset(name_data(data))
    assert again.train is data.train
    given_as_sets = load_dataset(name_data((data.train, data.test)))
    assert given_as_sets.classes == ("0", "1", "2")


def test_a_data_object_of_another_process_is_asked_for_again() -> None:
    with pytest.raises(InvalidInput, match="data@0123456789ab was given as a Python object"):
        load_dataset("data@0123456789ab")
