"""MACs and parameters of any plan as arithmetic on widths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amc_mobile.channels.groups import ChannelGroups

Widths = NDArray[np.int64]
Costs = NDArray[np.float64]


class CostModel:
    """Costs of the whole network, layers that cannot be cut included. `widths`: (..., groups)."""

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        count = len(groups.groups)
        self._layers = [
            (
                float(np.prod(layer.kernel_size)) * float(np.prod(layer.out_size)),
                layer.in_ids.expression(count),
                layer.out_ids.expression(count),
                # A grouped convolution reads only its share of the input channels.
                layer.groups if layer.kind == "grouped" else 1,
                layer.kind == "depthwise",
            )
            for layer in groups.layers
        ]
        trained = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._fixed_parameters = float(
            sum(np.prod(shape) for name, shape in trained.items() if name not in groups.parameters)
        )
        self._parameters = [
            (
                float(np.prod([n for n, ids in zip(trained[name], dims, strict=True) if ids is None])),
                [ids.expression(count) for ids in dims if ids is not None],
            )
            for name, dims in groups.parameters.items()
            if name in trained
        ]

    def layer_macs(self, widths: Widths) -> Costs:
        """(..., layers): multiply-accumulates of one image in each convolution and linear layer, biases left out."""
        return np.stack([self._macs_of(layer, widths) for layer in self._layers], axis=-1)

    def macs(self, widths: Widths) -> Costs:
        return np.asarray(self.layer_macs(widths).sum(axis=-1))

    def parameters(self, widths: Widths) -> Costs:
        """Trained parameters, batch-norm scales and shifts included."""
        total: Costs = np.full(widths.shape[:-1], self._fixed_parameters)
        for constant, expressions in self._parameters:
            product: Costs = np.full(widths.shape[:-1], constant)
            for offset, factors in expressions:
                product = product * (offset + widths @ factors)
            total = total + product
        return total

    @staticmethod
    def _macs_of(
        layer: tuple[float, tuple[int, Widths], tuple[int, Widths], int, bool], widths: Widths
    ) -> Costs:
        per_pair, (in_offset, in_factors), (out_offset, out_factors), divisor, depthwise = layer
        outputs = out_offset + widths @ out_factors
        inputs = 1 if depthwise else (in_offset + widths @ in_factors) / divisor
        return np.asarray(per_pair * outputs * inputs, dtype=np.float64)
