"""Templates of .onnx files."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.graph import Array, Graph, Node, Value
from amc_mobile.kernels.kernel import Attribute
from amc_mobile.kernels.labels import Cut
from amc_mobile.kernels.template import Template

# What ONNX Runtime's CPU provider fuses into the convolution or the matrix product before it.
AFTER_PRODUCT = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"}
ACTIVATIONS = {"Conv": AFTER_PRODUCT | {"Clip"}, "Gemm": AFTER_PRODUCT, "MatMul": AFTER_PRODUCT}
# Arithmetic with constants that it folds into their weights.
FOLDED = {"Conv": {"BatchNormalization", "Mul", "Add"}, "Gemm": set[str](), "MatMul": {"Add"}}
PADDED = {"Conv", "AveragePool", "MaxPool"}  # take the Pad before them
SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


def parse(content: bytes) -> Any:
    """The model with the shape of every value known. Raises UnsupportedLayer when one cannot be inferred."""
    model = onnx.load_from_string(content)
    if _unknown(model):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    if missing := _unknown(model):
        raise UnsupportedLayer("", f"the .onnx file does not tell the shapes of {missing[:3]}")
    return model


def _unknown(model: Any) -> list[str]:
    known = {v.name for v in _values(model) if all(d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)}
    return [name for node in model.graph.node for name in node.output if name and name not in known]


def _values(model: Any) -> list[Any]:
    return [*model.graph.value_info, *model.graph.input, *model.graph.output]


def to_graph(model: Any) -> Graph:
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shapes: dict[Value, tuple[int, ...]] = {name: array.shape for name, array in weights.items()}
    types: dict[Value, str] = {name: array.dtype.name for name, array in weights.items()}
    for value in _values(model):
        shapes[value.name] = tuple(int(d.dim_value) for d in value.type.tensor_type.shape.dim)
        types[value.name] = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    nodes = []
    for node in model.graph.node:
        nodes.append(
            Node(
                operator=node.op_type,
                inputs=tuple(name or None for name in node.input),
                outputs=tuple(node.output),
                constants={slot: weights[name] for slot, name in enumerate(node.input) if name in weights},
                attributes={attribute.name: _attribute(node, attribute) for attribute in node.attribute},
            )
        )
    inputs = tuple(value.name for value in model.graph.input if value.name not in weights)
    return Graph(tuple(nodes), shapes, types, inputs, tuple(value.name for value in model.graph.output))


def _attribute(node: Any, attribute: Any) -> Attribute:
    value = helper.get_attribute_value(attribute)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return tuple(value)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return tuple(numpy_helper.to_array(value).ravel().tolist())
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise UnsupportedLayer("", f"operator {node.op_type} holds a graph of its own: no control flow")
    return value.decode() if isinstance(value, bytes) else value


class OnnxTemplate(Template):
    """An .onnx file whose every width follows the plan. `_source`: the parsed original."""

    runtime = "onnxruntime"

    def __init__(self, source: Any, *facts: Any) -> None:
        self._source = source
        self._element_types = {value.name: value.type.tensor_type.elem_type for value in _values(source)}
        super().__init__(*facts)

    def units(self) -> list[list[int]]:
        return fused_units(self._graph)

    def build(self, cut: Cut, nodes: Sequence[int] | None) -> bytes:
        source = self._source
        model = onnx.ModelProto()
        model.ir_version = source.ir_version
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        graph = model.graph
        graph.name = source.graph.name
        chosen = range(len(self._graph.nodes)) if nodes is None else nodes
        names: dict[Hashable, str] = {}
        copies: dict[str, int] = {}
        for index in chosen:
            old, node = source.graph.node[index], graph.node.add()
            node.op_type, node.domain, node.name = old.op_type, old.domain, old.name
            node.output.extend(old.output)
            changed = cut.changed_attributes(index)
            for attribute in old.attribute:
                new = changed.get(attribute.name)
                node.attribute.append(attribute if new is None else helper.make_attribute(attribute.name, new))
            for slot, name in enumerate(old.input):
                if slot not in self._graph.nodes[index].constants:
                    node.input.append(name)
                    continue
                # Initialisers that are equal in the original can differ at a plan.
                identity = cut.identity(index, slot)
                if identity not in names:
                    copies[name] = copies.get(name, 0) + 1
                    names[identity] = name if copies[name] == 1 else f"{name}.{copies[name]}"
                    _fill(graph.initializer.add(), names[identity], cut.constant(index, slot))
                node.input.append(names[identity])
        if nodes is None:
            inputs, outputs = self._graph.inputs, self._graph.outputs
            inner = [value for node in self._graph.nodes for value in node.outputs if value and value not in outputs]
            graph.value_info.extend(self._value(value, cut) for value in inner)
        else:
            inputs, outputs = self._graph.borders(nodes)
        graph.input.extend(self._value(value, cut) for value in inputs)
        graph.output.extend(self._value(value, cut) for value in outputs)
        return bytes(model.SerializeToString())

    def _value(self, value: Value, cut: Cut) -> Any:
        return helper.make_tensor_value_info(str(value), self._element_types[value], cut.shape(value))


def _fill(tensor: Any, name: str, array: Array) -> None:
    tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = np.ascontiguousarray(array).tobytes()


def fused_units(graph: Graph) -> list[list[int]]:
    """Groups of nodes that ONNX Runtime's CPU provider executes as one, in order of their last node.

    Padding, convolution, the sum it ends in and the activation; or a matrix product and the activation. Nodes that
    only rename a shape belong to the node that reads them: they copy nothing.
    """
    readers = graph.consumers()
    makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
    units: dict[int, list[int]] = {}

    def only_reader(index: int) -> tuple[int, str] | tuple[None, str]:
        """The node that alone reads what `index` makes, and its operator."""
        value = graph.nodes[index].outputs[0]
        found = readers.get(value, [])
        if len(found) != 1 or value in graph.outputs:
            return None, ""
        return found[0], graph.nodes[found[0]].operator

    def fused_after(index: int) -> list[int]:
        operator = graph.nodes[index].operator
        reader, kind = only_reader(index)
        if reader is None:
            return []
        if operator in SHAPE_ONLY or (operator == "Pad" and kind in PADDED):
            return [reader]
        if operator == "Sigmoid" and kind == "Mul":  # x * sigmoid(x), one operator of its own
            return [reader] if graph.nodes[index].inputs[0] in graph.nodes[reader].inputs else []
        return fused_after_product(index) if operator in ACTIVATIONS else []

    def fused_after_product(index: int) -> list[int]:
        operator, fused = graph.nodes[index].operator, []
        last, (reader, kind) = index, only_reader(index)
        while reader is not None and kind in FOLDED[operator] and len(graph.nodes[reader].constants) > 0:
            fused.append(reader)
            last, (reader, kind) = reader, only_reader(reader)
        if reader is not None and kind == "Add" and operator == "Conv" and not graph.nodes[reader].constants:
            # Of two convolutions that are added, the later one has its other summand at hand.
            summands = [makers[value] for value in graph.nodes[reader].inputs if value in makers]
            if max(summands) == last:
                fused.append(reader)
                reader, kind = only_reader(reader)
        if reader is not None and kind in ACTIVATIONS[operator]:
            fused.append(reader)
        return fused

    for index in range(len(graph.nodes)):
        unit = units.setdefault(index, [index])
        for fused in fused_after(index):
            if fused in units:
                break
            unit.append(fused)
            units[fused] = unit
    distinct = {id(unit): sorted(unit) for unit in units.values()}
    return sorted(distinct.values(), key=lambda unit: unit[-1])
