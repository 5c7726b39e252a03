"""What running a graph on channel ids finds out: layers, the channels of parameters, and which may not be cut."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.fx import Node

from amc_mobile.channels import operators
from amc_mobile.channels.ids import FIXED, ChannelIds, Ids
from amc_mobile.channels.structure import KeptGroup
from amc_mobile.channels.traced import Parameter, TracedLayer, channel_vector


class NoRuleError(Exception):
    """An operator, or a use of one, that no rule covers; says why. What it reads stays whole."""


class TraceRecord:
    """Filled node by node. `node`: the present one, which reasons and errors name.

    `parameters`: name -> ids per dimension; `fixed`: ids that may not be cut, with the reason; `kept`: layers that are
    left as they are; `has_sized_moves`: whether channels were reshaped, sliced or split by explicit sizes;
    `other_macs`: multiply-accumulates of the whole batch outside `layers`. `layer_modules`: paths of the modules that
    hold the weight of a layer.
    """

    node: Node

    def __init__(self, layer_modules: frozenset[str]) -> None:
        self.layer_modules = layer_modules
        self.ids = ChannelIds()
        self.layers: list[TracedLayer] = []
        self.parameters: dict[str, tuple[Ids | None, ...]] = {}
        self.fixed: list[tuple[Ids, str]] = []
        self.kept: list[KeptGroup] = []
        self._whole: list[tuple[Parameter, str]] = []
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

    def keep(self, parameter: Parameter, why: str) -> None:
        """No dimension of `parameter` may be cut, wherever else the network reads it."""
        self._whole.append((parameter, why))

    def all_fixed(self) -> list[tuple[Ids, str]]:
        """`fixed` and the channels along the dimensions of parameters that are kept. Complete after the last node."""
        held = [(self.parameters.get(parameter.name, ()), why) for parameter, why in self._whole]
        return self.fixed + [(ids, why) for dims, why in held for ids in dims if ids is not None]

    def vector(self, x: Tensor) -> Ids:
        """The ids along dimension 1. Where they differ by position, they are fixed: then every position is alike."""
        vector = channel_vector(x)
        if vector is None:
            self.fix(x, f"arranged differently by position when read by {self.node.name}")
            vector = np.full(x.shape[1], FIXED, dtype=np.int64)
        return vector

    @property
    def operator(self) -> str:
        """The present node for a reason, like `operator cumsum (middle.1)`."""
        module = operators.module_path(self.node)
        return f"operator {operators.operator_name(self.node.target)}" + (f" ({module})" if module else "")
