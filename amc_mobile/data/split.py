"""The split of a data set that keeps calibration, reward and test images apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_mobile.data.images import Dataset, ImageSet
from amc_mobile.errors import InvalidConfig

HELD_OUT_SEED = 0  # of the reward images, whatever the seed of a search or training


@dataclass(frozen=True)
class SplitRecord:
    """Which images a run used. `sizes`: train (all outside `reward`), calibration, reward and test."""

    source: str
    seed: int
    accuracy_on: str
    sizes: Mapping[str, int]
    calibration_indices: tuple[int, ...]
    reward_indices: tuple[int, ...]
    train_sha256: str
    test_sha256: str


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Images by what they are used for.

    `train`: fine-tuning; `calibration`: the part of `train` that reconstruction looks at; `reward`: taken from the
    training set too, scores the plans of a search, and is in neither of the two; `test`: reports only.
    The indices are positions in the data set's training set, sorted.
    """

    train: ImageSet
    calibration: ImageSet
    reward: ImageSet
    test: ImageSet
    spec: str
    seed: int
    calibration_indices: tuple[int, ...]
    reward_indices: tuple[int, ...]
    accuracy_on: str = "test images"

    @property
    def reward_on(self) -> str:
        """What an accuracy on the reward images is said to be on."""
        return "reward images of the training set" if self.accuracy_on == "test images" else self.accuracy_on

    def record(self) -> SplitRecord:
        sizes = {part: len(getattr(self, part)) for part in ("train", "calibration", "reward", "test")}
        return SplitRecord(
            self.spec, self.seed, self.accuracy_on, sizes, self.calibration_indices, self.reward_indices,
            self.train.fingerprint(), self.test.fingerprint(),
        )  # fmt: skip


def held_out_count(training_images: int) -> int:
    """How many images training leaves out; searches score plans on them by default."""
    return max(1, min(256, training_images // 10))


def held_out(dataset: Dataset) -> DataSplit:
    """The split that `train` trains by: `reward` is what it leaves out."""
    return split(dataset, calibration=1, reward=held_out_count(len(dataset.train)))


def split(dataset: Dataset, *, calibration: int = 512, reward: int = 512, seed: int = 0) -> DataSplit:
    """Draws `reward` and `calibration` images from the training set, classes as even as they come.

    The reward images are the same for every seed, a smaller number of them being a part of a larger one: so that no
    search scores plans on images that a training with another seed has seen. `seed` draws the calibration images.

    Raises InvalidConfig when they leave no training image outside `reward` and `calibration`.
    """
    available = len(dataset.train)
    if calibration < 1 or reward < 1 or calibration + reward >= available:
        raise InvalidConfig(
            f"{calibration} calibration and {reward} reward images cannot be taken from {available} training images",
            next_step=f"take at least 1 of each and fewer than {available} together",
        )
    held = _balanced_order(dataset.train, torch.Generator().manual_seed(HELD_OUT_SEED))[:reward]
    order = _balanced_order(dataset.train, torch.Generator().manual_seed(seed))
    rest = order[~torch.isin(order, held)]
    reward_indices = held.sort().values
    calibration_indices = rest[:calibration].sort().values
    train_indices = rest.sort().values
    return DataSplit(
        train=dataset.train.subset(train_indices),
        calibration=dataset.train.subset(calibration_indices).in_memory(),
        reward=dataset.train.subset(reward_indices).in_memory(),
        test=dataset.test,
        spec=dataset.spec,
        seed=seed,
        calibration_indices=tuple(calibration_indices.tolist()),
        reward_indices=tuple(reward_indices.tolist()),
        accuracy_on=dataset.accuracy_on,
    )


def few(images: ImageSet, count: int) -> ImageSet:
    """`count` of the images, always the same ones, classes as even as they come; all where there are no more."""
    if count >= len(images):
        return images
    return images.subset(_balanced_order(images, torch.Generator().manual_seed(HELD_OUT_SEED))[:count].sort().values)


def _balanced_order(images: ImageSet, generator: torch.Generator) -> Tensor:
    """A random order in which any stretch holds about the same share of every class: with boxes, the first object's."""
    labels = images.classes[:, 0] if images.has_boxes else images.classes
    shuffled = torch.randperm(len(labels), generator=generator)
    rank = torch.empty(len(labels))
    for label in set(labels.tolist()):
        of_class = (labels[shuffled] == label).nonzero().flatten()
        # Position inside its class, scaled to 0..1: small classes are spread as far as large ones.
        rank[of_class] = (torch.arange(len(of_class)) + 0.5) / len(of_class)
    return shuffled[torch.argsort(rank, stable=True)]
