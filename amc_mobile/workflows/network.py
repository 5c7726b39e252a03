"""The network a command works on: model, data split and channel groups, loaded the same way by every step."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.groups import find_groups, prove
from amc_mobile.channels.plan import grid
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.data.images import Dataset, ImageSet
from amc_mobile.data.sources import load_dataset
from amc_mobile.data.split import DataSplit, held_out, held_out_count, split
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.models.loading import OBJECTS, LoadedModel, expected_input, load_model
from amc_mobile.models.task import OwnTask, Task, logits
from amc_mobile.models.zoo.registry import MODELS
from amc_mobile.report.tables import render_rows
from amc_mobile.store import read_json, to_document
from amc_mobile.user_file import load_function
from amc_mobile.workflows.workspace import FORMAT_VERSION, Settings, Workspace

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltInModel:
    name: str
    summary: str
    default_input_size: int  # pixels


@dataclass(frozen=True)
class ModelList:
    models: tuple[BuiltInModel, ...]

    def document(self) -> dict[str, Any]:
        return dict(to_document(self))

    def text(self) -> str:
        rows = [(model.name, f"{model.default_input_size} px", model.summary) for model in self.models]
        return (
            render_rows(["model", "input", "what it is"], rows)
            + "\nAlso: path/to/file.py:function, torchvision:NAME, timm:NAME (where installed)"
        )


def list_models() -> ModelList:
    return ModelList(tuple(BuiltInModel(e.name, e.summary, e.default_input_size) for e in MODELS.values()))


def resolved_checkpoint(space: Workspace, model: str, checkpoint: str) -> Path | None:
    """The checkpoint asked for, else what `train` left in this workspace."""
    if checkpoint:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise InvalidInput(f"no checkpoint file {path}", next_step="check --checkpoint")
        return path
    if model in OBJECTS:  # it came with the weights that its user wants
        return None
    return space.trained_checkpoint if space.trained_checkpoint.exists() else None


def load_model_and_data(settings: Settings, checkpoint: Path | None) -> tuple[LoadedModel, Dataset | None]:
    """The network with the weights of `checkpoint`, and the data set at its input size, normalised as they expect.

    What the network leaves open, its input's size and channels and its number of classes, is taken from the data.
    Raises InvalidInput when the labels are not those that the network's task learns from.
    """
    spec = settings.required("model")
    expected = expected_input(spec, settings.input_size or None)
    dataset: Dataset | None = None
    sides = (expected.size, expected.size) if expected.size is not None else None
    channels = expected.channels
    if settings.data:
        dataset = load_dataset(
            settings.data,
            image_size=expected.size,
            channels=expected.channels,
            normalisation=expected.normalisation,
            workers=settings.workers,
        )
        _, channels, height, width = dataset.input_shape
        sides = (height, width)
    loaded = load_model(
        spec,
        num_classes=dataset.num_classes if dataset is not None else None,
        width_multiplier=settings.width_multiplier,
        input_size=sides,
        in_channels=channels,
        checkpoint=checkpoint,
        seed=settings.seed,
        task=_own_task(settings.accuracy, settings.loss),
        input_shapes=dataset.input_shapes if dataset is not None else (),
    )
    if dataset is not None:
        loaded.task.check_labels(dataset.train.labels)
        _say_enlarged(dataset, spec)
    return loaded, dataset


def _own_task(accuracy: str, loss: str) -> OwnTask | None:
    """The task that the user's own accuracy function makes. Raises InvalidInput."""
    if not accuracy:
        if loss:
            raise InvalidInput("--loss needs the accuracy function that belongs to it", next_step="pass --accuracy too")
        return None
    return OwnTask(load_function(accuracy), load_function(loss) if loss else None)


def require_trained(network: Network, images: ImageSet) -> None:
    """Raises InvalidInput where the network is no better on `images` than guessing: pruning it tells nothing."""
    if (error := untrained_error(network, logits(network.module, images), images.labels)) is not None:
        raise error


def untrained_error(network: Network, outputs: Tensor, labels: Tensor) -> InvalidInput | None:
    """The error for a network whose outputs are no better than guessing."""
    if not network.task.is_guessing(outputs, labels):
        return None
    reached = network.task.accuracy(outputs, labels)
    return InvalidInput(
        f"{network.loaded.spec} reaches {network.task.metric} {reached:.1%} on {len(labels)} images, which is no "
        "better than guessing: its weights are random, or not made for these images",
        next_step="pass its weights with --checkpoint, or train it first: `amc-mobile train`; --untrained goes on "
        "all the same",
    )


