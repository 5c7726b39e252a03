"""Templates of .onnx files."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amc_mobile.device.layout import SUMS, OnnxLayout
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.formats import ONNX
from amc_mobile.kernels.kernel import CONVERSIONS, Array, Attribute, Expression, Graph, Node, Value
from amc_mobile.kernels.labels import Cut
from amc_mobile.kernels.onnx_layout import Border, Layouts
from amc_mobile.kernels.template import Template

SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


def fused_units(graph: Graph, layout: OnnxLayout) -> list[list[int]]:
    """Groups of nodes that are executed as one, in order of their last node.

    Padding, convolution, the sum it ends in and the activation; or a matrix product and the activation. Nodes that
    only rename a shape belong to the node that reads them: they copy nothing. In QDQ files conversions belong to the
    unit between them; a converted activation that several units read belongs to each, as ONNX Runtime duplicates it.
    """
    return _with_conversions(graph, _Fusion(graph, layout).units())


def _with_conversions(graph: Graph, units: list[list[int]]) -> list[list[int]]:
    makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
    readers = graph.consumers()
    working = [unit for unit in units if any(graph.nodes[index].operator not in CONVERSIONS for index in unit)]
    merged = []
    for unit in working:
        before = {makers[v] for index in unit for v in graph.nodes[index].inputs if v is not None and v in makers}
        after = {reader for index in unit for v in graph.nodes[index].outputs for reader in readers.get(v, [])}
        added = {index for index in before if graph.nodes[index].operator == "DequantizeLinear"}
        added |= {index for index in after if graph.nodes[index].operator == "QuantizeLinear"}
        merged.append(sorted({*unit, *added}))
    taken = {index for unit in merged for index in unit}
    alone = [unit for unit in units if unit not in working and not taken & set(unit)]  # at the network's ends
    return sorted([*merged, *alone], key=lambda unit: unit[-1])


class _Fusion:
    def __init__(self, graph: Graph, layout: OnnxLayout) -> None:
        self._graph, self._layout = graph, layout
        self._readers = graph.consumers()
        self._makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
        self._unit: dict[int, list[int]] = {}
        self._blocked: set[Value] = set()

    def units(self) -> list[list[int]]:
        for index, node in enumerate(self._graph.nodes):
            unit = self._unit.setdefault(index, [index])
            for fused in self._fused_after(index):
                if fused in self._unit:
                    break
                unit.append(fused)
                self._unit[fused] = unit
            if self._gives_blocks(node):
                self._blocked.update(node.outputs)
        distinct = {id(unit): sorted(unit) for unit in self._unit.values()}
        return sorted(distinct.values(), key=lambda unit: unit[-1])

    def _gives_blocks(self, node: Node) -> bool:
        """Whether a node's output is laid out in blocks of channels."""
        if node.operator == "Conv":
            return bool(self._layout.block) and len(self._graph.shapes[node.outputs[0]]) == 4
        data = [value for slot, value in enumerate(node.inputs) if value is not None and slot not in node.constants]
        if not data or not all(value in self._blocked for value in data):
            return False
        if multiple := self._layout.part_multiple(node.operator):
            return all(self._graph.shapes[value][1] % multiple == 0 for value in data)
        # With a constant summand or factor they leave the blocks.
        return node.operator in self._layout.on_blocks and not (node.operator in SUMS and node.constants)

    def _only_reader(self, index: int) -> tuple[int, str] | tuple[None, str]:
        """The node that alone reads what `index` makes, and its operator."""
        value = self._graph.nodes[index].outputs[0]
        readers = self._readers.get(value, [])
        if len(readers) != 1 or value in self._graph.outputs:
            return None, ""
        return readers[0], self._graph.nodes[readers[0]].operator

    def _fused_after(self, index: int) -> list[int]:
        node = self._graph.nodes[index]
        operator = node.operator
        reader, kind = self._only_reader(index)
        if reader is None:
            return []
        if operator in SHAPE_ONLY or (operator == "Pad" and kind in self._layout.pads_fused):
            return [reader]
        if operator == "Sigmoid" and kind == "Mul" and self._layout.gated_sigmoid:
            return [reader] if node.inputs[0] in self._graph.nodes[reader].inputs else []
        if operator == "BatchNormalization" and node.inputs[0] in self._blocked:
            # On blocks it becomes a depthwise convolution.
            return [reader] if kind in self._layout.fused_after["Conv"] else []
        return self._fused_after_product(index) if operator in self._layout.fused_after else []

    def _fused_after_product(self, index: int) -> list[int]:
        nodes = self._graph.nodes
        operator, fused = nodes[index].operator, list[int]()
        last, (reader, kind) = index, self._only_reader(index)
        while reader is not None and kind in self._layout.folded_after[operator] and nodes[reader].constants:
            fused.append(reader)
            last, (reader, kind) = reader, self._only_reader(reader)
        bare = self._layout.sums_need_bias and len(nodes[index].inputs) < 3 and not fused
        if reader is not None and kind == "Add" and operator == "Conv" and not bare and self._adds(last, reader):
            following, kind = self._only_reader(reader)
            taken = self._layout.sums_fused_before
            if following is not None and kind in taken:
                return [*fused, reader, following]
            return [*fused, reader] if "" in taken else fused
        # A matrix product with a summand is a Gemm.
        product = "Gemm" if operator == "MatMul" and fused else operator
        if reader is not None and kind in self._layout.fused_after[product]:
            fused.append(reader)
        return fused

    def _adds(self, last: int, reader: int) -> bool:
        """Whether the convolution that ends at `last` may add what `reader` sums: nothing else is left to do first."""
        node, nodes = self._graph.nodes[reader], self._graph.nodes
        makers = [self._makers.get(value, -1) for value in node.inputs]
        if node.constants:
            return False
        if self._layout.block:
            # It is the later summand, and the other one is in blocks.
            others = [value for value in node.inputs if self._makers.get(value) != last]
            return max(makers) == last and all(value in self._blocked for value in others)
        # Of two convolutions the later one adds.
        return not any(nodes[maker].operator == "Conv" for maker in makers if maker > last)


