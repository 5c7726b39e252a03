"""Fine-grained pruning: single weights, those of the smallest magnitude in each layer (Han et al. 2015)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.structure import ChannelGroups, Widths
from amc_mobile.channels.surgery import with_tensors
from amc_mobile.errors import InvalidInput

LINEAR_MIN_DENSITY = 0.02  # linear layers hold many weights and bear more pruning than convolutions
DENSITY_STEPS = 100
BATCH_SIZE = 100  # of what batch norms are estimated on


class MagnitudePruner:
    """Masks the weights of every convolution and linear layer, the first and the last included.

    `names`: the layers, in order of execution; `sizes`, shape (layers,): how many weights each has. Biases and batch
    norms stay whole. A plan says how many weights each layer keeps: the largest in magnitude, the first of equal ones.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        self._model = model
        weights: dict[str, Tensor] = {}
        for layer in groups.layers:
            weight = model.get_parameter(f"{layer.name}.weight")
            if all(weight is not other for other in weights.values()):  # tied or executed twice
                weights[layer.name] = weight
        self.names = tuple(weights)
        self.sizes: Widths = np.array([weight.numel() for weight in weights.values()], dtype=np.int64)
        self._weights = {name: weight.detach() for name, weight in weights.items()}
        self._order = {
            name: weight.abs().flatten().argsort(descending=True, stable=True).int()
            for name, weight in self._weights.items()
        }
        self._other_parameters = sum(p.numel() for p in model.parameters()) - int(self.sizes.sum())

    def parameters(self, kept: Widths) -> NDArray[np.float64]:
        """(...): parameters that are not masked, biases and batch norms included. `kept`: (..., layers)."""
        return np.asarray(kept.sum(axis=-1) + self._other_parameters, dtype=np.float64)

    def masks(self, kept: Widths) -> dict[str, Tensor]:
        """By parameter, which entries stay. `kept`: (layers,)."""
        masks = {}
        for name, count in zip(self.names, kept, strict=True):
            mask = torch.zeros(self._weights[name].numel(), dtype=torch.bool)
            mask[self._order[name][: int(count)].long()] = True
            masks[f"{name}.weight"] = mask.view_as(self._weights[name])
        return masks

    def build(self, kept: Widths) -> nn.Module:
        """A copy of the network in evaluation mode with zeros in place of the weights that go."""
        weights = ((self._model.get_parameter(name), mask) for name, mask in self.masks(kept).items())
        return with_tensors(self._model, ((weight, weight.detach() * mask) for weight, mask in weights)).eval()

    def lost_energy(self, layer: int, kept: Widths) -> NDArray[np.float64]:
        """(n,): the share of a layer's squared weights that goes when it keeps each of `kept` weights."""
        name = self.names[layer]
        squares = self._weights[name].flatten()[self._order[name].long()].double().square().cumsum(0)
        stays = torch.cat([torch.zeros(1, dtype=torch.float64), squares])[torch.from_numpy(kept)]
        return np.asarray((1 - stays / squares[-1].clamp_min(1e-30)).clamp_min(0).numpy())

    def grids(self, min_density: float) -> list[Widths]:
        """The counts of weights that each layer may keep, ascending, 1/DENSITY_STEPS of its weights apart.

        From `min_density` for convolutions, and from LINEAR_MIN_DENSITY or less for linear layers, to all of them.
        """
        grids = []
        for name, size in zip(self.names, self.sizes, strict=True):
            linear = self._weights[name].ndim == 2
            lowest = min(min_density, LINEAR_MIN_DENSITY) if linear else min_density
            densities = np.arange(1, DENSITY_STEPS + 1) / DENSITY_STEPS
            counts = np.ceil(np.append(lowest, densities[densities > lowest]) * size).astype(np.int64)
            grids.append(np.unique(np.maximum(counts, 1)))
        return grids


def hold_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Makes the masked weights of `model` zero and lets no gradient reach them: training then keeps them at zero."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        if parameter.shape != mask.shape:
            raise InvalidInput(f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.mul_(mask)
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)  # type: ignore[no-untyped-call]


@torch.no_grad()
def reestimated(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose batch norms have the mean and variance of their inputs on `images`, normalised (N, C, H, W)."""
    net = copy.deepcopy(model).eval()
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an average over all batches
        norm.train()
    for batch in torch.split(images, BATCH_SIZE):
        if norms and len(batch) > 1:
            net(batch)
    return net.eval()
