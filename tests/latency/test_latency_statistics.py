from __future__ import annotations

import numpy as np
import pytest

from amc_mobile.latency.measurement import interval, low_ms, lowest_two_agree, p50_interval_ms, pass_low_ms


def test_the_low_of_a_pass_is_its_20th_percentile() -> None:
    assert pass_low_ms([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == 2.0


def test_the_low_of_several_passes_is_the_quietest_one() -> None:
    busy, quiet = [9.0] * 5, [2.0, 2.0, 2.0, 2.0, 50.0]
    assert low_ms([busy, quiet, busy]) == 2.0


def test_one_lucky_sample_does_not_decide() -> None:
    assert low_ms([[0.1] + [2.0] * 9]) == 2.0


def test_two_passes_agree_within_the_tolerance_only() -> None:
    assert lowest_two_agree([[1.0], [7.0], [1.01]], 0.02)
    assert not lowest_two_agree([[1.0], [7.0], [1.03]], 0.02)
    assert not lowest_two_agree([[1.0]], 0.02)


def test_the_central_interval_leaves_two_and_a_half_percent_on_each_side() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


@pytest.mark.parametrize("shape", ["equal", "unequal"])
def test_the_interval_of_the_p50_widens_when_passes_differ(shape: str) -> None:
    rng = np.random.default_rng(0)
    lengths = [30] * 8 if shape == "equal" else [30, 20, 25, 30, 18, 30, 22, 27]
    same = [list(rng.normal(10, 0.2, n)) for n in lengths]
    shifted = [[v + shift for v in samples] for samples, shift in zip(same, np.linspace(0, 4, 8), strict=True)]
    low, high = p50_interval_ms(same)
    assert low < np.median(np.concatenate(same)) < high
    assert high - low < 0.3
    wide_low, wide_high = p50_interval_ms(shifted)
    assert wide_high - wide_low > 5 * (high - low)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        shifts = rng.normal(0, 0.5, 10)
        low, high = p50_interval_ms([list(rng.normal(10 + shift, 0.2, 20)) for shift in shifts])
        covered += low <= 10 <= high
    assert covered >= 49  # 82 %: ten passes are few, a bootstrap of them is a little narrow
