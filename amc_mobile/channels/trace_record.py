"""What running a graph on channel ids finds out: layers, the channels of parameters, and which may not be cut."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.fx import Node

from amc_mobile.channels import operators
from amc_mobile.channels.ids import FIXED, ChannelIds, Ids
from amc_mobile.channels.traced import Parameter, TracedLayer, channel_vector
from amc_mobile.errors import UnsupportedLayer


class TraceRecord:
    """Filled node by node. `node`: the present one, which reasons and errors name.

    `parameters`: name -> ids per dimension; `fixed`: ids that may not be cut, with the reason; `has_sized_moves`:
    whether channels were reshaped, sliced or split by explicit sizes; `other_macs`: multiply-accumulates of the whole
    batch outside `layers`.
    """

    node: Node

    def __init__(self) -> None:
        self.ids = ChannelIds()
        self.layers: list[TracedLayer] = []
        self.parameters: dict[str, tuple[Ids | None, ...]] = {}
        self.fixed: list[tuple[Ids, str]] = []
        self.has_sized_moves = False
        self.other_macs = 0

    def outputs_of(self, weight: Parameter, dimension: int, count: int) -> Ids:
        """Fresh ids, or those of the first call where a module is called again."""
        earlier = self.parameters.get(weight.name)
        known = earlier[dimension] if earlier else None
        return known if known is not None else self.ids.fresh(count)

    def note(self, parameter: Parameter, dims: tuple[Ids | None, ...]) -> None:
        """`dims`: per dimension of the parameter the ids along it, None where it holds no channels."""
        earlier = self.parameters.setdefault(parameter.name, dims)
        for old, new in zip(earlier, dims, strict=True):
            if old is not None and new is not None and old is not new:
                self.ids.unite(old, new)

    def fix(self, x: Tensor, why: str) -> None:
        """The channels in `x` may not be cut."""
        self.fixed.append((np.unique(x.numpy()), why))

    def vector(self, x: Tensor) -> Ids:
        """The ids along dimension 1. Where they differ by position, they are fixed: then every position is alike."""
        vector = channel_vector(x)
        if vector is None:
            self.fix(x, f"arranged differently by position when read by {self.node.name}")
            vector = np.full(x.shape[1], FIXED, dtype=np.int64)
        return vector

    def unsupported(self, why: str) -> UnsupportedLayer:
        """The error that names the module of the present node."""
        next_step = "write the module with supported operators, or use a network without it"
        return UnsupportedLayer(operators.module_path(self.node), why, next_step=next_step)
