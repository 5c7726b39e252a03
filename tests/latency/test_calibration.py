from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from amc_mobile.latency import calibration
from amc_mobile.latency.calibration import (
    BAND_FLOOR,
    BOUNDARY,
    BUSY_ERROR,
    CONVERTING_BAND_FLOOR,
    HINGE,
    Calibration,
    ModelPoint,
    error_band,
    trust,
    weighted_quantile,
)

SUMS = np.linspace(1.0, 4.0, 12)


@dataclass(frozen=True)
class WholeModel(ModelPoint):
    """With what its kernels sum up to."""

    sum_ms: float = 0.0
    weight_mb: float = 0.0
    boundary_mb: float = 0.0


def whole(total: float, low: float, p50: float = 0.0, *, weight: float = 0.0, crossed: float = 0.0) -> WholeModel:
    return WholeModel((), low, p50 or low, sum_ms=total, weight_mb=weight, boundary_mb=crossed)


def fit(models: list[WholeModel]) -> Calibration:
    columns = np.array([(m.sum_ms, m.weight_mb, m.boundary_mb) for m in models]).T
    return calibration.fit(models, *columns)


def profiled(*, noise: float = 0.003, seed: int = 0) -> list[WholeModel]:
    """Twelve models with low = 0.2 + 0.9 x sum, p50 a tenth above."""
    rng = np.random.default_rng(seed)
    lows = (0.2 + 0.9 * SUMS) * (1 + rng.normal(0, noise, len(SUMS)))
    return [whole(float(s), float(low), float(low * 1.1)) for s, low in zip(SUMS, lows, strict=True)]


def searched(
    count: int, *, level: float, noise: float = 0.003, sigma: float = 0.005, seed: int = 1
) -> list[WholeModel]:
    rng = np.random.default_rng(seed)
    models = []
    for total in rng.uniform(1.2, 2.5, count):
        low = (0.2 + 0.9 * total) * level * (1 + rng.normal(0, noise))
        sure = trust(sigma)
        models.append(replace(whole(float(total), low, low * 1.1), low_weight=sure, p50_weight=sure, searched=True))
    return models


def predicted_over_true(found: Calibration, level: float) -> float:
    sums = np.linspace(1.2, 2.5, 20)
    return float(np.mean(found.p50_ms(sums) / ((0.2 + 0.9 * sums) * 1.1 * level)))


def test_an_affine_relation_is_found() -> None:
    found = fit(profiled(noise=0))
    assert found.models == 12
    assert found.p50_ratio == pytest.approx(1.1, rel=1e-3)
    assert found.low_ms(np.array([2.0])) == pytest.approx([2.0], rel=0.01)
    assert found.p50_ms(np.array([2.0])) == pytest.approx([2.2], rel=0.01)
    assert found.band == BAND_FLOOR


def test_one_wild_model_does_not_bend_the_fit() -> None:
    models = profiled()
    models[3] = replace(models[3], low_ms=models[3].low_ms * 3)
    assert predicted_over_true(fit(models), 1.0) == pytest.approx(1.0, abs=0.02)


def test_the_band_covers_held_out_models() -> None:
    covered = []
    for seed in range(30):
        found = fit(profiled(noise=0.02, seed=seed))
        rng = np.random.default_rng(100 + seed)
        sums = rng.uniform(1, 4, 50)
        true = (0.2 + 0.9 * sums) * (1 + rng.normal(0, 0.02, 50))
        covered.append(np.mean(np.abs(found.low_ms(sums) / true - 1) <= found.band))
    assert np.mean(covered) >= 0.9


def test_measurements_on_a_busy_machine_do_not_widen_the_band() -> None:
    quiet = fit(profiled())
    rng = np.random.default_rng(2)
    busy = [
        replace(m, low_ms=m.low_ms * f, p50_ms=m.p50_ms * f, low_weight=trust(0.5), p50_weight=trust(0.5))
        for m, f in zip(searched(10, level=1.0), rng.uniform(1.3, 2.0, 10), strict=True)
    ]
    disturbed = fit([*profiled(), *busy])
    assert quiet.band < 0.03
    assert disturbed.band < 0.05
    assert predicted_over_true(disturbed, 1.0) == pytest.approx(1.0, abs=0.03)


