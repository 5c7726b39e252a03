from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from template_subjects import subject

from amc_mobile.kernels.expression import Expression
from amc_mobile.kernels.onnx_layout import ALWAYS, Border, Demand
from amc_mobile.latency.roofline import axis_values

A, B, C = (Expression(0, ((group, 1),)) for group in range(3))
SIZES = np.array([64, 64, 64], dtype=np.int64)


def border(**changes: object) -> Border:
    """Between two convolutions, on a 10x10 map."""
    facts: dict[str, object] = {
        "channels": A, "bytes_per_channel": 400, "sizes": SIZES, "is_output": False, "given": ALWAYS,
        "given_alone": ALWAYS, "taken": (frozenset({Demand(A)}),), "taken_alone": (frozenset({Demand(A)}),),
    }  # fmt: skip
    return Border(**(facts | changes))  # type: ignore[arg-type]


def spared(tested: Border, *widths: int) -> float:
    return float(tested.spared_mb(axis_values(tested, np.array([widths], dtype=np.int64)))[0] * 1e6)


def test_neighbouring_convolutions_spare_both_conversions_of_the_filled_blocks() -> None:
    assert spared(border(), 32, 8, 8) == pytest.approx(2 * 32 * 400)
    assert spared(border(), 24, 8, 8) == pytest.approx(2 * 32 * 400)


def test_a_convolution_that_reads_too_few_channels_for_a_block_spares_nothing() -> None:
    assert spared(border(), 8, 64, 64) == 0


def test_a_value_that_leaves_the_model_is_converted_once_all_the_same() -> None:
    assert spared(border(is_output=True), 32, 8, 8) == pytest.approx(32 * 400)


def test_a_reader_that_wants_plain_channels_keeps_the_conversion_for_itself() -> None:
    two = border(taken=(frozenset({Demand(A)}), None), taken_alone=(frozenset({Demand(A)}), None))
    assert spared(two, 32, 8, 8) == pytest.approx(32 * 400)


def test_two_readers_share_the_conversion_of_a_plain_value() -> None:
    reads = frozenset({Demand(A)})
    two = border(given=None, given_alone=None, taken=(reads, reads), taken_alone=(reads, reads))
    assert spared(two, 32, 8, 8) == pytest.approx(32 * 400)


def test_whole_blocks_are_demanded_by_width() -> None:
    pooled = border(taken=(frozenset({Demand(A, whole=True)}),), taken_alone=(frozenset({Demand(A, whole=True)}),))
    assert spared(pooled, 32, 8, 8) == pytest.approx(2 * 32 * 400)
    assert spared(pooled, 24, 8, 8) == 0


def test_where_many_groups_decide_only_the_channels_follow_the_plan() -> None:
    summed = Expression(0, ((0, 1), (1, 1), (2, 1)))
    given = frozenset(Demand(part, whole=True) for part in (A, B, C))
    many = border(channels=summed, given=given, taken=(frozenset({Demand(summed)}),))
    assert many.axes == (summed,)
    assert spared(many, 8, 8, 16) == pytest.approx(2 * 32 * 400)


def image_shapes(file: bytes) -> dict[str, list[int]]:
    graph = onnx.load_from_string(file).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}


def converted_mb(file: bytes, shapes: dict[str, list[int]], folder: Path) -> float:
    """Megabytes, in filled blocks, that ONNX Runtime converts on this computer. `shapes`: of the whole model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = 0
    for node in onnx.load(folder / "optimised.onnx").graph.node:
        if node.op_type in ("ReorderInput", "ReorderOutput"):
            value = node.input[0] if node.op_type == "ReorderInput" else node.output[0]
            batch, channels, height, width = shapes[value]
            found += batch * math.ceil(channels / 16) * 16 * height * width * 4
    return found / 1e6


@pytest.mark.parametrize("name", ["SqueezeExcite", "resnet20"])
def test_what_is_spared_is_what_onnx_runtime_does_not_convert_in_the_whole(name: str, tmp_path: Path) -> None:
    it = subject(name, "onnxruntime").template
    for ratio in (1.0, 0.5):
        widths = np.minimum(np.maximum(4, (it.sizes * ratio).astype(np.int64) // 4 * 4), it.sizes)
        whole = it.model_at({n: np.arange(width) for n, width in zip(it.group_names, widths, strict=True)})
        shapes = image_shapes(whole)
        alone = sum(converted_mb(it.cut_at_widths(site.index, widths), shapes, tmp_path) for site in it.sites)
        predicted = sum(float(one.spared_mb(axis_values(one, widths[None]))[0]) for one in it.borders)
        assert predicted == pytest.approx(alone - converted_mb(whole, shapes, tmp_path), abs=1e-9)
        assert predicted > 0