EIGHT_BITS = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


def parse(content: bytes) -> Any:
    """The model with the shape of every value known. Raises UnsupportedLayer when one cannot be inferred."""
    model = onnx.load_from_string(content)
    if _unknown(model):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    if missing := _unknown(model):
        raise UnsupportedLayer("", f"the .onnx file does not hold the shapes of {missing[:3]}")
    return model


def _unknown(model: Any) -> list[str]:
    shaped = {v.name for v in _values(model) if all(d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)}
    return [name for node in model.graph.node for name in node.output if name and name not in shaped]


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
    outputs = tuple(value.name for value in model.graph.output)
    quantised = frozenset[Value](
        node.inputs[slot] for node in nodes if node.operator in CONVERSIONS for slot in node.constants
    )
    return Graph(tuple(nodes), shapes, types, inputs, outputs, quantised)


def _attribute(node: Any, attribute: Any) -> Attribute:
    value = helper.get_attribute_value(attribute)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return tuple(value)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return tuple(numpy_helper.to_array(value).ravel().tolist())
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise UnsupportedLayer("", f"operator {node.op_type} holds a graph of its own: no control flow")
    return value.decode() if isinstance(value, bytes) else value


ABSORBED = ("Relu", "Clip")  # by the range of the quantised values
QDQ_SUFFIX = "_QuantizeLinear_Input"  # of a network's output, which is converted back


def partners(graph: Graph, quantised: Graph) -> list[int | None]:
    """For each node of `quantised` the node of `graph` it comes from: they are sorted anew, but keep what they make."""
    makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
    sources: list[int | None] = []
    for node in quantised.nodes:
        index = None if node.operator in CONVERSIONS else makers.get(str(node.outputs[0]).removesuffix(QDQ_SUFFIX))
        while index is not None and graph.nodes[index].operator in set(ABSORBED) - {node.operator}:
            value = graph.nodes[index].inputs[0]
            index = None if value is None else makers.get(value)
        sources.append(index)
    return sources


