from __future__ import annotations

import math

import numpy as np
import onnx
import processors
import pytest
from template_subjects import FOLDER, network

from amc_mobile.device.host import layout_here
from amc_mobile.device.layout import OnnxLayout
from amc_mobile.kernels.kernel import Expression
from amc_mobile.kernels.onnx_layout import ALWAYS, Border, Demand
from amc_mobile.kernels.template import Template, load_or_build
from amc_mobile.latency.kernel_fit import axis_values

A, B, C = (Expression(0, ((group, 1),)) for group in range(3))
FILLED = Demand(A, at_least=16)
WHOLE = Demand(A, multiple=16)
SIZES = np.array([64, 64, 64], dtype=np.int64)


def border(**changes: object) -> Border:
    """Between two convolutions, on a 10x10 map."""
    facts: dict[str, object] = {
        "block": 16, "channels": A, "bytes_per_channel": 400, "sizes": SIZES, "is_output": False, "given": ALWAYS,
        "given_alone": ALWAYS, "taken": (frozenset({FILLED}),), "taken_alone": (frozenset({FILLED}),),
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
    two = border(taken=(frozenset({FILLED}), None), taken_alone=(frozenset({FILLED}), None))
    assert spared(two, 32, 8, 8) == pytest.approx(32 * 400)


def test_two_readers_share_the_conversion_of_a_plain_value() -> None:
    reads = frozenset({FILLED})
    two = border(given=None, given_alone=None, taken=(reads, reads), taken_alone=(reads, reads))
    assert spared(two, 32, 8, 8) == pytest.approx(32 * 400)


def test_whole_blocks_are_demanded_by_width() -> None:
    pooled = border(taken=(frozenset({WHOLE}),), taken_alone=(frozenset({WHOLE}),))
    assert spared(pooled, 32, 8, 8) == pytest.approx(2 * 32 * 400)
    assert spared(pooled, 24, 8, 8) == 0


def test_where_many_groups_decide_only_the_channels_follow_the_plan() -> None:
    summed = Expression(0, ((0, 1), (1, 1), (2, 1)))
    given = frozenset(Demand(part, multiple=16) for part in (A, B, C))
    many = border(channels=summed, given=given, taken=(frozenset({Demand(summed, at_least=16)}),))
    assert many.axes == (summed,)
    assert spared(many, 8, 8, 16) == pytest.approx(2 * 32 * 400)


def test_a_block_of_eight_channels_is_filled_to_eight() -> None:
    eight = frozenset({Demand(A, at_least=8)})
    assert spared(border(block=8, taken=(eight,), taken_alone=(eight,)), 24, 8, 8) == pytest.approx(2 * 24 * 400)


def image_shapes(file: bytes) -> dict[str, list[int]]:
    graph = onnx.load_from_string(file).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}


def converted_mb(optimised: bytes, shapes: dict[str, list[int]], block: int) -> float:
    """Megabytes, in filled blocks, that ONNX Runtime converts in a graph it made. `shapes`: of the whole model."""
    found = 0
    for node in processors.nodes(optimised):
        if node.op_type in ("ReorderInput", "ReorderOutput"):
            value = node.input[0] if node.op_type == "ReorderInput" else node.output[0]
            batch, channels, height, width = shapes[value]
            found += batch * math.ceil(channels / block) * block * height * width * 4
    return found / 1e6


@pytest.fixture(params=processors.PROCESSORS)
def processor(request: pytest.FixtureRequest) -> str:
    if why := processors.missing(request.param):
        pytest.skip(why)
    return str(request.param)


def test_the_layout_of_every_processor_is_read_from_its_runtime(processor: str) -> None:
    layout = processors.layout(processor)
    expected = {"x86 with AVX2": 8, "arm64": 0, "arm64 with SME": 0}.get(processor, layout.block)
    assert layout.block == expected
    assert layout.dense_from == layout.block
    assert "Relu" in layout.fused_after["Conv"]
    assert OnnxLayout.parse(layout.text()) == layout


def test_the_layout_that_the_package_reads_here_is_what_the_runner_reads_here() -> None:
    assert OnnxLayout.parse(layout_here("onnxruntime")) == processors.layout("here")


@pytest.mark.parametrize("name", ["SqueezeExcite", "resnet20"])
def test_what_is_spared_is_what_onnx_runtime_does_not_convert_in_the_whole(name: str, processor: str) -> None:
    it, layout = template_on(name, processor), processors.layout(processor)
    for ratio in (1.0, 0.5):
        widths = np.minimum(np.maximum(4, (it.sizes * ratio).astype(np.int64) // 4 * 4), it.sizes)
        whole = it.model_at({n: np.arange(width) for n, width in zip(it.group_names, widths, strict=True)})
        shapes = image_shapes(whole)
        cuts = [it.cut_at_widths(site.index, widths) for site in it.sites]
        graph, *graphs = processors.optimised(processor, [whole, *cuts])
        assert len(graphs) == len(cuts)
        alone = sum(converted_mb(one, shapes, layout.block) for one in graphs)
        predicted = sum(float(one.spared_mb(axis_values(one, widths[None]))[0]) for one in it.borders)
        assert predicted == pytest.approx(alone - converted_mb(graph, shapes, layout.block), abs=1e-9)
        assert (predicted > 0) == (layout.block > 0)


@pytest.mark.parametrize("name", ["SqueezeExcite", "resnet20", "InceptionLike", "ShuffleLike"])
def test_units_are_what_onnx_runtime_executes(name: str, processor: str) -> None:
    template, layout = template_on(name, processor), processors.layout(processor)
    if layout.float_channels_last:
        pytest.skip("what is transposed there depends on the whole network")
    (graph,) = processors.optimised(processor, [template.model_at({})])
    # Conversions of the layout belong to no operator of ours; renaming a shape is free.
    free = ("ReorderInput", "ReorderOutput", "Reshape")
    executed = [node.op_type for node in processors.nodes(graph) if node.op_type not in free]
    # A hard swish that is fused into nothing is executed as two.
    two = sum(kernel.label.startswith("HardSwish") for kernel in template.kernels(template.sizes))
    assert len(template.sites) + two == len(executed)


def template_on(name: str, processor: str) -> Template:
    model, groups = network(name)
    return load_or_build(model, groups, "onnxruntime", FOLDER, layout=processors.layout(processor).text())
