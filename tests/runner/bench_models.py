"""Small models, and the library that pretends to be TFLite."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shlex.split(os.environ.get("CC", "")) or ["cc"]
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"needs a C compiler ({COMPILER[0]})")


def build_fake_library(path: Path, *flags: str, compiler: list[str] | None = None) -> Path:
    source = HERE / "fake_tflite.c"
    command = [*(compiler or COMPILER), "-shared", "-fPIC", "-O1", *flags, str(source), "-o", str(path), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return path


def onnx_model(path: Path) -> Path:
    """Inputs of several types, one of them an index that must stay in range, and one free dimension."""
    from onnx import TensorProto, helper, save

    def tensor(name: str, kind: int, shape: list[int | str]) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Gather", ["x", "index"], ["picked"], axis=0),
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["picked", "full"], ["sum"]),
        helper.make_node("Where", ["mask", "sum", "full"], ["y"]),
        helper.make_node("Relu", ["free"], ["z"]),
    ]
    inputs = [
        tensor("x", TensorProto.FLOAT, [3, 16]), tensor("index", TensorProto.INT64, [4]),
        tensor("half", TensorProto.FLOAT16, [4, 16]), tensor("mask", TensorProto.BOOL, [4, 16]),
        tensor("free", TensorProto.FLOAT, ["batch", 8]),
    ]  # fmt: skip
    outputs = [tensor("y", TensorProto.FLOAT, [4, 16]), tensor("z", TensorProto.FLOAT, ["batch", 8])]
    model = helper.make_model(
        helper.make_graph(nodes, "small", inputs, outputs), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    save(model, str(path))
    return path


def tflite_model(path: Path) -> Path:
    """The sum of two float images, without a signature, as a kernel is cut out of a network."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    graph.tensors = []
    for name in (b"a", b"b", b"sum"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 8, 8, 4], schema.TensorType.FLOAT32, 0
        graph.tensors.append(tensor)
    operator.inputs, operator.outputs = [0, 1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0, 1], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
