"""Which kernels and which whole models to measure, so that every plan on the grid can be predicted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
POINTS_PER_GROUP = 4  # geometric, the minimum and the full width included
SPARSE_POINTS = 12  # for kernels that depend on more than two groups


def axis_points(grid: Widths, count: int = POINTS_PER_GROUP) -> Widths:
    """`count` geometrically spaced widths of an ascending grid, its ends included."""
    if len(grid) <= count:
        return grid
    wanted = np.geomspace(grid[0], grid[-1], count)
    return np.unique(grid[np.abs(grid[:, None] - wanted).argmin(axis=0)])


def site_points(site: KernelSite, sizes: Widths, grids: Sequence[Widths]) -> list[Widths]:
    """Plans, each shape (groups,), at which to measure one site; groups it does not depend on stay full."""
    if len(site.group_indices) <= 2:
        choices = itertools.product(*(axis_points(grids[g]) for g in site.group_indices))
        rows = [np.array(choice, dtype=np.int64) for choice in choices]
    else:
        rng = np.random.default_rng(site.index)
        ends = [[grids[g][end] for g in site.group_indices] for end in (0, -1)]
        drawn = [[rng.choice(grids[g]) for g in site.group_indices] for _ in range(SPARSE_POINTS - 2)]
        rows = [np.array(row, dtype=np.int64) for row in (*ends, *drawn)]
    points = []
    for row in rows:
        widths = sizes.copy()
        widths[list(site.group_indices)] = row
        points.append(widths)
    return points


def kernel_points(template: Template, grids: Sequence[Widths]) -> dict[str, tuple[int, Widths, str]]:
    """Kernel key -> (site, widths, label) for every kernel to measure, equal kernels once."""
    found: dict[str, tuple[int, Widths, str]] = {}
    for site in template.sites:
        for widths in site_points(site, template.sizes, grids):
            kernel = template.kernel_at(site.index, widths)
            found.setdefault(kernel.key, (site.index, widths, kernel.label))
    return found


def calibration_widths(sizes: Widths, grids: Sequence[Widths], *, seed: int = 0) -> list[Widths]:
    """Twelve plans for the whole-model calibration: full, near full, smallest, uniform and random ones."""
    rng = np.random.default_rng(seed)

    def near(ratios: NDArray[np.float64]) -> Widths:
        wanted = sizes * ratios
        return np.array([g[np.abs(g - w).argmin()] for g, w in zip(grids, wanted, strict=True)], dtype=np.int64)

    ones = np.ones(len(sizes))
    plans = [sizes.copy(), near(rng.uniform(0.85, 1, len(sizes))), near(0 * ones)]
    plans += [near(ratio * ones) for ratio in (0.75, 0.5, 0.35)]
    plans += [near(np.clip(rng.uniform(0.25, 1) + rng.uniform(-0.2, 0.2, len(sizes)), 0, 1)) for _ in range(6)]
    return plans
