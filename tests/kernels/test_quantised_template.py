"""Quantised templates against true conversions that are pruned first and quantised then."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from template_subjects import ALL, FOLDER, Subject, differences, graph_of, subject

from amc_mobile.device.host import HostDevice, layout_here
from amc_mobile.errors import InvalidConfig, UnsupportedLayer
from amc_mobile.export.converters import quantize_onnx, quantize_tflite, stand_in_images
from amc_mobile.export.parity import not_delegated, run_onnx, run_tflite, sqnr_db
from amc_mobile.formats import open_tflite
from amc_mobile.kernels.kernel import Graph, Node, Value
from amc_mobile.kernels.template import Template, load_or_build
from amc_mobile.kernels.tflite import partners

FAST = "SqueezeExcite"  # padding, depthwise, products with constants, hard swish
NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
FORMS = [
    pytest.param("tflite", "int8", marks=NEEDS_TFLITE),
    pytest.param("tflite", "float16", marks=NEEDS_TFLITE),
    ("onnxruntime", "int8"),
]
EVERY = [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name != FAST)]
QUANTIZE = {"tflite": quantize_tflite, "onnxruntime": quantize_onnx}
TYPES = {("tflite", "int8"): "int8", ("tflite", "float16"): "float32/float16", ("onnxruntime", "int8"): "uint8"}
INTEGER = {"QLinearConv", "QGemm"}
RUN = {"tflite": run_tflite, "onnxruntime": run_onnx}


@cache
def quantised(name: str, runtime: str, precision: str) -> tuple[Subject, Template]:
    it = subject(name, runtime)
    return it, load_or_build(it.model, it.groups, runtime, FOLDER, precision=precision, layout=layout_here(runtime))


def without_requantising(graph: Graph) -> Graph:
    """Concatenated inputs that already have the output's scale are not quantised again: which ones depends on data."""
    source: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        if node.operator == "QUANTIZE" and graph.types[node.inputs[0]] == graph.types[node.outputs[0]]:
            source[node.outputs[0]] = source.get(node.inputs[0], node.inputs[0])
        else:
            nodes.append(replace(node, inputs=tuple(source.get(value, value) for value in node.inputs)))
    return replace(graph, nodes=tuple(nodes))


@pytest.mark.parametrize(("runtime", "precision"), FORMS)
@pytest.mark.parametrize("name", EVERY)
def test_a_plan_has_the_operators_shapes_and_types_of_a_true_quantisation(
    name: str, runtime: str, precision: str
) -> None:
    it, template = quantised(name, runtime, precision)
    true = QUANTIZE[runtime](it.true_file, precision, stand_in_images(it.groups.input_shape))
    files = (template.model_at(it.kept), true)
    assert differences(*(without_requantising(graph_of(file, runtime)) for file in files)) == []


