"""What stands for tensors while a graph runs on channel ids, and how id tensors are read.

An id tensor has the shape of the activation it stands for and holds a channel id at every position. Most are expanded
from one vector of ids (strides of 0), which makes looking at them cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_mobile.channels.ids import Ids


@dataclass(frozen=True)
class Parameter:
    """A parameter, buffer or constant of the network: its name and shape stand in for its values."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TracedLayer:
    """One execution of a convolution or linear layer, with the ids of its input and output channels."""

    name: str  # module path
    transposed: bool
    in_ids: Ids
    out_ids: Ids
    weight_shape: tuple[int, ...]
    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    has_bias: bool


def channel_vector(x: Tensor) -> Ids | None:
    """The ids along dimension 1, or None where they are not the same at every position of the other dimensions."""
    for dim in range(x.ndim):
        if dim != 1 and x.shape[dim] > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    return rows[0].numpy().copy() if bool((rows == rows[0]).all()) else None


def spread(vector: Ids, shape: tuple[int, ...]) -> Tensor:
    """An id tensor of `shape` with `vector` along dimension 1 at every position."""
    return torch.from_numpy(vector).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)


def varying_dimensions(x: Tensor) -> list[int]:
    """The dimensions along which channel ids change."""
    for dim in range(x.ndim):
        if x.stride(dim) == 0:
            x = x.narrow(dim, 0, min(1, x.shape[dim]))
    return [d for d in range(x.ndim) if x.shape[d] > 1 and not bool((x == x.narrow(d, 0, 1)).all())]
