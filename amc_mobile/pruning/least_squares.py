"""Ridge-stabilised least squares on Gram matrices."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_RIDGE = 1e-4  # of the mean diagonal


def ridged(moment: Tensor, ridge: float) -> Tensor:
    """`moment` (n, n) with `ridge` times its mean diagonal added to the diagonal; a copy.

    Inputs that are zero everywhere leave a zero matrix, which gets ones: their weights then stay as they are.
    """
    added = ridge * float(moment.diagonal().mean())
    result = moment.clone()
    result.diagonal().add_(added if added > 0 else 1.0)
    return result


def corrected(moment: Tensor, gradient: Tensor, ridge: float) -> Tensor:
    """The (n, outputs) change of weights that solves (moment + ridge) change = gradient.

    `gradient`: X'(Y - X W) / rows for the weights W now in place. A ridge on the change, not on the weights, leaves
    them as they are in directions that the sample says nothing about.
    """
    factor = torch.linalg.cholesky(ridged(moment, ridge))
    return torch.cholesky_solve(gradient, factor)
