"""Channel choices on what each channel adds to its readers' outputs: X_i W_i for channel i, all from Gram matrices.

With Q_ij = tr(W_i' X_i'X_j W_j), summed over the readers of a group, the squared error of scaling every channel's
contribution by beta_i is a quadratic form in beta: no images are needed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import lars_path_gram

from amc_mobile.channels.ids import Ids
from amc_mobile.pruning.gram import LayerGram

Floats = NDArray[np.float64]
LASSO_RIDGE = 1e-6  # of the mean diagonal: channels whose contributions are equal must not make the path degenerate


@dataclass(frozen=True, eq=False)
class Contributions:
    """`products`: (channels, channels), Q; `with_target`: (channels,), tr(W_i' X_i' Y) for the readers' outputs Y."""

    products: Floats
    with_target: Floats


def contributions(readers: Sequence[tuple[LayerGram, Ids]]) -> Contributions:
    """`readers`: layers and where each channel stands along their inputs, (channels, times).

    Every reader counts relative to the variance of its output, behind its batch norm.
    """
    channels = len(readers[0][1])
    products, target = np.zeros((channels, channels)), np.zeros(channels)
    for gram, places in readers:
        columns = gram.columns(places.ravel())
        weight = gram.weight[columns] * gram.output_scale
        entries = (gram.moment[columns][:, columns] * (weight @ weight.T)).view(
            channels, -1, channels, len(columns) // channels
        )
        products += (entries.sum((1, 3)) / gram.output_variance).numpy()
        toward = (gram.projection[columns] * gram.output_scale * weight).sum(1).view(channels, -1).sum(1)
        target += (toward / gram.output_variance).numpy()
    return Contributions(products, target)


def greedy_removal(found: Contributions) -> Ids:
    """Most important first: next to last goes the channel whose loss, with those gone before, disturbs the readers'
    outputs least, their weights left as they are (Luo et al. 2017, ThiNet)."""
    cost = found.products.diagonal().copy()  # of losing a channel as well: Q_ii + 2 x the sum of Q_ij over those gone
    gone: list[int] = []
    for _ in range(len(cost)):
        channel = int(cost.argmin())
        gone.append(channel)
        cost += 2 * found.products[channel]
        cost[channel] = np.inf
    return np.array(gone[::-1], dtype=np.int64)


def lasso(found: Contributions) -> Ids:
    """Most important first: in the order in which channels enter as the penalty on sum |beta_i| falls (He et al. 2017).

    The published method searches the penalty that leaves n channels; along the exact path those are the first n to
    enter, unless one has left again. Channels that never enter come last, the smallest contribution at the very end.
    """
    size = len(found.with_target)
    ridge = LASSO_RIDGE * max(float(found.products.diagonal().mean()), 1e-30)
    _, _, path = lars_path_gram(
        found.with_target, found.products + ridge * np.eye(size), n_samples=1, method="lasso", max_iter=8 * size
    )
    entered = np.where((path != 0).any(axis=1), (path != 0).argmax(axis=1), path.shape[1])
    return np.lexsort((-found.products.diagonal(), entered)).astype(np.int64)


def matching_pursuit(problems: Sequence[tuple[LayerGram, Ids, torch.Tensor]]) -> Ids:
    """Most important first: orthogonal matching pursuit on blocks of columns, each channel one block.

    Next comes the channel that explains most of what the least squares on the chosen ones leave, taken alone; then
    all weights are solved again. `problems`: readers as in `contributions`, each with its ridged moment (columns,
    columns). Columns of other groups are chosen from the start.
    """
    pursuits = [_Pursuit(*problem) for problem in problems]
    left = list(range(len(problems[0][1])))
    order = []
    while left:
        channel = left[int(np.sum([p.explained(left) for p in pursuits], axis=0).argmax())]
        for pursuit in pursuits:
            pursuit.take(channel)
        order.append(channel)
        left.remove(channel)
    return np.array(order, dtype=np.int64)


class _Pursuit:
    """One reader: the residual's products with all columns, and the columns made orthogonal to the chosen ones."""

    def __init__(self, gram: LayerGram, places: Ids, moment: torch.Tensor) -> None:
        self._norm = gram.output_variance
        self._columns = gram.columns(places.ravel()).view(len(places), -1)
        blocks = torch.stack([moment[block][:, block] for block in self._columns])
        self._blocks = torch.linalg.cholesky(blocks)
        self._left = moment.clone()  # products of what the chosen columns cannot explain
        self._residual = moment @ (gram.weight * gram.output_scale)
        others = torch.ones(len(moment), dtype=torch.bool)
        others[self._columns.ravel()] = False
        if others.any():
            self._project(others.nonzero().flatten())

    def explained(self, channels: Sequence[int]) -> Floats:
        whitened = torch.linalg.solve_triangular(
            self._blocks[channels], self._residual[self._columns[channels]], upper=False
        )
        return np.asarray(whitened.square().sum((1, 2)).numpy() / self._norm)

    def take(self, channel: int) -> None:
        self._project(self._columns[channel])

    def _project(self, block: torch.Tensor) -> None:
        across = self._left[:, block].clone()
        factor = torch.linalg.solve(across[block], torch.cat([across.T, self._residual[block]], 1))
        self._left.addmm_(across, factor[:, : len(self._left)], alpha=-1)
        self._residual.addmm_(across, factor[:, len(self._left) :], alpha=-1)