class OnnxTemplate(Template):
    """An .onnx file whose every width follows the plan."""

    runtime = ONNX.runtime

    @cached_property
    def _element_types(self) -> dict[str, int]:
        return {value.name: value.type.tensor_type.elem_type for value in _values(self._source)}

    def units(self) -> list[list[int]]:
        return fused_units(self._graph, self._layout)

    def other_code_from(self, nodes: Sequence[int], axes: Sequence[Expression]) -> dict[int, int]:
        """Convolutions in float read blocks of channels where there are enough to fill one, else plain channels."""
        starts = dict[int, int]()
        if not self._layout.block:
            return starts
        for index in nodes:
            node = self._graph.nodes[index]
            if node.operator == "Conv" and node.attributes.get("group", 1) == 1 and not self._graph.quantised:
                channels = self._labels.of_input(self._graph, index, 0)
                starts |= {
                    place: self._layout.dense_from
                    for place, axis in enumerate(axes)
                    if channels and axis == channels[1]
                }
        return starts

    @property
    def converts_layouts(self) -> bool:
        layout = self._layout
        return (
            layout.integer_channels_last if self._graph.quantised else bool(layout.block or layout.float_channels_last)
        )

    @cached_property
    def borders(self) -> tuple[Border, ...]:
        if self._graph.quantised or not self._layout.block:  # in QDQ form, integer convolutions are laid out otherwise
            return ()
        units = [site.nodes for site in self.sites]
        return Layouts(self._graph, self._labels.shapes, units, self.sizes, self._layout).borders()

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
            if len(nodes) > 1 and graph.node[-1].op_type == "HardSwish":
                # ONNX Runtime fuses it into the convolution only where the graph does not end in it. One element is
                # taken of what it gives: any view of the whole would be copied to the output, and timed.
                (name,) = outputs
                first = numpy_helper.from_array(np.zeros((1, len(cut.shape(name))), np.int64), f"{name}.index")
                graph.initializer.append(first)
                graph.node.append(helper.make_node("GatherND", [str(name), first.name], [f"{name}.first"]))
                graph.output.append(helper.make_tensor_value_info(f"{name}.first", self._element_types[str(name)], [1]))
                outputs = ()
        graph.input.extend(self._value(value, cut) for value in inputs)
        graph.output.extend(self._value(value, cut) for value in outputs)
        convolves = any(node.op_type == "Conv" for node in graph.node)
        if nodes is not None and convolves and self._layout.integer_channels_last:
            _channels_last(graph)
        return bytes(model.SerializeToString())

    def _value(self, value: Value, cut: Cut) -> Any:
        return helper.make_tensor_value_info(str(value), self._element_types[str(value)], cut.shape(value))


TEMPLATE = OnnxTemplate


def _channels_last(graph: Any) -> None:
    """Gives a convolution whose borders are all 8-bit images an input and an output with their channels last.

    ONNX Runtime computes it that way. Inside a network neighbours agree on that; alone, it would be measured with the
    two transpositions that it puts around it, which cancel those that are added here.
    """
    types = [value.type.tensor_type for value in (*graph.input, *graph.output)]
    if any(one.elem_type not in EIGHT_BITS or len(one.shape.dim) != 4 for one in types):
        return
    for value in graph.input:
        name = _move_channels(value)
        graph.node.insert(0, helper.make_node("Transpose", [value.name], [name], perm=[0, 3, 1, 2]))
    for value in graph.output:
        name = _move_channels(value)
        graph.node.append(helper.make_node("Transpose", [name], [value.name], perm=[0, 2, 3, 1]))


def _move_channels(value: Any) -> str:
    """Renames `value` and moves its channels to the end, in place; returns the name it had."""
    name, of = str(value.name), value.type.tensor_type
    batch, channels, *image = (dim.dim_value for dim in of.shape.dim)
    value.CopyFrom(helper.make_tensor_value_info(f"{name}.last", of.elem_type, [batch, *image, channels]))
    return name


def _fill(tensor: Any, name: str, array: Array) -> None:
    tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = np.ascontiguousarray(array).tobytes()