@pytest.mark.parametrize(("runtime", "precision"), FORMS)
@pytest.mark.parametrize("name", [FAST, pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_a_plan_computes_nearly_what_the_float_file_does(name: str, runtime: str, precision: str) -> None:
    # One channel less per group: a network cut at random has other ranges than the scales were made for.
    it, template = quantised(name, runtime, precision)
    kept = {group: np.delete(np.arange(size), size // 2) for group, size in it.groups.channels.items()}
    images = stand_in_images(it.groups.input_shape)[::-1] * 0.9
    outputs, reference = (RUN[runtime](each.model_at(kept), images) for each in (template, it.template))
    assert sqnr_db(outputs, reference) > (12 if precision == "int8" else 50)


@NEEDS_TFLITE
def test_scales_are_cut_with_their_channels() -> None:
    it, template = quantised(FAST, "tflite", "int8")
    files = template.model_at({}), template.model_at(it.kept)
    before, after = (
        next(
            tensor["quantization_parameters"]["scales"]
            for tensor in open_tflite(file).get_tensor_details()
            if len(tensor["quantization_parameters"]["scales"]) == channels
        )
        for file, channels in zip(files, (it.groups.sizes[0], it.widths[0]), strict=True)
    )
    np.testing.assert_array_equal(after, before[it.kept[it.groups.names[0]]])


@pytest.mark.parametrize(("runtime", "precision"), FORMS)
def test_every_kernel_that_is_cut_out_runs_and_is_known_by_its_type(runtime: str, precision: str) -> None:
    it, template = quantised(FAST, runtime, precision)
    for site in template.sites:
        file = template.cut(site.index, it.kept)
        kernel = template.kernel_at(site.index, it.widths)
        nodes = [node.operator for node in graph_of(file, runtime).nodes]
        assert [name for name in nodes if name != "Transpose"] == [operator.name for operator in kernel.operators]
        with HostDevice(runtime).open(file) as session:
            session.run()
        if kernel.macs:
            assert kernel.label.endswith(f" {TYPES[runtime, precision]}")


@pytest.mark.parametrize(("runtime", "precision"), FORMS)
def test_only_kernels_that_hold_another_type_differ_and_no_bias_tells_them_apart(runtime: str, precision: str) -> None:
    it, template = quantised(FAST, runtime, precision)
    keys = {kernel.key for kernel in it.template.kernels(it.widths)}
    for kernel in template.kernels(it.widths):
        if any(operator.dtype != "float32" for operator in kernel.operators):
            assert kernel.key not in keys
        for operator in kernel.operators:
            # A bias is int32 and small, like a shape, which belongs to the key.
            assert operator.weight is None or not {"constant1", "constant2"} & set(dict(operator.attributes))


@NEEDS_TFLITE
@pytest.mark.parametrize(
    ("name", "outside"),
    [(FAST, ["HARD_SWISH"]), pytest.param("DenseLike", ["AVERAGE_POOL_2D"], marks=pytest.mark.slow)],
)
def test_operators_that_xnnpack_does_not_take_are_named(name: str, outside: list[str]) -> None:
    _, template = quantised(name, "tflite", "int8")
    assert not_delegated(template.model_at({})) == outside


@NEEDS_TFLITE
def test_float16_weights_count_half_and_activations_do_not_count_weights() -> None:
    it, template = quantised(FAST, "tflite", "float16")
    for site, other in zip(template.sites, it.template.sites, strict=True):
        half, whole = template.kernel_at(site.index, it.widths), it.template.kernel_at(other.index, it.widths)
        assert (half.macs, half.operator_type) == (whole.macs, whole.operator_type)
        assert half.activation_bytes == whole.activation_bytes
        if half.macs:
            assert half.weight_bytes < whole.weight_bytes


def test_onnx_kernels_hold_the_conversions_around_them() -> None:
    it, template = quantised(FAST, "onnxruntime", "int8")
    names = [[operator.name for operator in kernel.operators] for kernel in template.kernels(it.widths)]
    convolution = ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"]  # weights, bias, activation
    assert convolution in names
    assert ["DequantizeLinear", "DequantizeLinear", "Mul", "QuantizeLinear"] in names
    assert names[0] == ["QuantizeLinear"]
    assert names[-1] == ["DequantizeLinear"]


def executed(file: bytes, folder: Path) -> list[str]:
    """The operators that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("name", [FAST, pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_onnx_kernels_execute_as_they_do_in_the_network(name: str, tmp_path: Path) -> None:
    it, template = quantised(name, "onnxruntime", "int8")
    whole = executed(template.model_at(it.kept), tmp_path)
    assert set(whole) >= INTEGER
    alone = [executed(template.cut(site.index, it.kept), tmp_path) for site in template.sites]
    assert all(found == ["QLinearConv"] for found in alone if "QLinearConv" in found)
    operators = Counter(name for found in alone for name in found)
    assert {name: operators[name] for name in INTEGER} == {name: whole.count(name) for name in INTEGER}


def test_onnx_has_no_float16() -> None:
    it = subject(FAST, "onnxruntime")
    with pytest.raises(InvalidConfig, match="float16"):
        load_or_build(it.model, it.groups, "onnxruntime", FOLDER, precision="float16")


def test_a_quantised_file_without_an_operator_is_refused() -> None:
    node = Node("ADD", (0, 0), (1,), {}, {})
    graph = Graph((node,), {0: (1, 4), 1: (1, 4)}, {0: "float32", 1: "float32"}, (0,), (1,))
    empty = Graph((), {0: (1, 4)}, {0: "int8"}, (0,), (0,))
    with pytest.raises(UnsupportedLayer, match="fewer operators"):
        partners(graph, empty)
