"""Ridge-stabilised least squares on Gram matrices, and where large matrices are kept."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amc_mobile.errors import NotFinite

SHARE = 0.5  # of the memory that is available; the rest is for one matrix's inverse, and for activations
UNKNOWN_BYTES = 2 * 2**30  # where the system does not tell


class Matrices:
    """Hands out float64 tensors. `limit_bytes`: in memory at most, all of them together; None: half of what is free.

    Those that do not fit are mapped from unnamed files in `folder` (None: the system's temporary folder): the system
    keeps in memory what it has room for. The numbers are the same either way, bit by bit. What was
    handed out counts as long as this object lives; a `branch` is for what is given up earlier.
    """

    def __init__(self, limit_bytes: int | None = None, folder: Path | None = None) -> None:
        self._free = int(available_bytes() * SHARE) if limit_bytes is None else limit_bytes
        self._folder = folder
        self.spilled_bytes = 0

    def branch(self) -> Matrices:
        """Another one with the room that is left here; what it hands out does not count here."""
        return Matrices(self._free, self._folder)

    def zeros(self, *shape: int) -> Tensor:
        size = math.prod(shape) * 8
        if size <= self._free:
            self._free -= size
            return torch.zeros(shape, dtype=torch.float64)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self.spilled_bytes += size
        with tempfile.TemporaryFile(dir=self._folder) as file:  # the map holds it open
            if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here, and later the end of the process
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, dtype=np.float64, mode="w+", shape=shape))

    def keep(self, matrix: Tensor) -> Tensor:
        """`matrix` itself, or a copy in a file where there is no room for it."""
        if matrix.nbytes <= self._free:
            self._free -= matrix.nbytes
            return matrix
        return self.zeros(*matrix.shape).copy_(matrix)


def available_bytes() -> int:
    """Memory that this process may still take: the system's and, in a container, the container's."""
    limits_bytes = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits_bytes.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            limits_bytes.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass  # another system, or an older container: what was limits_bytes so far
    return max(min(limits_bytes), 0) if limits_bytes else UNKNOWN_BYTES


DEFAULT_RIDGE = 1e-4  # of the mean diagonal
RIDGE_FACTORS = (1.0, 10.0, 100.0, 1e3, 1e4)


def ridged(moment: Tensor, ridge: float) -> Tensor:
    """`moment` (n, n) with `ridge` times its mean diagonal added to the diagonal; a copy.

    Inputs that are zero everywhere leave a zero matrix, which gets ones: their weights then stay as they are.
    """
    added = ridge * float(moment.diagonal().mean())
    result = moment.clone()
    result.diagonal().add_(added if added > 0 else 1.0)
    return result


def factorised(moment: Tensor, ridge: float) -> Tensor:
    """The lower Cholesky factor of the ridged moment.

    Moments are sums of float32 products: where rounding leaves one indefinite, the ridge grows until it is not.
    Raises NotFinite, since no ridge makes NaN definite.
    """
    check_finite("", moment)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(ridged(moment, ridge))
    while int(failed) != 0:
        ridge = max(ridge * 10, 1e-12)
        factor, failed = torch.linalg.cholesky_ex(ridged(moment, ridge))
    return factor


def check_finite(layer: str, *tensors: Tensor) -> None:
    """Raises NotFinite, naming the layer, where a value of one of its tensors is NaN or infinite."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise NotFinite(layer)


def corrected(moment: Tensor, gradient: Tensor, ridge: float) -> Tensor:
    """The (n, outputs) change of weights that solves (moment + ridge) change = gradient.

    `gradient`: X'(Y - X W) / rows for the weights W now in place. A ridge on the change, not on the weights, leaves
    them as they are in directions that the sample says nothing about.
    """
    return torch.cholesky_solve(gradient, factorised(moment, ridge))


class Moments:
    """What least squares needs to know of rows X and residuals R = Y - X W; float32 products, added up in float64."""

    def __init__(self, columns: int, outputs: int) -> None:
        self.square = torch.zeros(columns, columns, dtype=torch.float64)
        self.product = torch.zeros(columns, outputs, dtype=torch.float64)
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self.residual_mean = torch.zeros(outputs, dtype=torch.float64)
        self.rows = 0

    @property
    def is_finite(self) -> bool:
        return bool(self.square.isfinite().all()) and bool(self.product.isfinite().all())

    def add(self, rows: Tensor, residuals: Tensor) -> None:
        self.square += rows.T @ rows
        self.product += rows.T @ residuals
        self.mean += rows.sum(0)
        self.residual_mean += residuals.sum(0)
        self.rows += len(rows)

    def __add__(self, other: Moments) -> Moments:
        total = Moments(*self.product.shape)
        for name in ("square", "product", "mean", "residual_mean", "rows"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def fit(self, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """(change of the weights (columns, outputs), change of the intercept (outputs,))"""
        square, product = self.square / self.rows, self.product / self.rows
        mean, residual_mean = self.mean / self.rows, self.residual_mean / self.rows
        if not intercept:
            return corrected(square, product, ridge), torch.zeros_like(residual_mean)
        centred = product - torch.outer(mean, residual_mean)
        change = corrected(square - torch.outer(mean, mean), centred, ridge)
        return change, residual_mean - mean @ change

    def gain(self, change: Tensor, intercept: Tensor) -> Tensor:
        """(outputs,): by how much a change lowers the mean squared residual on these rows; negative if it does not."""
        explained = 2 * (change * self.product).sum(0) + 2 * intercept * self.residual_mean
        cost = (change * (self.square @ change)).sum(0) + 2 * intercept * (self.mean @ change)
        return (explained - cost) / self.rows - intercept**2


class WideRows(Moments):
    """For layers whose X'X would not fit in memory: keeps the rows, of which there have to be few.

    The ridge solution is a combination of the rows: change = X' (X X' / rows + ridge)^-1 R / rows.
    """

    def __init__(self, columns: int, outputs: int) -> None:
        self._shape, self._parts, self.rows = (columns, outputs), list[tuple[Tensor, Tensor]](), 0

    @property
    def is_finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for part in self._parts for tensor in part)

    def add(self, rows: Tensor, residuals: Tensor) -> None:
        self._parts.append((rows, residuals))
        self.rows += len(rows)

    def __add__(self, other: Moments) -> Moments:
        assert isinstance(other, WideRows)
        total = WideRows(*self._shape)
        total._parts, total.rows = self._parts + other._parts, self.rows + other.rows
        return total

    def fit(self, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
        rows, residuals = (torch.cat(tensors) for tensors in zip(*self._parts, strict=True))
        mean = rows.mean(0) if intercept else torch.zeros(self._shape[0])
        residual_mean = residuals.mean(0) if intercept else torch.zeros(self._shape[1])
        rows = rows - mean
        kernel = (rows @ rows.T).double() / len(rows)
        ridge *= len(rows) / self._shape[0]  # relative to the mean diagonal of X'X: the two have one trace
        share = torch.cholesky_solve((residuals - residual_mean).double() / len(rows), factorised(kernel, ridge))
        change = rows.T @ share.float()
        return change, residual_mean - mean @ change

    def gain(self, change: Tensor, intercept: Tensor) -> Tensor:
        rows, residuals = (torch.cat(tensors) for tensors in zip(*self._parts, strict=True))
        left = residuals - rows @ change - intercept
        return (residuals.double().square() - left.double().square()).mean(0)


def best_fit(
    fitted: Moments, held_out: Moments, ridge: float, *, intercept: bool, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The fit on all rows, with that of `ridge` x RIDGE_FACTORS that does best on rows held out: few rows ask for a
    strong one. No change where none of them does better there than the weights in place.

    `scale`: (outputs,), the weight of each output's residual.
    """
    ridges = [ridge * factor for factor in (RIDGE_FACTORS if held_out.rows else (1.0,))]
    gains = [1.0]
    if held_out.rows:
        trials = (fitted.fit(each, intercept=intercept) for each in ridges)
        gains = [float((held_out.gain(*trial) * scale**2).sum()) for trial in trials]
    best = max(range(len(gains)), key=gains.__getitem__)
    change, shift = (fitted + held_out).fit(ridges[best], intercept=intercept)
    return (change, shift) if gains[best] > 0 else (change.zero_(), shift.zero_())
