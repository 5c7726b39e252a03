"""Quantised templates against true conversions that are pruned first and quantised then."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from template_subjects import ALL, FOLDER, Subject, graph_of, subject

from amc_mobile.errors import UnsupportedLayer
from amc_mobile.export.interpret import run_tflite, tflite_interpreter
from amc_mobile.export.parity import sqnr_db
from amc_mobile.export.quantize import quantize_tflite, stand_in_images
from amc_mobile.kernels.cache import load_or_build
from amc_mobile.kernels.graph import Graph, Node, differences
from amc_mobile.kernels.overlay import in_order
from amc_mobile.kernels.template import Template

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
FAST = "SqueezeExcite"  # padding, depthwise, products with constants, hard swish
# Of concatenated inputs those that already have the output's scale are not quantised again: which ones depends on data.
SAME_STRUCTURE = [name for name in ALL if name != "ShuffleLike"]
EVERY = [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SAME_STRUCTURE if name != FAST)]


@cache
def quantised(name: str, precision: str) -> tuple[Subject, Template, bytes, bytes]:
    """The subject, its template, its file at the random plan, and the true one."""
    it = subject(name, "tflite")
    template = load_or_build(it.model, it.groups, "tflite", FOLDER, precision=precision)
    true = quantize_tflite(it.true_file, precision, stand_in_images(it.groups.input_shape))
    return it, template, template.model_at(it.kept), true


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("name", EVERY)
def test_a_plan_has_the_operators_shapes_and_types_of_a_true_quantisation(name: str, precision: str) -> None:
    _, _, file, true = quantised(name, precision)
    assert differences(graph_of(file, "tflite"), graph_of(true, "tflite")) == []


@pytest.mark.parametrize(("precision", "least_db"), [("int8", 12.0), ("float16", 50.0)])
@pytest.mark.parametrize("name", [FAST, pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_a_plan_computes_nearly_what_the_float_file_does(name: str, precision: str, least_db: float) -> None:
    # One channel less per group: a network cut at random has other ranges than the scales were made for.
    it, template, _, _ = quantised(name, precision)
    kept = {group: np.delete(np.arange(size), size // 2) for group, size in it.groups.channels.items()}
    images = stand_in_images(it.groups.input_shape)[::-1] * 0.9
    outputs, reference = (run_tflite(each.model_at(kept), images) for each in (template, it.template))
    assert sqnr_db(outputs, reference) > least_db


def test_scales_are_cut_with_their_channels() -> None:
    it, template, file, _ = quantised(FAST, "int8")
    full, cut = (tflite_interpreter(content).get_tensor_details() for content in (template.model_at({}), file))
    before, after = (
        next(t for t in tensors if len(t["quantization_parameters"]["scales"]) == channels)
        for tensors, channels in ((full, it.groups.sizes[0]), (cut, it.widths[0]))
    )
    kept = it.kept[it.groups.names[0]]
    np.testing.assert_array_equal(
        after["quantization_parameters"]["scales"], before["quantization_parameters"]["scales"][kept]
    )


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_every_kernel_that_is_cut_out_runs_and_is_known_by_its_type(precision: str) -> None:
    it, template, _, _ = quantised(FAST, precision)
    for site in template.sites:
        graph = graph_of(template.cut(site.index, it.kept), "tflite")
        kernel = template.kernel_at(site.index, it.widths)
        assert [node.operator for node in graph.nodes] == [operator.name for operator in kernel.operators]
        interpreter = tflite_interpreter(template.cut(site.index, it.kept))
        interpreter.invoke()
        assert len(interpreter.get_output_details()) == 1
        if kernel.macs:
            assert kernel.label.endswith("int8") == (precision == "int8")


def test_kernels_of_other_precisions_are_others_and_do_not_hold_weights() -> None:
    it, template, _, _ = quantised(FAST, "int8")
    float_keys = {kernel.key for kernel in it.template.kernels(it.widths)}
    kernels = template.kernels(it.widths)
    assert not float_keys & {kernel.key for kernel in kernels}
    # A bias is int32 and small, like a shape; its values must not decide which kernels are equal.
    convolution = next(kernel.main for kernel in kernels if kernel.main.kind == "convkxk")
    assert "constant2" not in dict(convolution.attributes)


def test_float16_weights_count_half_and_activations_do_not_count_weights() -> None:
    it, template, _, _ = quantised(FAST, "float16")
    for site, other in zip(template.sites, it.template.sites, strict=True):
        half, whole = template.kernel_at(site.index, it.widths), it.template.kernel_at(other.index, it.widths)
        assert (half.macs, half.operator_type) == (whole.macs, whole.operator_type)
        assert half.activation_bytes == whole.activation_bytes
        if half.macs:
            assert half.weight_bytes < whole.weight_bytes


def test_a_quantised_file_without_an_operator_is_refused() -> None:
    node = Node("ADD", (0, 0), (1,), {}, {})
    graph = Graph((node,), {0: (1, 4), 1: (1, 4)}, {0: "float32", 1: "float32"}, (0,), (1,))
    empty = Graph((), {0: (1, 4)}, {0: "int8"}, (0,), (0,))
    with pytest.raises(UnsupportedLayer, match="fewer operators"):
        in_order(graph, empty)
