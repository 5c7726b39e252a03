from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from latency_toys import GRIDS, TEMPLATE, ToyTemplate, add, all_plans, conv, smooth_ms, stepped_ms, true_sum_ms

from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.kernels.kernel import Expression, Kernel
from amc_mobile.kernels.onnx_layout import ALWAYS, Border, Demand
from amc_mobile.latency.kernel_fit import (
    NO_STEPS,
    SitePoints,
    Steps,
    choose_steps,
    fit_site,
    kernel_points,
    site_points,
)
from amc_mobile.latency.predictor import LatencyPredictor, ShapeFit, ShapePredictor, TimedShape
from amc_mobile.latency.probe import widths_around_tiles
from amc_mobile.latency.table_files import KernelShape

COSTS = [smooth_ms, stepped_ms]


def lows(cost: Callable[[Kernel], float]) -> dict[str, float]:
    return {
        key: cost(TEMPLATE.kernel_at(site, widths)) for key, (site, widths) in kernel_points(TEMPLATE, GRIDS).items()
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


# Steps


def test_the_steps_of_a_device_are_found_per_operator_type() -> None:
    made = predictor(stepped_ms)
    assert made.steps["conv1x1"].tile_out == 16
    assert made.steps["add"] == NO_STEPS
    assert predictor(smooth_ms).steps["conv1x1"] == NO_STEPS


def test_a_staircase_is_predicted_between_its_measured_points() -> None:
    made = predictor(stepped_ms)
    plans = all_plans()
    errors = []
    for site in (0, 1):
        for widths in plans[::11]:
            true = stepped_ms(TEMPLATE.kernel_at(site, widths))
            errors.append(abs(made.site_ms(widths)[site] / true - 1))
    assert np.mean(errors) < 0.01
    assert max(errors) < 0.05


def test_slower_code_for_unaligned_widths_is_found_and_priced() -> None:
    def penalised_ms(kernel: Kernel) -> float:
        main = kernel.main
        slower = 1 + 0.3 * (main.in_channels % 16 > 0) + 0.2 * (main.out_channels % 16 > 0)
        return 0.002 + kernel.macs * 4e-8 * slower if kernel.macs else smooth_ms(kernel)

    made = predictor(penalised_ms)
    assert made.steps["conv1x1"] == Steps(1, 1, 16)
    for site in (0, 1):
        for widths in all_plans()[::11]:
            assert made.site_ms(widths)[site] == pytest.approx(penalised_ms(TEMPLATE.kernel_at(site, widths)), rel=0.06)


def blocked_ms(kernel: Kernel) -> float:
    """Fewer than 16 input channels are read plain and slowly; from there on, both sides are filled up to 16."""
    main = kernel.main
    if main.name != "CONV_2D":
        return smooth_ms(kernel)
    out = -(-main.out_channels // 16) * 16
    if main.in_channels < 16:
        return 0.002 + out * 64 * (1e-6 + main.in_channels * 2e-7)
    return 0.002 + -(-main.in_channels // 16) * 16 * out * 64 * 6e-8


def test_other_code_for_few_channels_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc_mobile.latency.kernel_fit.MOST_POINTS", 3)
    sizes = np.array([24, 64, 24])
    grids = [np.array([4, 8, 12, 16, 20, 24]), np.arange(16, 65, 8), np.array([8, 16, 24])]
    plans = np.stack([mesh.ravel() for mesh in np.meshgrid(*grids, indexing="ij")], axis=1)
    ignorant, knowing = ToyTemplate(sizes), ToyTemplate(sizes)
    knowing.sites = (replace(knowing.sites[0], other_code_from={0: 16}), *knowing.sites[1:])
    every = {kernel.key: blocked_ms(kernel) for plan in plans for kernel in ignorant.kernels(plan)}
    measured, worst = [], []
    for template in (ignorant, knowing):
        measured.append({int(row[0]) for row in site_points(template.sites[0], sizes, grids, 3)})
        made = LatencyPredictor(template, grids, every).sites[0]
        true = [blocked_ms(template.kernel_at(0, plan)) for plan in plans]
        worst.append(np.abs(made.predict(plans) / true - 1).max())
    assert measured == [{4, 8, 24}, {4, 8, 12, 16, 24}]
    assert worst[1] < 0.01
    assert worst[0] > 0.1


def test_what_borders_spare_takes_the_place_of_the_bytes_that_cross_them() -> None:
    template = ToyTemplate()
    few = Border(
        block=16, channels=Expression(0, ((1, 1),)), bytes_per_channel=256, sizes=template.sizes, is_output=False,
        given=ALWAYS, given_alone=ALWAYS, taken=(frozenset({Demand(Expression(0, ((1, 1),)), 16)}),),
        taken_alone=(frozenset({Demand(Expression(0, ((1, 1),)), 16)}),),
    )  # fmt: skip
    template.borders = (few,)
    made, plans = LatencyPredictor(template, GRIDS, lows(smooth_ms)), all_plans()
    channels = plans[:, 1]
    expected = np.where(channels < 16, 0, 2 * np.ceil(channels / 16) * 16 * 256 / 1e6)
    assert made.boundary_mb(plans) == pytest.approx(expected)
    assert made.boundary_mb(plans[:1]) == pytest.approx(expected[:1])


# Where a prediction comes from


def test_every_prediction_tells_its_source_and_how_sure_it_is() -> None:
    made = predictor(stepped_ms)
    full = made.explain(np.array([32, 64, 24]))
    assert {found.source for found in full.values()} == {"exact"}
    inside = made.explain(np.array([24, 48, 24]))
    assert inside[0].source == "aligned"
    assert inside[2].source == inside[4].source == "exact"
    raised = made.explain(np.array([24, 47, 24]))
    assert raised[0].source == raised[1].source == "ceil"
    assert raised[2].source == "exact"
    assert raised[0].ms == inside[0].ms
    for found in (*full.values(), *inside.values(), *raised.values()):
        assert 0 < found.sigma < 0.5
    assert raised[0].sigma >= inside[0].sigma


def test_widths_beyond_the_measured_ones_are_extrapolated_and_less_sure() -> None:
    wider = [np.concatenate([[4], grid]) for grid in GRIDS]
    made = LatencyPredictor(TEMPLATE, wider, lows(smooth_ms), sampled=GRIDS)
    beyond, inside = made.explain(np.array([4, 48, 24]))[0], made.explain(np.array([24, 48, 24]))[0]
    assert beyond.source == "extrapolated"
    assert beyond.sigma == pytest.approx(3 * inside.sigma)
    assert beyond.ms == pytest.approx(smooth_ms(conv(4, 48)), rel=0.05)


def test_kernels_measured_in_a_search_replace_the_interpolation() -> None:
    plan = np.array([24, 48, 24])
    kernel = TEMPLATE.kernel_at(0, plan)
    known = {**lows(smooth_ms), kernel.key: 0.5}
    blind = LatencyPredictor(TEMPLATE, GRIDS, known)
    seeing = LatencyPredictor(TEMPLATE, GRIDS, known, measured_plans=[plan])
    careful = LatencyPredictor(TEMPLATE, GRIDS, known, measured_plans=[plan], exact_ms={})
    assert seeing.explain(plan)[0].ms == 0.5
    assert seeing.explain(plan)[0].source == "exact"
    assert seeing.sum_ms(plan[None])[0] == pytest.approx(sum(seeing.site_ms(plan).values()))
    for unaware in (blind, careful):
        assert unaware.explain(plan)[0].source == "aligned"
        assert unaware.sum_ms(plan[None])[0] == pytest.approx(
            seeing.sum_ms(plan[None])[0] - 0.5 + blind.site_ms(plan)[0]
        )
    other = np.array([16, 48, 24])
    assert seeing.site_ms(other) == blind.site_ms(other)


# Sums of bytes


def test_bytes_are_exact_for_every_plan() -> None:
    made, plans = predictor(), all_plans()[::7]
    kernels = [TEMPLATE.kernels(plan) for plan in plans]
    assert made.weight_mb(plans) == pytest.approx([sum(k.weight_bytes for k in row) / 1e6 for row in kernels])
    crossing = [sum(k.activation_bytes for k in row if k.macs) / 1e6 for row in kernels]
    assert made.boundary_mb(plans) == pytest.approx(crossing)


def test_sums_of_kernels_with_many_groups_are_looked_up_or_computed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = all_plans()
    tabled = predictor(stepped_ms)
    monkeypatch.setattr("amc_mobile.latency.predictor.MAX_CELLS", 1)
    computed = predictor(stepped_ms)
    assert computed.sum_ms(plans) == pytest.approx(tabled.sum_ms(plans), rel=1e-9)
    assert computed.held_bytes < tabled.held_bytes


def few_channels_ms(kernel: Kernel) -> float:
    """As `stepped_ms`, but other code runs where the first layer makes 8 channels."""
    return stepped_ms(kernel) * (0.5 if kernel.main.name == "CONV_2D" and kernel.main.out_channels == 8 else 1.0)


def test_a_tile_does_not_merge_measured_points_that_differ() -> None:
    points = predictor(few_channels_ms).sites[1].points  # of 8, 16 and 24 channels
    fitted = fit_site(points, Steps(tile_out=16), {})
    assert fitted.steps == NO_STEPS
    assert np.abs(fitted.predict_at(points.values) / points.measured_ms - 1).max() < 0.01
    alike = predictor(stepped_ms).sites[1].points
    assert fit_site(alike, Steps(tile_out=16), {}).steps == Steps(tile_out=16)


def test_a_quick_profile_predicts_a_roofline_everywhere_and_says_what_lacks() -> None:
    few = kernel_points(TEMPLATE, GRIDS, quick=True)
    lows_ms = {key: smooth_ms(TEMPLATE.kernel_at(site, widths)) for key, (site, widths) in few.items()}
    plans = all_plans()
    for plain in (False, True):
        made = LatencyPredictor(TEMPLATE, GRIDS, lows_ms, quick=True, plain=plain)
        errors = made.sum_ms(plans) / true_sum_ms(plans, smooth_ms) - 1
        assert np.abs(errors).max() < 0.03
    with pytest.raises(MissingLatency):
        LatencyPredictor(TEMPLATE, GRIDS, lows_ms)


# What a probe measured

EVERY = [np.arange(1, size + 1) for size in TEMPLATE.sizes]


def probed_lows(cost: Callable[[Kernel], float], site: int = 0) -> dict[str, float]:
    """With what a probe measures of one site."""
    around = widths_around_tiles(TEMPLATE.sites[site], TEMPLATE.sizes)
    kernels = [TEMPLATE.kernel_at(site, widths) for widths in around]
    return lows(cost) | {kernel.key: cost(kernel) for kernel in kernels}


def odd_ms(kernel: Kernel) -> float:
    """Widths that are no multiple of 4 run code that is 40 % slower: multiples of 8 do not tell."""
    main = kernel.main
    return smooth_ms(kernel) * (1.4 if main.name == "CONV_2D" and main.out_channels % 4 else 1.0)


@pytest.mark.parametrize("cost", [stepped_ms, odd_ms])
def test_what_a_probe_measured_is_predicted_as_it_is_and_teaches_its_neighbours(
    cost: Callable[[Kernel], float],
) -> None:
    made = LatencyPredictor(TEMPLATE, EVERY, probed_lows(cost), sampled=GRIDS)
    for b in (15, 17, 31, 33, 63):
        widths = np.array([32, b, 24])
        found = made.explain(widths)[0]
        assert found.ms == pytest.approx(cost(TEMPLATE.kernel_at(0, widths))) and found.source == "exact"
    for a, b in ((32, 18), (32, 45), (16, 27), (24, 61)):
        widths = np.array([a, b, 24])
        assert made.site_ms(widths)[0] == pytest.approx(cost(TEMPLATE.kernel_at(0, widths)), rel=0.1)
    assert made.steps["conv1x1"] == (Steps(1, 16, 1) if cost is stepped_ms else Steps(1, 1, 4))


def test_widths_that_multiples_of_eight_do_not_tell_apart_are_taken_as_filled_up() -> None:
    """With 16, 24 and 32 measured, filling up to 16 and slower code outside 16 predict 24 alike."""
    site = TEMPLATE.sites[2]  # one axis
    widths = np.array([[32, 64, c] for c in (16, 24, 32)])
    kernels = [TEMPLATE.kernel_at(2, row) for row in widths]
    points = SitePoints.collect(site, widths, kernels, np.array([0.05, 0.1003, 0.1]))
    assert choose_steps([points])["add"].aligned == 1


PLANS = {"full": (32, 64, 24), "most": (24, 48, 16), "half": (16, 32, 16), "odd": (8, 56, 24)}


def timed(template: ToyTemplate = TEMPLATE) -> list[TimedShape]:
    """What a tool that names no kernel of ours would have timed: whole networks, kernel by kernel."""
    return [
        TimedShape(KernelShape.of(kernel), smooth_ms(kernel), network)
        for network, plan in PLANS.items()
        for kernel in template.kernels(np.array(plan))
    ]


def shape_row(**words: str) -> dict[str, str]:
    return {"operator": "CONV_2D", "in_channels": "8", "out_channels": "16", "window": "1", **words}


@pytest.mark.parametrize(
    ("words", "operator"),
    [
        ({}, "conv1x1"), ({"window": "3"}, "conv"), ({"operator": "pw", "window": "0"}, "conv1x1"),
        ({"operator": "DEPTHWISE_CONV_2D", "window": "3"}, "depthwise"), ({"operator": "Gemm"}, "linear"),
        ({"operator": "GlobalAveragePool"}, "pool"), ({"operator": "Hard-Swish"}, "hardswish"),
    ],
)  # fmt: skip
def test_operators_are_known_by_the_words_of_several_tools(words: dict[str, str], operator: str) -> None:
    assert KernelShape.from_row(shape_row(**words)).operator == operator


def test_our_kernels_and_a_row_of_another_tool_have_one_shape() -> None:
    assert KernelShape.of(conv(8, 16)) == KernelShape.from_row(shape_row(out_size="8", stride="1"))
    assert KernelShape.of(add(24)).operator == KernelShape.from_row(shape_row(operator="ADD")).operator
    assert KernelShape.from_document(KernelShape.of(conv(8, 16)).to_document()) == KernelShape.of(conv(8, 16))
    with pytest.raises(InvalidInput, match=r"out_size '7\.5'"):
        KernelShape.from_row(shape_row(out_size="7.5"))


def test_plans_are_predicted_from_four_widths() -> None:
    predictor = ShapePredictor(TEMPLATE, GRIDS, timed())
    plans = all_plans()
    errors = predictor.sum_ms(plans) / true_sum_ms(plans, smooth_ms) - 1
    near = predictor.risk_ms(plans) == 0
    assert near.sum() > 20 and not near.all()
    assert np.abs(errors[near]).max() < 0.03
    assert predictor.calibration.band < 0.05


def test_each_kernel_says_where_its_latency_comes_from() -> None:
    predictor = ShapePredictor(TEMPLATE, GRIDS, timed())
    exact = predictor.explain(np.array(PLANS["half"]))
    assert {found.source for found in exact.values()} == {"exact"}
    assert sum(f.ms for f in exact.values()) == pytest.approx(true_sum_ms(np.array([PLANS["half"]]), smooth_ms)[0])
    between = predictor.explain(np.array([16, 40, 16]))
    assert between[0].source == "aligned"
    far = replace_rows(timed(), lambda row: row.shape.channels != (40, 40))
    outside = ShapePredictor(TEMPLATE, GRIDS, far).explain(np.array([8, 8, 8]))
    assert outside[1].source == "extrapolated" and outside[1].sigma > between[1].sigma


def replace_rows(rows: list[TimedShape], keep) -> list[TimedShape]:
    return [row for row in rows if keep(row)]


def test_a_map_that_was_never_timed_is_estimated_and_marked() -> None:
    rows = replace_rows(timed(), lambda row: row.shape.out_size == 8)  # the kernel on a map of 4 x 4 is left out
    predictor = ShapePredictor(TEMPLATE, GRIDS, rows)
    found = predictor.explain(np.array(PLANS["half"]))[4]
    assert found.source == "extrapolated"
    assert found.ms == pytest.approx(smooth_ms(TEMPLATE.kernel_at(4, np.array(PLANS["half"]))), rel=0.5)
    assert predictor.risk_ms(np.array([PLANS["half"]]))[0] > 0


def test_an_operator_that_was_never_timed_is_named() -> None:
    with pytest.raises(MissingLatency, match="sum: ADD 24"):
        ShapePredictor(TEMPLATE, GRIDS, replace_rows(timed(), lambda row: row.shape.operator != "add"))


def test_a_table_without_windows_tells_of_kernels_with_any() -> None:
    wide = Kernel("tflite", (replace(conv(8, 16).operators[0], inputs=((1, 8, 8, 8), (16, 3, 3, 8), (16,))),))
    shape = KernelShape.of(wide)
    assert (shape.operator, shape.window) == ("conv", 3)
    fit = ShapeFit([TimedShape(replace(shape, window=0, out_channels=c), 0.1 * c) for c in (8, 16, 32)])
    place = fit.place_of(shape)
    assert place is not None and fit.predict(place, np.array([[8, 16]]))[0] == pytest.approx(1.6)
    with_windows = ShapeFit([TimedShape(replace(shape, window=5), 1.0)])
    other = with_windows.place_of(shape)
    assert other is not None and not with_windows.is_nearby(other, np.array([shape.channels]))[0]


def test_the_band_is_wide_where_no_whole_models_are_told() -> None:
    rows = [replace(row, network="") for row in timed()]
    assert ShapeFit(rows).calibration().band == pytest.approx(0.15)
    assert ShapeFit(rows).left_out() == {}
