"""A moving average of a network's weights over the steps of its training."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """`module` holds the exponential moving average of another's parameters and buffers; counters are copied.

    The decay rises to `decay` with the number of steps n as (1 + n) / (10 + n), so that a short training is not held
    back by the weights that it started from.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Takes in the weights of `model` after its step number `steps` (from 1)."""
        weight = 1 - min(self._decay, (1 + steps) / (10 + steps))
        for mine, theirs in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, weight)
            else:
                mine.copy_(theirs)
