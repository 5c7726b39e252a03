"""Templates of .onnx files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.graph import Graph, Labels, Node
from amc_mobile.kernels.template import PlanCutter, Template

# What ONNX Runtime fuses into the convolution (or sum) before it.
ACTIVATIONS = {"Relu", "Clip", "HardSigmoid", "Sigmoid"}
FUSED_INTO = {"Conv", "Add", "Gemm"}


def parse(content: bytes) -> Any:
    """The model with the shape of every value known. Raises UnsupportedLayer when one cannot be inferred."""
    model = onnx.load_from_string(content)
    if any(name not in _value_shapes(model) for node in model.graph.node for name in node.output if name):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    missing = [n for node in model.graph.node for n in node.output if n and n not in _value_shapes(model)]
    if missing:
        raise UnsupportedLayer("", f"the .onnx file does not tell the shapes of {missing[:3]}")
    return model


def _value_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {v.name: tuple(int(d.dim_value) for d in v.type.tensor_type.shape.dim) for v in values}


def to_graph(model: Any) -> Graph:
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(
            Node(
                name=node.op_type,
                inputs=tuple(name or None for name in node.input),
                constants={slot: weights[name] for slot, name in enumerate(node.input) if name in weights},
                outputs=tuple(node.output),
                attributes={attribute.name: _attribute(attribute) for attribute in node.attribute},
            )
        )
    inputs = tuple(value.name for value in model.graph.input if value.name not in weights)
    return Graph(tuple(nodes), _value_shapes(model), inputs, tuple(value.name for value in model.graph.output))


def _attribute(attribute: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return numpy_helper.to_array(value).tolist()
    return list(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


class OnnxTemplate(Template):
    """An .onnx file whose every width follows the plan."""

    runtime = "onnxruntime"

    def __init__(self, groups: ChannelGroups, model: Any, graph: Graph, labels: Labels) -> None:
        self._model = model
        values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        super().__init__(groups, graph, labels)

    def units(self) -> list[list[int]]:
        """Nodes as ONNX Runtime fuses them: convolution, the sum it ends in, and the activation after either."""
        nodes = self._graph.nodes
        readers: dict[Any, int] = {}
        producer: dict[Any, int] = {}
        for index, node in enumerate(nodes):
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
            producer.update(dict.fromkeys(node.outputs, index))
        units: list[list[int]] = []
        unit_of: dict[int, int] = {}
        for index, node in enumerate(nodes):
            fused: int | None = None
            for name in node.inputs:
                maker = producer.get(name)
                if maker is None or readers.get(name) != 1 or name in self._graph.outputs:
                    continue
                before = nodes[maker].name
                if (node.name in ACTIVATIONS and before in FUSED_INTO) or (node.name == "Add" and before == "Conv"):
                    fused = unit_of[maker]
            if fused is None:
                unit_of[index] = len(units)
                units.append([index])
            else:
                unit_of[index] = fused
                units[fused].append(index)
        return units

    def build(self, cutter: PlanCutter, nodes: Sequence[int] | None) -> bytes:
        source, labels = self._model, self._labels
        chosen = range(len(self._graph.nodes)) if nodes is None else nodes
        model = onnx.ModelProto()
        model.ir_version = source.ir_version
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        model.graph.name = source.graph.name
        names: dict[tuple[str, Any], str] = {}
        read: list[str] = []
        for index in chosen:
            old, node = source.graph.node[index], model.graph.node.add()
            node.op_type, node.domain, node.name = old.op_type, old.domain, old.name
            node.output.extend(old.output)
            for attribute in old.attribute:
                value = labels.attributes.get((index, attribute.name))
                if value is None:
                    node.attribute.append(attribute)
                else:
                    at = cutter.widths
                    new = [e.at(at) for e in value] if isinstance(value, tuple) else value.at(at)
                    node.attribute.append(helper.make_attribute(attribute.name, new))
            for slot, name in enumerate(old.input):
                if slot not in self._graph.nodes[index].constants:
                    node.input.append(name)
                    read.append(name)
                    continue
                label = labels.constants[index, slot]
                # Initialisers that are equal in the original can differ at a plan.
                key = (name, (label.ids and tuple(map(id, label.ids)), label.values))
                if key not in names:
                    taken = sum(1 for other, _ in names if other == name)
                    names[key] = f"{name}.{taken + 1}" if taken else name
                    array = cutter.constant(index, slot, self._graph.nodes[index].constants[slot])
                    model.graph.initializer.append(_tensor(names[key], array))
                node.input.append(names[key])
        made = [name for index in chosen for name in self._graph.nodes[index].outputs]
        if nodes is None:
            inputs, outputs = [str(n) for n in self._graph.inputs], [str(n) for n in self._graph.outputs]
        else:
            inputs = [name for name in dict.fromkeys(read) if name and name not in made]
            outputs = [str(name) for name in made if name not in read]
        model.graph.input.extend(self._value(name, cutter) for name in inputs)
        model.graph.output.extend(self._value(name, cutter) for name in outputs)
        if nodes is None:
            inner = [str(name) for name in made if name and name not in outputs]
            model.graph.value_info.extend(self._value(name, cutter) for name in inner)
        return bytes(model.SerializeToString())

    def _value(self, name: str, cutter: PlanCutter) -> Any:
        return helper.make_tensor_value_info(name, self._types[name], cutter.shape(self._labels.shapes[name]))


def _tensor(name: str, array: Any) -> Any:
    tensor = onnx.TensorProto()
    tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = np.ascontiguousarray(array).tobytes()
    return tensor
