"""MACs and parameters of any plan as arithmetic on widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc_mobile.channels.structure import ChannelGroups, DimensionIds

Widths = NDArray[np.int64]
Costs = NDArray[np.float64]


class CostModel:
    """Costs of the whole network, layers that cannot be cut included. `widths`: (..., groups)."""

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        count = len(groups.groups)
        layers = groups.layers
        self._other_macs = groups.other_macs
        self._macs = _Products(
            # A grouped convolution reads only its share of the input channels.
            np.array(
                [layer.macs_per_channel_pair / (layer.groups if layer.kind == "grouped" else 1) for layer in layers]
            ),
            [layer.out_ids for layer in layers],
            [None if layer.kind == "depthwise" else layer.in_ids for layer in layers],
            count,
        )
        trained = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        shapes = {name: shape for name, shape in trained.items() if name in groups.parameters}
        self._fixed_parameters = float(sum(np.prod(shape) for name, shape in trained.items() if name not in shapes))
        channels = [[ids for ids in groups.parameters[name] if ids is not None] for name in shapes]
        rest = [
            np.prod([n for n, ids in zip(shape, groups.parameters[name], strict=True) if ids is None])
            for name, shape in shapes.items()
        ]
        first, second = [ids[0] for ids in channels], [ids[1] if len(ids) > 1 else None for ids in channels]
        self._sizes = _Products(np.array(rest, dtype=np.float64), first, second, count)

    def layer_macs(self, widths: Widths) -> Costs:
        """(..., layers): multiply-accumulates of one image in each convolution and linear layer, biases left out."""
        return self._macs(widths)

    def macs(self, widths: Widths) -> Costs:
        """(...): multiply-accumulates of one image in the whole network; batch normalisation is folded away.

        Products of two activations count as well, as they do in the kernels of the exported file.
        """
        return np.asarray(self._macs(widths).sum(axis=-1) + self._other_macs)

    def parameters(self, widths: Widths) -> Costs:
        """(...): trained parameters, batch-norm scales and shifts included."""
        return np.asarray(self._sizes(widths).sum(axis=-1) + self._fixed_parameters)


class _Products:
    """Per item a constant times the surviving positions of one or two dimensions. Exact up to 2**53."""

    def __init__(
        self,
        constants: Costs,
        first: Sequence[DimensionIds | None],
        second: Sequence[DimensionIds | None],
        groups: int,
    ) -> None:
        self._constants = constants
        self._dimensions = [_linear_forms(ids, groups) for ids in (first, second)]

    def __call__(self, widths: Widths) -> Costs:
        result = self._constants
        for offsets, factors in self._dimensions:
            result = result * (offsets + np.asarray(widths, dtype=np.float64) @ factors)
        return result


def _linear_forms(dimensions: Sequence[DimensionIds | None], groups: int) -> tuple[Costs, Costs]:
    """Offsets (items,) and factors (groups, items) that give each dimension's length; 1 for None."""
    offsets = np.ones(len(dimensions))
    factors = np.zeros((groups, len(dimensions)))
    for item, ids in enumerate(dimensions):
        if ids is not None:
            offsets[item], factors[:, item] = ids.expression(groups)
    return offsets, factors
