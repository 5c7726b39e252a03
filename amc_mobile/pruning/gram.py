"""Gram matrices: all that channel choice and reconstruction need to know of a layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from amc_mobile.channels.structure import ChannelGroups, DimensionIds, Ids, Layer
from amc_mobile.channels.trace import operator_name
from amc_mobile.models.task import LabelledImages
from amc_mobile.pruning.least_squares import Matrices, check_finite
from amc_mobile.pruning.program import Execution, LayerStep, Program, arguments, batches_within

MAX_COLUMNS = 8192  # one matrix of this size takes 0.5 GB, and one elimination about a minute
ROWS_PER_COLUMN = 8  # with fewer rows per unknown the weights follow the sample instead of the layer
Pair = tuple[int, int]


def sample_positions(images: int, available: int, count: int, generator: torch.Generator) -> Tensor:
    """(images, min(count, available)) different output positions for each image, as flat indices."""
    if count >= available:
        return torch.arange(available).expand(images, available)
    return torch.rand((images, available), generator=generator).topk(count, dim=1).indices


def output_positions(node: Node) -> int:
    """Output positions per image: height x width of a convolution, or the rows that a linear layer maps."""
    shape = node.meta["val"].shape
    if operator_name(node.target) != "linear":
        return int(shape[2] * shape[3])
    return int(torch.Size(shape[1:-1]).numel())


def as_columns(weight: Tensor, *, transposed: bool) -> Tensor:
    """(columns, outputs) of a layer's weight: all kernel positions of the first input, then of the next one.

    `transposed`: whether the layer is a transposed convolution, whose weight has its inputs first.
    """
    return weight.movedim(1, -1).flatten(0, -2) if transposed else weight.flatten(1).T


def as_weight(columns: Tensor, shape: Sequence[int], *, transposed: bool) -> Tensor:
    """The weight of this shape whose `as_columns` are `columns`."""
    if transposed:
        return columns.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return columns.T.reshape(tuple(shape))


def read_at(node: Node, value: Tensor, positions: Tensor) -> Tensor:
    """(images x positions, columns): the inputs of a layer's sampled outputs, columns as in `weight.flatten(1)`.

    `node`: the layer, a convolution of one group, transposed or not, or a linear layer; `value`: its whole input.
    Where a kernel position of a transposed convolution meets no input, the column is 0.
    """
    image = torch.arange(len(value))[:, None]
    if operator_name(node.target) == "linear":
        return value.reshape(len(value), -1, value.shape[-1])[image, positions].flatten(0, 1)
    given = arguments(node)
    kernel = given["weight"].meta["val"].shape[2:]
    stride, dilation = _pair(given["stride"]), _pair(given["dilation"])
    if operator_name(node.target) == "conv_transpose2d":
        return _read_transposed(value, positions, node.meta["val"].shape[3], kernel, stride, dilation, given["padding"])
    vertical, horizontal = _padding(given["padding"], kernel, dilation)
    if vertical or horizontal:
        value = functional.pad(value, (horizontal, horizontal, vertical, vertical))
    width = node.meta["val"].shape[3]
    y = (positions // width * stride[0])[:, :, None, None] + (torch.arange(kernel[0]) * dilation[0])[:, None]
    x = (positions % width * stride[1])[:, :, None, None] + torch.arange(kernel[1]) * dilation[1]
    windows = value.permute(0, 2, 3, 1)[image[:, :, None, None], y, x]  # (images, positions, kh, kw, channels)
    return windows.permute(0, 1, 4, 2, 3).reshape(positions.numel(), -1)


def _read_transposed(
    value: Tensor, positions: Tensor, width: int, kernel: Sequence[int], stride: Pair, dilation: Pair, padding: Any
) -> Tensor:
    """Output y takes input i through kernel position k where y = i x stride - padding + k x dilation."""
    pads, image = _pair(padding), torch.arange(len(value))[:, None, None, None]
    places, valid = [], torch.ones((), dtype=torch.bool)
    for axis, output in enumerate((positions // width, positions % width)):
        reach = output[..., None] + pads[axis] - torch.arange(kernel[axis]) * dilation[axis]
        place = reach.div(stride[axis], rounding_mode="floor")
        meets = (reach % stride[axis] == 0) & (place >= 0) & (place < value.shape[2 + axis])
        shape = (..., slice(None), None) if axis == 0 else (..., None, slice(None))
        places.append(place.clamp(0, value.shape[2 + axis] - 1)[shape])
        valid = valid & meets[shape]
    windows = value.permute(0, 2, 3, 1)[image, places[0], places[1]] * valid[..., None]
    return windows.permute(0, 1, 4, 2, 3).reshape(positions.numel(), -1)


def written_at(value: Tensor, positions: Tensor, *, channels_last: bool) -> Tensor:
    """(images x positions, channels) of a layer's output, or of a tensor of its shape, at the sampled positions.

    `channels_last`: whether channels are the last dimension (a linear layer's output) or the second.
    """
    flat = value.reshape(len(value), -1, value.shape[-1]) if channels_last else value.flatten(2).permute(0, 2, 1)
    return flat[torch.arange(len(value))[:, None], positions].flatten(0, 1)


def _padding(padding: str | list[int] | int, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    """Added on both sides, vertically and horizontally. Channel groups refuse a "same" that differs by side."""
    if padding == "same":
        return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
    return (0, 0) if isinstance(padding, str) else _pair(padding)


def _pair(value: list[int] | int) -> Pair:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


@dataclass(frozen=True, eq=False)
class LayerGram:
    """Moments of what a layer reads. A column is one input of one output position, as in `rows.as_columns`."""

    in_ids: DimensionIds  # of the input channels; each has `block` columns
    block: int  # kernel height x width
    weight: Tensor  # (columns, outputs), float64
    moment: Tensor  # (columns, columns): X'X / rows
    mean: Tensor  # (columns,)
    rows: int
    output_scale: Tensor  # (outputs,): the factor of the batch norm that follows, or 1
    transposed: bool = False  # a transposed convolution, whose weight has its inputs first

    @cached_property
    def projection(self) -> Tensor:
        """(columns, outputs): X'Y / rows for the layer's own outputs Y."""
        return self.moment @ self.weight

    @cached_property
    def output_variance(self) -> float:
        """Sum over outputs of their variance behind the batch norm."""
        second = (self.weight * self.projection).sum(0)
        centred = second - (self.mean @ self.weight) ** 2
        return float((centred * self.output_scale**2).sum().clamp_min(1e-30))

    def columns(self, channels: Ids) -> Tensor:
        """The columns of input channels (positions along the weight's second dimension), in that order."""
        return torch.from_numpy((channels[:, None] * self.block + np.arange(self.block)).ravel())


@dataclass(frozen=True, eq=False)
class GramStatistics:
    """By layer; layers that read no channel group, or that have more than MAX_COLUMNS columns, are not in it."""

    layers: Mapping[str, LayerGram]
    matrices: Matrices = field(default_factory=Matrices)  # where what is derived from them may be kept, too


def readable_layers(groups: ChannelGroups) -> dict[str, Layer]:
    """Convolutions of one group, transposed ones too, and linear layers whose inputs can be cut, by name."""
    kinds = ("conv", "linear", "transposed")
    return {la.name: la for la in groups.layers if la.kind in kinds and la.groups == 1 and not la.in_ids.is_fixed}


@torch.no_grad()
def collect_gram(
    model: nn.Module,
    groups: ChannelGroups,
    images: Tensor | LabelledImages,
    *,
    positions: int = 10,
    seed: int = 0,
    matrices: Matrices | None = None,
) -> GramStatistics:
    """Runs the original network on `images`: normalised (N, C, H, W), or a set that is normalised batch by batch.

    `positions`: output positions drawn per image and layer; more where a layer has so many columns that the rows
    would not reach ROWS_PER_COLUMN for each.

    Memory: 8 bytes x columns^2 for each layer, and as much again once it is factorised for the search (MobileNet-V1:
    0.05 GB in all; VGG-16 and ResNet-50: 2 to 3 GB, a 3 x 3 convolution of 512 channels alone 0.17 GB). All of them
    are kept in `matrices`, which spills to a file what is over its limit. Also in memory: the activations of
    one batch, at most BATCH_SIZE images and about ACTIVATION_BYTES, and up to four matrices of the largest layer
    while that layer is worked on.
    """
    batches, program = batches_within(model, images)
    matrices = matrices or Matrices()
    layers = readable_layers(groups)
    steps = {
        step.node: step for step in program.steps if step.layer in layers and columns_of(program, step) <= MAX_COLUMNS
    }
    sums = {step.layer: _Sums(program, step, matrices) for step in steps.values()}
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        run = Execution(program, lambda batch=batch: batch)  # type: ignore[misc]
        while (node := run.pending()) is not None:
            if node in steps:
                columns = len(sums[steps[node].layer].weight)
                per_image = max(positions, -(-ROWS_PER_COLUMN * columns // len(images)))
                drawn = sample_positions(len(batch), output_positions(node), per_image, generator)
                sums[steps[node].layer].add(read_at(node, run.value(steps[node].input), drawn))
            run.step()
    return GramStatistics({name: total.result(layers[name]) for name, total in sums.items()}, matrices)


class _Sums:
    """Running sums of one layer; float32 products of a batch, added up in float64."""

    def __init__(self, program: Program, step: LayerStep, matrices: Matrices) -> None:
        self.weight = as_columns(program.state[f"{step.layer}.weight"], transposed=step.is_transposed).double()
        self.transposed = step.is_transposed
        self.scale = (
            torch.ones(self.weight.shape[1]) if step.norm is None else step.norm.scale(program.state)
        ).double()
        self.moment = matrices.zeros(len(self.weight), len(self.weight))
        self.total = torch.zeros(len(self.weight), dtype=torch.float64)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        self.moment += rows.T @ rows
        self.total += rows.sum(0)
        self.rows += len(rows)

    def result(self, layer: Layer) -> LayerGram:
        """Raises NotFinite."""
        check_finite(layer.name, self.moment, self.weight, self.scale)
        return LayerGram(
            layer.in_ids,
            len(self.weight) // len(layer.in_ids),
            self.weight.contiguous(),
            self.moment.div_(self.rows),  # in place: it is the largest thing there is
            self.total / self.rows,
            self.rows,
            self.scale,
            self.transposed,
        )


def columns_of(program: Program, step: LayerStep) -> int:
    """How many columns the rows of a layer have."""
    weight = program.state[f"{step.layer}.weight"]
    return weight.numel() // weight.shape[1 if step.is_transposed else 0]


def group_channels(ids: DimensionIds, group: int, channels: int) -> Ids | None:
    """(channels, times): the places of each channel of a group along a dimension; None if not equally often."""
    inside = np.flatnonzero(ids.group == group)
    if len(inside) == 0 or len(inside) % channels:
        return None
    ordered = inside[np.argsort(ids.position[inside], kind="stable")].reshape(channels, -1)
    return ordered if (ids.position[ordered] == np.arange(channels)[:, None]).all() else None
