"""Backward elimination: a nested order of channels by what the least-squares fit loses without them.

With P the inverse of the Gram matrix and W the weights refitted on the channels that are left, dropping the block J
raises the squared error by tr(W_J' P_JJ^-1 W_J); the downdates P -= P_J P_JJ^-1 P_J' and W -= P_J P_JJ^-1 W_J
keep both exact without another inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amc_mobile.channels.ids import Ids

COMPACT_BELOW = 0.75  # share of live columns under which the matrices are copied to their live part


class Fit:
    """One layer's least-squares fit while channels are removed.

    `inverse`: (n, n), the rows and columns of the inverse Gram matrix that belong to the group, channel by channel,
    the same number for each; other columns of the layer stay in the fit and need not be given. `weight`: (n,
    outputs). `norm`: errors are divided by it. Both tensors are changed in place.
    """

    def __init__(self, inverse: Tensor, weight: Tensor, channels: int, norm: float) -> None:
        self._inverse, self._weight, self._norm = inverse, weight, norm
        self._block = len(weight) // channels
        self._place = np.arange(channels)  # of each channel in the matrices; -1 once it is gone
        self._alive = torch.ones(channels, dtype=torch.bool)  # by place

    def increases(self) -> np.ndarray:
        """(channels,): the error that dropping each would add; infinite for those that are gone."""
        block, places = self._block, len(self._alive)
        weight = self._weight.view(places, block, -1)
        blocks = self._inverse.view(places, block, places, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        if block == 1:
            raised = weight.square().sum((1, 2)) / torch.where(self._alive, blocks[:, 0, 0], 1.0)
        else:
            blocks = torch.where(self._alive[:, None, None], blocks, torch.eye(block, dtype=blocks.dtype))
            raised = torch.linalg.solve(blocks, weight @ weight.mT).diagonal(dim1=1, dim2=2).sum(1)
        here = (raised / self._norm).numpy()
        return np.where(self._place >= 0, here[self._place], np.inf)

    def remove(self, channel: int) -> None:
        place, block = int(self._place[channel]), self._block
        rows = slice(place * block, (place + 1) * block)
        across = self._inverse[:, rows].clone()
        factor = torch.linalg.solve(across[rows], torch.cat([across.T, self._weight[rows]], 1))
        self._inverse.addmm_(across, factor[:, : len(self._inverse)], alpha=-1)
        self._weight.addmm_(across, factor[:, len(self._inverse) :], alpha=-1)
        self._weight[rows] = 0
        self._alive[place] = False
        self._place[channel] = -1
        if self._alive.float().mean() < COMPACT_BELOW:
            self._compact()

    def _compact(self) -> None:
        live = self._alive.repeat_interleave(self._block).nonzero().flatten()
        self._inverse = self._inverse[live][:, live].contiguous()
        self._weight = self._weight[live].contiguous()
        renumbered = np.cumsum(self._alive.numpy()) - 1
        self._place = np.where(self._place >= 0, renumbered[self._place], -1)
        self._alive = torch.ones(int(self._alive.sum()), dtype=torch.bool)


def eliminate(fits: Sequence[Fit], channels: int) -> Ids:
    """All channels, most important first: each next to last one adds least to the sum of the fits' errors."""
    gone: list[int] = []
    left = set(range(channels))
    while len(left) > 1:
        channel = int(np.sum([fit.increases() for fit in fits], axis=0).argmin())
        for fit in fits:
            fit.remove(channel)
        gone.append(channel)
        left.remove(channel)
    return np.array([*left, *reversed(gone)], dtype=np.int64)