def _say_enlarged(dataset: Dataset, spec: str) -> None:
    """Enlarged images cost time and hold nothing new."""
    before, (height, width) = dataset.resized_from, dataset.input_shape[2:]
    if before is not None and height * width > before[0] * before[1]:
        smaller = min(before)
        LOG.warning(
            "warning: images of %dx%d pixels are enlarged to %dx%d, the input size of %s; --input-size %d takes "
            "%.0f times less work.", *before, height, width, spec, smaller, height * width / smaller**2,
        )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """The original network in evaluation mode, proven to be prunable by `groups`.

    `settings`: what it was loaded by; `source`: those of them that count, and which weights it has.
    """

    loaded: LoadedModel
    dataset: Dataset | None
    groups: ChannelGroups
    settings: Settings
    source: tuple[object, ...] = ()

    @property
    def module(self) -> nn.Module:
        return self.loaded.module

    @property
    def task(self) -> Task:
        return self.loaded.task

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.loaded.input_shape

    def split(self, *, calibration: int, reward: int | None, seed: int) -> DataSplit:
        """`reward`: None for the images that `train` leaves out."""
        if self.dataset is None:
            raise InvalidInput("this step needs images", next_step="pass --data")
        # Small data sets: at most a third of the training images each, so that some remain.
        third = len(self.dataset.train) // 3
        reward = held_out_count(len(self.dataset.train)) if reward is None else reward
        return split(self.dataset, calibration=min(calibration, third), reward=min(reward, third), seed=seed)


OF_NETWORK = ("model", "accuracy", "loss", "data", "width_multiplier", "input_size", "workers")  # settings


def _source(space: Workspace, settings: Settings) -> tuple[object, ...]:
    """Equal for settings that give the same network."""
    checkpoint = resolved_checkpoint(space, settings.model, settings.checkpoint)
    weights = (checkpoint, checkpoint.stat().st_mtime_ns) if checkpoint is not None else (settings.seed,)
    return *(getattr(settings, name) for name in OF_NETWORK), *weights


def load_network(space: Workspace, settings: Settings, opened: Network | None = None) -> Network:
    """Loads model and data and finds the channel groups; their surgery is proven before anything relies on it.

    A module and data that are Python objects get names first: Settings(model=name_module(module, example_input),
    data=name_data(data)), of `models.loading` and `data.sources`. Every step of a run then finds them by these names.
    `opened`: returned where the settings give the same network.
    Raises InvalidInput for files that do not fit, UnsupportedLayer for networks that cannot be traced.
    """
    torch.set_num_threads(max(1, settings.threads))
    settings.required("model")
    source = _source(space, settings)
    if opened is not None and opened.source == source:
        return opened
    loaded, dataset = load_model_and_data(settings, resolved_checkpoint(space, settings.model, settings.checkpoint))
    example = torch.randn(loaded.input_shape, generator=torch.Generator().manual_seed(0))
    groups = find_groups(loaded.module, example)
    prove(loaded.module, groups, example)
    return Network(loaded, dataset, groups, settings, source)


def may_have_seen(space: Workspace, network: Network, reward_images: int) -> bool:
    """Whether the checkpoint may have been trained on some of the reward images.

    Not where `train` made it from the start in this workspace, which leaves `held_out_count` of them out.
    """
    model = network.settings.model
    checkpoint = resolved_checkpoint(space, model, network.settings.checkpoint)
    if model in OBJECTS:
        return True
    if checkpoint is None or network.dataset is None:
        return False
    if checkpoint != space.trained_checkpoint or not space.trained_record.exists():
        return True
    record = read_json(space.trained_record, format_version=FORMAT_VERSION)
    left_out = held_out(network.dataset).reward
    same = record["held_out_sha256"] == left_out.fingerprint()
    return not same or bool(record["started_from"]) or reward_images > len(left_out)


RESIDUAL = "residual"  # in --keep: the groups that shortcuts add up


def default_grids(
    network: Network, *, multiple: int = 8, min_keep_ratio: float = 0.2, keep: str = ""
) -> list[NDArray[np.int64]]:
    """The widths each group may take. `keep`: groups that stay whole, as patterns of their names separated by commas,
    or "residual": those that more than one layer writes, which shortcuts add up. Raises InvalidConfig."""
    patterns = [pattern for pattern in keep.replace(" ", "").split(",") if pattern]
    whole = named_by([pattern for pattern in patterns if pattern != RESIDUAL], network.groups.names, "channel group")
    grids = []
    for group in network.groups.groups:
        is_whole = group.name in whole or (RESIDUAL in patterns and len(group.producers) > 1)
        lowest = 1.0 if is_whole else min_keep_ratio
        grids.append(grid(group.channels, multiple=multiple, min_keep_ratio=lowest))
    return grids


def named_by(patterns: Iterable[str], names: Sequence[str], kind: str) -> set[str]:
    """The names that patterns of --keep mean. Raises InvalidConfig for a pattern without any; `kind`: of the names."""
    named = set[str]()
    for pattern in patterns:
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise InvalidConfig(f"--keep {pattern!r} names no {kind}", next_step=f"{kind}s: {', '.join(names)}")
        named.update(matching)
    return named
