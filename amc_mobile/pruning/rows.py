"""A layer's least-squares rows: what it reads and writes at sampled output positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from amc_mobile.channels.operators import operator_name
from amc_mobile.pruning.program import arguments

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