def test_the_calibration_follows_a_machine_that_became_slower() -> None:
    for level in (1.2, 0.85):
        few = fit([*profiled(), *searched(6, level=level)])
        assert predicted_over_true(few, level) == pytest.approx(1.0, abs=0.02)
        assert few.band < 0.05


def test_the_calibration_follows_the_p50_where_only_that_drifted() -> None:
    models = [replace(m, p50_ms=m.p50_ms * 1.2) for m in searched(6, level=1.0)]
    found = fit([*profiled(), *models])
    assert predicted_over_true(found, 1.2) == pytest.approx(1.0, abs=0.02)
    assert found.low_ms(np.array([2.0])) == pytest.approx([2.0], rel=0.01)
    assert found.band < 0.05


def test_a_single_new_measurement_moves_nothing_far() -> None:
    found = fit([*profiled(), *searched(1, level=1.5)])
    assert predicted_over_true(found, 1.0) == pytest.approx(1.0, abs=0.03)


def test_the_newest_measurements_decide_when_the_machine_drifts_twice() -> None:
    models = [*profiled(), *searched(25, level=1.3), *searched(25, level=1.0, seed=3)]
    assert predicted_over_true(fit(models), 1.0) == pytest.approx(1.0, abs=0.02)


def test_trust_falls_with_the_uncertainty() -> None:
    assert trust(0) == 1
    assert trust(0.02) == pytest.approx(0.5)
    assert trust(0.5) < 0.01


def test_a_weighted_quantile_lies_where_the_weight_is() -> None:
    values = np.array([1.0, 2.0, 3.0, 100.0])
    assert weighted_quantile(values, np.ones(4), 0.5) == pytest.approx(2.5)
    assert weighted_quantile(values, np.array([1, 1, 1, 1e-6]), 0.9) == 3.0
    assert weighted_quantile(values[:1], np.ones(1), 0.9) == 1.0


def test_heavy_models_get_a_hinge_when_it_explains_them() -> None:
    sums, weights = np.linspace(1, 4, 16), np.linspace(1, 16, 16)
    lows = 0.1 + 0.95 * sums + 0.15 * np.maximum(0, weights - 8)
    models = [whole(*each, weight=w) for *each, w in zip(sums.tolist(), lows.tolist(), weights.tolist(), strict=True)]
    found = fit(models)
    assert (found.hinge_mb, found.needs_weights, found.needs_boundary) == (8.0, True, False)
    assert found.p50_ms(sums, weights) == pytest.approx(lows, rel=0.02)


def test_layout_conversions_get_a_boundary_term() -> None:
    rng = np.random.default_rng(0)
    sums, boundary = np.linspace(1, 4, 16), rng.uniform(1, 8, 16)
    lows = 0.1 + 0.9 * sums - 0.08 * boundary
    rows = zip(sums.tolist(), lows.tolist(), boundary.tolist(), strict=True)
    found = fit([whole(total, low, crossed=crossed) for total, low, crossed in rows])
    assert (found.needs_boundary, found.needs_weights) == (True, False)
    assert found.p50_ms(sums, None, boundary) == pytest.approx(lows, rel=0.03)


def bordered(slope: float, *, count: int = 12, noise: float = 0.0) -> list[WholeModel]:
    """low = 0.1 + 0.9 x sum + slope x boundary, of models of 2 to 12 MB."""
    rng = np.random.default_rng(3)
    sums, boundary = np.linspace(1, 4, count), rng.uniform(1, 8, count)
    lows = (0.1 + 0.9 * sums + slope * boundary) * (1 + rng.normal(0, noise, count))
    rows = zip(sums.tolist(), lows.tolist(), np.linspace(2, 12, count).tolist(), boundary.tolist(), strict=True)
    return [whole(total, low, weight=weight, crossed=crossed) for total, low, weight, crossed in rows]


