from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from latency_toys import GRIDS, TEMPLATE, ToyTemplate, add, all_plans, conv, smooth_ms, true_sum_ms

from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.predictor import ShapeFit, ShapePredictor, TimedShape
from amc_mobile.latency.table_files import KernelShape

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
