"""ONNX models of a few hundred bytes, as files."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper


def convolution(channels: int) -> bytes:
    """One 3x3 convolution of a 16x16 image."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [channels, 3, 3, 3], np.ones(channels * 27, dtype=np.float32))
    shapes = ([1, 3, 16, 16], [1, channels, 14, 14])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True))
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "conv", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(onnx.ModelProto.SerializeToString(model))
