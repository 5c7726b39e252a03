from __future__ import annotations

import json

import pytest

from amc_mobile.errors import InvalidInput
from amc_mobile.kernels.kernel import Kernel, Operator

CONV = Operator(
    "CONV_2D",
    ((1, 113, 113, 3), (32, 3, 3, 3), (32,)),
    (False, True, True),
    ((1, 56, 56, 32),),
    (("fusedActivationFunction", 3), ("strideH", 2), ("strideW", 2)),
)
PAD = Operator("PAD", ((1, 112, 112, 3), (4, 2)), (False, True), ((1, 113, 113, 3),), (("constant1", (0, 0)),))
DEPTHWISE = Operator(
    "DEPTHWISE_CONV_2D",
    ((1, 14, 14, 96), (1, 3, 3, 96), (96,)),
    (False, True, True),
    ((1, 14, 14, 96),),
    (("depthMultiplier", 1), ("strideH", 1), ("strideW", 1)),
)
LINEAR = Operator("FULLY_CONNECTED", ((1, 64), (10, 64), (10,)), (False, True, True), ((1, 10),))
ADD = Operator("ADD", ((1, 7, 7, 24), (1, 7, 7, 24)), (False, False), ((1, 7, 7, 24),))


def onnx_conv(inputs: int, outputs: int, groups: int) -> Operator:
    weight = (outputs, inputs // groups, 3, 3)
    return Operator(
        "Conv",
        ((1, inputs, 14, 14), weight, (outputs,)),
        (False, True, True),
        ((1, outputs, 7, 7),),
        (("group", groups), ("kernel_shape", (3, 3)), ("strides", (2, 2))),
    )


@pytest.mark.parametrize(
    ("operator", "macs", "kind"),
    [
        (CONV, 56 * 56 * 32 * 3 * 9, "convkxk"),
        (DEPTHWISE, 14 * 14 * 96 * 9, "depthwise"),
        (LINEAR, 640, "linear"),
        (ADD, 0, "add"),
        (onnx_conv(16, 24, 1), 7 * 7 * 24 * 16 * 9, "convkxk"),
        (onnx_conv(16, 16, 16), 7 * 7 * 16 * 9, "depthwise"),
        (onnx_conv(16, 32, 4), 7 * 7 * 32 * 4 * 9, "grouped"),
        (
            Operator("Gemm", ((1, 64), (10, 64), (10,)), (False, True, True), ((1, 10),), (("transB", 1),)),
            640,
            "linear",
        ),
        (Operator("Gemm", ((1, 64), (64, 10)), (False, True), ((1, 10),)), 640, "linear"),
        (
            Operator("TRANSPOSE_CONV", ((4,), (8, 2, 2, 16), (1, 5, 5, 16)), (True, True, False), ((1, 10, 10, 8),)),
            5 * 5 * 16 * 8 * 4,
            "transposed",
        ),
        (
            Operator("ConvTranspose", ((1, 16, 5, 5), (16, 8, 2, 2)), (False, True), ((1, 8, 10, 10),)),
            5 * 5 * 16 * 8 * 4,
            "transposed",
        ),
    ],
)
def test_macs_follow_the_layout_of_each_format(operator: Operator, macs: int, kind: str) -> None:
    assert (operator.macs, operator.kind) == (macs, kind)


def test_a_pointwise_convolution_is_its_own_kind() -> None:
    pointwise = Operator("CONV_2D", ((1, 7, 7, 8), (16, 1, 1, 8)), (False, True), ((1, 7, 7, 16),))
    assert pointwise.kind == "conv1x1"


def test_the_label_tells_window_stride_channels_and_output() -> None:
    assert Kernel("tflite", (PAD, CONV)).label == "PAD+CONV_2D 3x3/2 3->32 @56x56"
    assert Kernel("tflite", (DEPTHWISE,)).label == "DEPTHWISE_CONV_2D 3x3 96 @14x14"
    assert Kernel("tflite", (LINEAR,)).label == "FULLY_CONNECTED 64->10"
    assert Kernel("tflite", (ADD,)).label == "ADD 24 @7x7"


def test_a_fused_unit_is_named_after_the_operator_with_the_work() -> None:
    assert Kernel("tflite", (PAD, CONV)).operator_type == "convkxk"


def test_bytes_count_weights_and_what_crosses_the_borders() -> None:
    kernel = Kernel("tflite", (PAD, CONV))
    assert kernel.weight_bytes == 4 * (32 * 27 + 32 + 8)
    assert kernel.activation_bytes == 4 * (112 * 112 * 3 + 56 * 56 * 32)


def test_a_residual_unit_reads_its_second_summand() -> None:
    conv, add = onnx_conv(16, 24, 1), Operator("Add", ((1, 24, 7, 7), (1, 24, 7, 7)), (False, False), ((1, 24, 7, 7),))
    assert Kernel("onnxruntime", (conv, add)).activation_bytes == 4 * (16 * 14 * 14 + 2 * 24 * 7 * 7)


def test_the_key_is_the_same_after_a_round_trip_through_json() -> None:
    kernel = Kernel("tflite", (PAD, CONV))
    again = Kernel.from_document(json.loads(json.dumps(kernel.to_document())))
    assert again == kernel
    assert again.key == kernel.key and len(kernel.key) == 64


@pytest.mark.parametrize(
    "other",
    [
        Kernel("tflite", (DEPTHWISE, ADD)),
        Kernel("onnxruntime", (DEPTHWISE,)),
        Kernel("tflite", (Operator(DEPTHWISE.name, DEPTHWISE.inputs, DEPTHWISE.constants, DEPTHWISE.outputs),)),
    ],
)
def test_another_runtime_operator_or_attribute_is_another_key(other: Kernel) -> None:
    assert other.key != Kernel("tflite", (DEPTHWISE,)).key


@pytest.mark.parametrize("document", [{}, {"runtime": "tflite", "operators": []}, {"runtime": "x", "operators": [[1]]}])
def test_a_document_that_is_no_kernel_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="not a kernel"):
        Kernel.from_document(document)