def test_conversions_that_are_spared_are_not_taken_for_a_hinge() -> None:
    found = fit(bordered(-0.05, noise=0.002))
    assert (found.needs_boundary, found.needs_weights) == (True, False)
    assert found.boundary_ms_per_mb == pytest.approx(-0.05, rel=0.2)


def test_conversions_that_would_make_a_model_slower_by_being_spared_are_left_out() -> None:
    assert fit(bordered(0.05, noise=0.002)).needs_boundary is False


def test_too_few_models_for_a_term_get_none() -> None:
    assert fit(bordered(-0.05, count=7)).needs_boundary is False


def test_where_kernels_convert_layouts_the_band_is_wider() -> None:
    assert fit(bordered(-0.05)).band == CONVERTING_BAND_FLOOR
    assert fit([replace(m, boundary_mb=0.0) for m in bordered(0.0)]).band == BAND_FLOOR


def test_terms_that_explain_nothing_are_left_out() -> None:
    rng = np.random.default_rng(5)
    models = [replace(m, weight_mb=float(w)) for m, w in zip(profiled(), rng.uniform(1, 20, 12), strict=True)]
    assert fit(models).needs_weights is False


@pytest.mark.parametrize(("count", "band"), [(8, 12.0), (9, 9.0), (12, 12.0), (20, 19.0), (40, 37.0)])
def test_the_band_holds_nine_of_ten_errors_with_the_new_one_counted_in(count: int, band: float) -> None:
    errors = np.arange(1.0, count + 1)
    assert error_band(errors[::-1], np.full(count, 0.5)) == band


def test_a_wild_error_that_weighs_little_does_not_decide_the_band() -> None:
    errors, weights = np.array([1.0] * 11 + [50.0]), np.array([1.0] * 11 + [0.2])
    assert error_band(errors, weights) == 1.0
    assert error_band(errors, np.ones(12)) == 50.0


def test_few_models_give_a_wide_band() -> None:
    assert fit(profiled()[:2]).models == 2
    assert fit(profiled()[:1]).band >= 0.1


def test_a_calibration_shows_its_numbers() -> None:
    document = fit(profiled()).to_document()
    assert {"offset_ms", "scale", "p50_ratio", "band", "loo_mape", "models"} <= set(document)


def test_models_that_a_neighbour_slowed_alike_get_a_band_that_holds_the_truth() -> None:
    """The network's small plans hardly feel the neighbour, its large ones by 7 %."""
    slowed = [replace(m, low_ms=m.low_ms * (1 + 0.07 * m.sum_ms / 4), busy=True) for m in profiled()]
    found = fit(slowed)
    sums = np.linspace(1.0, 3.2, 50)
    errors = np.abs(found.low_ms(sums) / (0.2 + 0.9 * sums) - 1)
    assert (errors <= found.band).mean() >= 0.9
    assert (errors <= found.band - BUSY_ERROR).mean() < 0.7
    assert fit([replace(m, busy=False) for m in slowed]).band == pytest.approx(found.band - BUSY_ERROR)


def test_models_measured_in_a_search_since_narrow_the_band_of_a_busy_profile() -> None:
    busy = [replace(m, busy=True) for m in profiled()]
    assert fit(busy + searched(12, level=1.0)).band < fit(busy).band - BUSY_ERROR / 4


def test_a_correction_that_predicts_no_better_is_not_used_and_is_named() -> None:
    spread = np.resize([3.0, 1.0, 2.0], len(SUMS)).tolist()
    found = fit([replace(m, boundary_mb=mb) for m, mb in zip(profiled(noise=0.02), spread, strict=True)])
    (term,) = found.terms
    assert (term.name, term.kept, found.needs_boundary) == (BOUNDARY, False, False)
    assert term.error_without == pytest.approx(found.loo_mape)


def test_a_correction_is_used_as_soon_as_it_lowers_the_left_out_error() -> None:
    found = fit(bordered(-0.05))
    (boundary, hinge) = found.terms
    assert (boundary.name, boundary.kept) == (BOUNDARY, True)
    assert boundary.error_with < boundary.error_without
    assert (hinge.name, hinge.kept) == (HINGE, False)
    assert found.to_document()["terms"][0]["kept"] is True
