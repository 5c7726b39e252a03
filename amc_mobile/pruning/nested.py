"""Least squares for every prefix of an order of channels from one factorisation.

With A = X'X / rows + ridge and B = X'Y / rows + ridge W, rows in the order of importance, the Cholesky factor of a
leading block of A is the leading block of its factor L, and the forward solution Z = L^-1 B is nested in the same way:
the weights for the first n columns are L_n^-T Z_n, one triangular solve. The ridge is `ridge` times the mean diagonal
over ALL columns and holds the weights to where they are, as in `least_squares.corrected`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc_mobile.channels.ids import Ids
from amc_mobile.pruning.gram import LayerGram
from amc_mobile.pruning.least_squares import factorised
from amc_mobile.pruning.matrices import Matrices


class NestedSolver:
    """For a layer that reads one channel group. Factorised on first use: columns^2 x 8 bytes go to `matrices`."""

    def __init__(self, gram: LayerGram, inputs: Ids, ridge: float, matrices: Matrices) -> None:
        """`inputs`: all positions along the layer's inputs in the order in which they are added."""
        self._gram, self._ridge, self._matrices = gram, ridge, matrices
        self._columns = gram.columns(inputs)

    @cached_property
    def _factor(self) -> tuple[Tensor, Tensor]:
        """L' (upper), and Z; sets what was added to the diagonal."""
        moment = self._gram.moment[self._columns][:, self._columns]
        factor = factorised(moment, self._ridge)
        weight = self._gram.weight[self._columns]
        # A - moment is what factorising added: the ridge may have had to grow.
        self._added = float((factor[0] @ factor[0]) - moment[0, 0])
        right = self._gram.projection[self._columns] + self._added * weight
        factor = self._matrices.keep(factor)
        return factor.T, torch.linalg.solve_triangular(factor, right, upper=False)

    def relative_errors(self) -> NDArray[np.float64]:
        """(inputs + 1,): by how many inputs stay, the least of squared error and ridge penalty over the output's
        variance, behind the batch norm; 0 with all of them. One pass gives every prefix: the explained part adds up.
        """
        _, forward = self._factor
        scale = self._gram.output_scale.square()
        weight = self._gram.weight[self._columns]
        per_column = (forward.square() - self._added * weight.square()) @ scale
        explained = per_column.reshape(-1, self._gram.block).sum(1).cumsum(0)
        left = (explained[-1] - torch.cat([torch.zeros(1, dtype=torch.float64), explained])).clamp_min(0)
        return np.asarray(left.numpy() / self._gram.output_variance)

    def solve(self, inputs: int) -> Tensor:
        """(kept columns, outputs), float32, columns in their original order.

        `inputs`: how many input channels the first channels of the order occupy.
        """
        upper, forward = self._factor
        count = inputs * self._gram.block
        solved: Tensor = torch.linalg.solve_triangular(upper[:count, :count], forward[:count], upper=True)
        return solved[torch.argsort(self._columns[:count])].float()
