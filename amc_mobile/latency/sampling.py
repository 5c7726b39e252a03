"""Which kernels and which whole models to measure, so that every plan on the grid can be predicted."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amc_mobile.latency.roofline import have_own_groups

if TYPE_CHECKING:  # templates need torch; tables do not
    from amc_mobile.kernels.expression import Expression
    from amc_mobile.kernels.template import KernelSite, Template

Widths = NDArray[np.int64]
MOST_POINTS, FEWEST_POINTS = 5, 3  # per axis, geometric, the minimum and the full width included
MOST_KERNELS = 460  # more than this, and fewer points per axis are taken
SCATTERED_POINTS = 12  # for kernels whose axes cannot be moved apart
QUICK_SCATTERED_POINTS = 6
QUICK_PLANS = (0, 2, 4, 6, 7, 8)  # of `calibration_widths`: full, smallest, half and three random ones


def axis_points(grid: Widths, count: int = MOST_POINTS, *, other_code_from: int = 0) -> Widths:
    """`count` geometrically spaced widths of an ascending grid, its ends included; and the widths on both sides of
    `other_code_from`: nothing measured on one side tells of the other."""
    if len(grid) <= count:
        return grid
    wanted = np.geomspace(grid[0], grid[-1], count)
    near = np.searchsorted(grid, other_code_from)
    beside = grid[near - 1 : near + 1] if 0 < near < len(grid) else grid[:0]
    return np.union1d(grid[np.abs(grid[:, None] - wanted).argmin(axis=0)], beside)


def points_per_axis(template: Template, grids: Sequence[Widths]) -> int:
    """As many points per axis as keep the number of kernels to measure affordable."""
    for count in range(MOST_POINTS, FEWEST_POINTS, -1):
        if len(_kernel_points(template, grids, count)) <= MOST_KERNELS:
            return count
    return FEWEST_POINTS


def site_points(
    site: KernelSite, sizes: Widths, grids: Sequence[Widths], count: int = MOST_POINTS, *, quick: bool = False
) -> list[Widths]:
    """Plans, each shape (groups,), at which to measure one site; groups it does not depend on stay full.

    Axes without common groups are moved apart, the groups of one axis together; else the ends and random widths are
    taken. `quick`: some of the points that are taken otherwise.
    """
    if have_own_groups(site):
        steps = []
        for place, axis in enumerate(site.axes):
            other_code_from = _width_at(axis, site.other_code_from.get(place))
            every = _axis_steps([group for group, _ in axis.terms], grids, count, other_code_from)
            steps.append(_few_steps(every, other_code_from) if quick else every)
        rows = [dict(pair for step in choice for pair in step.items()) for choice in itertools.product(*steps)]
    else:
        rng = np.random.default_rng(site.index)
        rows = [{group: int(grids[group][end]) for group in site.group_indices} for end in (0, -1)]
        rows += [
            {group: int(rng.choice(grids[group])) for group in site.group_indices} for _ in range(SCATTERED_POINTS - 2)
        ]
        rows = rows[:QUICK_SCATTERED_POINTS] if quick else rows
    points = []
    for row in rows:
        widths = sizes.copy()
        for group, width in row.items():
            widths[group] = width
        points.append(widths)
    return points


def kernel_points(
    template: Template, grids: Sequence[Widths], *, quick: bool = False
) -> dict[str, tuple[int, Widths, str]]:
    """Kernel key -> (site, widths, label) for every kernel to measure, equal kernels once. `quick`: some of them."""
    return _kernel_points(template, grids, points_per_axis(template, grids), quick=quick)


def _kernel_points(
    template: Template, grids: Sequence[Widths], count: int, *, quick: bool = False
) -> dict[str, tuple[int, Widths, str]]:
    found: dict[str, tuple[int, Widths, str]] = {}
    for site in template.sites:
        for widths in site_points(site, template.sizes, grids, count, quick=quick):
            kernel = template.kernel_at(site.index, widths)
            found.setdefault(kernel.key, (site.index, widths, kernel.label))
    return found


def _width_at(axis: Expression, value: int | None) -> int:
    """The width of its group at which an axis reaches `value`; 0 where it has several groups."""
    if value is None or len(axis.terms) > 1:
        return 0
    return math.ceil((value - axis.constant) / axis.terms[0][1])


def _axis_steps(
    groups: Sequence[int], grids: Sequence[Widths], count: int, other_code_from: int
) -> list[dict[int, int]]:
    """The points of one axis: group -> width."""
    chosen = [axis_points(grids[group], count, other_code_from=other_code_from) for group in groups]
    longest = max(len(points) for points in chosen)
    # Groups with fewer widths stay at one of them for several steps.
    picks = [np.linspace(0, len(points) - 1, longest).round().astype(int) for points in chosen]
    return [
        {group: int(points[pick[step]]) for group, points, pick in zip(groups, chosen, picks, strict=True)}
        for step in range(longest)
    ]


def _few_steps(steps: list[dict[int, int]], other_code_from: int) -> list[dict[int, int]]:
    """The ends of an axis, its middle where it has more than three points, and both sides of `other_code_from`."""
    kept = {0, len(steps) - 1} | ({len(steps) // 2} if len(steps) > FEWEST_POINTS else set())
    if other_code_from:  # an axis of one group
        above = bisect_left([next(iter(step.values())) for step in steps], other_code_from)
        kept |= {above - 1, above} & set(range(len(steps)))
    return [steps[at] for at in sorted(kept)]


def can_be_quick(sizes: Widths, grids: Sequence[Widths]) -> bool:
    """Whether a quick profile measures fewer whole models: not of a network with few plans, which is soon profiled."""
    plans = [tuple(plan.tolist()) for plan in calibration_widths(sizes, grids)]
    return {plans[number] for number in QUICK_PLANS} != set(plans)


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
