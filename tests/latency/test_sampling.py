from __future__ import annotations

from dataclasses import replace

import numpy as np
from latency_toys import GRIDS, TEMPLATE, conv

from amc_mobile.latency.kernel_fit import (
    QUICK_PLANS,
    axis_points,
    calibration_widths,
    can_be_quick,
    kernel_points,
    site_points,
)


def test_points_are_geometric_and_hold_both_ends() -> None:
    points = axis_points(np.arange(8, 961, 8), 5)
    assert (points[0], points[-1], len(points)) == (8, 960, 5)
    ratios = points[1:] / points[:-1]
    assert ratios.max() / ratios.min() < 1.4
    assert set(points % 8) == {0}


def test_short_grids_are_measured_whole() -> None:
    assert axis_points(np.array([8, 16, 24]), 4).tolist() == [8, 16, 24]


def test_both_sides_of_where_other_code_runs_are_measured() -> None:
    grid = np.arange(8, 97, 4)
    assert set(axis_points(grid, 3)) == {8, 28, 96}
    assert set(axis_points(grid, 3, other_code_from=16)) == {8, 12, 16, 28, 96}
    assert set(axis_points(grid, 3, other_code_from=18)) == {8, 16, 20, 28, 96}
    for beyond in (0, 4, 8, 200):
        assert set(axis_points(grid, 3, other_code_from=beyond)) == {8, 28, 96}


def test_points_of_a_site_change_its_own_groups_only() -> None:
    for site in TEMPLATE.sites:
        points = np.array(site_points(site, TEMPLATE.sizes, GRIDS))
        others = [g for g in range(3) if g not in site.group_indices]
        assert (points[:, others] == TEMPLATE.sizes[others]).all()
        assert any((point == TEMPLATE.sizes).all() for point in points)
        smallest = [GRIDS[g][0] for g in site.group_indices]
        assert any((point[list(site.group_indices)] == smallest).all() for point in points)


def test_equal_kernels_are_measured_once() -> None:
    points = kernel_points(TEMPLATE, GRIDS)
    every = [
        TEMPLATE.kernel_at(site.index, widths).key
        for site in TEMPLATE.sites
        for widths in site_points(site, TEMPLATE.sizes, GRIDS)
    ]
    assert set(points) == set(every)
    assert len(points) < len(every)
    site, widths = points[conv(32, 64).key]
    assert TEMPLATE.kernel_at(site, widths).label == conv(32, 64).label


def test_calibration_plans_span_the_grid_and_hold_the_original() -> None:
    plans = calibration_widths(TEMPLATE.sizes, GRIDS)
    assert len(plans) == 12
    assert plans[0].tolist() == TEMPLATE.sizes.tolist()
    assert any((plan == [8, 8, 8]).all() for plan in plans)
    for plan in plans:
        assert all(width in grid for width, grid in zip(plan, GRIDS, strict=True))
    again = calibration_widths(TEMPLATE.sizes, GRIDS)
    assert np.array_equal(plans, again)


def test_a_quick_profile_measures_some_of_the_kernels_of_a_full_one() -> None:
    few, every = kernel_points(TEMPLATE, GRIDS, quick=True), kernel_points(TEMPLATE, GRIDS)
    assert few.keys() < every.keys()
    assert len(few) <= len(every) / 2
    ends = [GRIDS[0][0], GRIDS[0][-1]], [GRIDS[1][0], GRIDS[1][-1]]
    assert all(conv(int(a), int(b)).key in few for a in ends[0] for b in ends[1])
    assert len(QUICK_PLANS) == len(set(QUICK_PLANS)) < len(calibration_widths(TEMPLATE.sizes, GRIDS))


def test_a_quick_profile_measures_both_sides_of_where_other_code_runs() -> None:
    site = replace(TEMPLATE.sites[0], other_code_from={0: 16})
    full = {tuple(point) for point in site_points(site, TEMPLATE.sizes, GRIDS)}
    quick = {tuple(point) for point in site_points(site, TEMPLATE.sizes, GRIDS, quick=True)}
    assert quick < full
    assert {8, 16, 32} <= {point[0] for point in quick}


def test_a_network_with_few_plans_is_profiled_in_full() -> None:
    assert can_be_quick(TEMPLATE.sizes, GRIDS)
    assert not can_be_quick(np.array([16]), [np.array([8, 16])])
