from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from latency_toys import GRIDS, TEMPLATE, all_plans, conv, smooth_ms, stepped_ms, true_sum_ms

from amc_mobile.errors import MissingLatency
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.predictor import LatencyPredictor
from amc_mobile.latency.sampling import kernel_points, site_points

COSTS = [smooth_ms, stepped_ms]


def lows(cost: Callable[[Kernel], float]) -> dict[str, float]:
    return {
        key: cost(TEMPLATE.kernel_at(site, widths)) for key, (site, widths, _) in kernel_points(TEMPLATE, GRIDS).items()
    }


def predictor(cost: Callable[[Kernel], float] = smooth_ms) -> LatencyPredictor:
    return LatencyPredictor(TEMPLATE, GRIDS, lows(cost))


@pytest.mark.parametrize("cost", COSTS)
def test_measured_points_are_predicted_exactly(cost: Callable[[Kernel], float]) -> None:
    made = predictor(cost)
    for site in TEMPLATE.sites:
        for widths in site_points(site, TEMPLATE.sizes, GRIDS):
            found = made.site_ms(widths)[site.index]
            assert found == pytest.approx(cost(TEMPLATE.kernel_at(site.index, widths)), rel=1e-6)


def test_a_sum_is_that_of_its_sites() -> None:
    made = predictor(stepped_ms)
    for widths in all_plans()[::37]:
        assert made.sum_ms(widths[None])[0] == pytest.approx(sum(made.site_ms(widths).values()))


def test_a_roofline_is_predicted_everywhere() -> None:
    plans = all_plans()
    errors = predictor().sum_ms(plans) / true_sum_ms(plans, smooth_ms) - 1
    assert np.abs(errors).max() < 0.01


def test_predictions_stay_between_the_measured_neighbours() -> None:
    made = predictor(smooth_ms)
    first = TEMPLATE.sites[0]
    points = np.array(site_points(first, TEMPLATE.sizes, GRIDS))
    for a in GRIDS[0]:
        for b in GRIDS[1]:
            below = points[(points[:, 0] <= a) & (points[:, 1] <= b)].max(axis=0)
            above = points[(points[:, 0] >= a) & (points[:, 1] >= b)].min(axis=0)
            here = made.site_ms(np.array([a, b, 24]))[0]
            low, high = (smooth_ms(TEMPLATE.kernel_at(0, widths)) for widths in (below, above))
            assert low * 0.999 <= here <= high * 1.001


def test_widths_between_grid_points_count_as_the_next_one_above() -> None:
    made = predictor(stepped_ms)
    between, above = np.array([[9, 33, 17]]), np.array([[16, 40, 24]])
    assert made.sum_ms(between) == made.sum_ms(above)


def test_many_plans_and_one_agree() -> None:
    made, plans = predictor(stepped_ms), all_plans()
    batch = made.sum_ms(plans)
    alone = [made.sum_ms(plan[None])[0] for plan in plans]
    assert batch == pytest.approx(alone, rel=1e-12)
    assert made.sum_ms(plans[:0]).shape == (0,)


def test_every_missing_kernel_is_named_at_once() -> None:
    known = lows(smooth_ms)
    gone = [conv(32, 64), conv(64, 24)]
    for kernel in gone:
        del known[kernel.key]
    with pytest.raises(MissingLatency) as caught:
        LatencyPredictor(TEMPLATE, GRIDS, known)
    assert sorted(caught.value.kernels) == sorted([f"first: {gone[0].label}", f"second: {gone[1].label}"])
    assert "32->64" in caught.value.message


def test_an_empty_table_predicts_nothing() -> None:
    with pytest.raises(MissingLatency):
        LatencyPredictor(TEMPLATE, GRIDS, {})
