"""Templates of .tflite files (FlatBuffers)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.graph import Array, Graph, Labels, Node
from amc_mobile.kernels.kernel import GLUE_NAMES
from amc_mobile.kernels.template import PlanCutter, Template

OPERATOR_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
DTYPES = {
    schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16, schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8, schema.TensorType.INT16: np.int16, schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64, schema.TensorType.BOOL: np.bool_,
}  # fmt: skip


def parse(content: bytes) -> Any:
    """The file as a schema object. Large buffers may lie outside the FlatBuffer: they are brought in."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    if len(model.subgraphs) != 1:
        raise UnsupportedLayer("", f"the .tflite file has {len(model.subgraphs)} subgraphs, not one")
    return model


def to_graph(model: Any) -> Graph:
    subgraph = model.subgraphs[0]
    constants = {i: array for i, t in enumerate(subgraph.tensors) if (array := _constant(model, t)) is not None}
    nodes = []
    for operator in subgraph.operators:
        inputs = [int(i) for i in operator.inputs]
        nodes.append(
            Node(
                name=operator_name(model, operator),
                inputs=tuple(None if i < 0 else i for i in inputs),
                constants={slot: constants[i] for slot, i in enumerate(inputs) if i in constants},
                outputs=tuple(int(i) for i in operator.outputs),
                attributes=_attributes(operator),
            )
        )
    shapes = {i: _shape(tensor) for i, tensor in enumerate(subgraph.tensors)}
    return Graph(tuple(nodes), shapes, tuple(map(int, subgraph.inputs)), tuple(map(int, subgraph.outputs)))


def operator_name(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(n) for n in tensor.shape)


def _constant(model: Any, tensor: Any) -> Array | None:
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return None
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), DTYPES[tensor.type]).reshape(_shape(tensor))


def _attributes(operator: Any) -> dict[str, Any]:
    options = operator.builtinOptions
    if options is None:
        return {}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(options).items()}


class TfliteTemplate(Template):
    """A .tflite file whose every width follows the plan."""

    runtime = "tflite"

    def __init__(self, groups: ChannelGroups, model: Any, graph: Graph, labels: Labels) -> None:
        self._model = model
        super().__init__(groups, graph, labels)

    def units(self) -> list[list[int]]:
        """Operators one by one; PAD, QUANTIZE and DEQUANTIZE belong to their consumer where it is the only one."""
        readers: dict[Any, int] = {}
        for node in self._graph.nodes:
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
        units: list[list[int]] = []
        pending: dict[Any, list[int]] = {}
        for index, node in enumerate(self._graph.nodes):
            unit = [earlier for name in node.inputs for earlier in pending.pop(name, [])] + [index]
            output = node.outputs[0]
            if node.name in GLUE_NAMES and readers.get(output) == 1 and output not in self._graph.outputs:
                pending[output] = unit
            else:
                units.append(unit)
        return units

    def build(self, cutter: PlanCutter, nodes: Sequence[int] | None) -> bytes:
        return _Builder(self._model, self._graph, self._labels, cutter).build(nodes)


class _Builder:
    """Writes one file."""

    def __init__(self, model: Any, graph: Graph, labels: Labels, cutter: PlanCutter) -> None:
        self._source, self._graph, self._labels, self._cutter = model, graph, labels, cutter
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = model.description
        self._model.buffers = [schema.BufferT()]  # buffer 0 is empty by convention
        self._model.operatorCodes = []
        self._subgraph = schema.SubGraphT()
        self._subgraph.name = model.subgraphs[0].name
        self._subgraph.tensors, self._subgraph.operators = [], []
        self._model.subgraphs = [self._subgraph]
        self._activations: dict[int, int] = {}
        self._constants: dict[tuple[int, Any], int] = {}
        self._copies: dict[int, int] = {}
        self._codes: dict[int, int] = {}

    def build(self, nodes: Sequence[int] | None) -> bytes:
        chosen = range(len(self._graph.nodes)) if nodes is None else nodes
        for index in chosen:
            self._add_operator(index)
        if nodes is None:
            inputs, outputs = list(self._graph.inputs), list(self._graph.outputs)
        else:
            made = {name for index in chosen for name in self._graph.nodes[index].outputs}
            read = [
                name
                for index in chosen
                for slot, name in enumerate(self._graph.nodes[index].inputs)
                if name is not None and slot not in self._graph.nodes[index].constants
            ]
            inputs = [name for name in dict.fromkeys(read) if name not in made]
            outputs = [n for index in chosen for n in self._graph.nodes[index].outputs if n not in read]
        self._subgraph.inputs = [self._activation(int(name)) for name in inputs]
        self._subgraph.outputs = [self._activation(int(name)) for name in outputs]
        self._model.signatureDefs = [self._signature()]
        size = sum(len(buffer.data) for buffer in self._model.buffers if buffer.data is not None)
        builder = flatbuffers.Builder(size + 65536)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _add_operator(self, index: int) -> None:
        operator = copy.copy(self._source.subgraphs[0].operators[index])
        node = self._graph.nodes[index]
        if operator.opcodeIndex not in self._codes:
            self._codes[operator.opcodeIndex] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(self._source.operatorCodes[operator.opcodeIndex])
        changed = {key: value for (owner, key), value in self._labels.attributes.items() if owner == index}
        if changed:
            operator.builtinOptions = copy.copy(operator.builtinOptions)
            for key, value in changed.items():
                at = self._cutter.widths
                new = [e.at(at) for e in value] if isinstance(value, tuple) else value.at(at)
                setattr(operator.builtinOptions, key, new)
        tensors = []
        for slot, name in enumerate(node.inputs):
            if name is None:
                tensors.append(-1)
            elif slot in node.constants:
                tensors.append(self._constant(index, slot, int(name)))
            else:
                tensors.append(self._activation(int(name)))
        operator.opcodeIndex = self._codes[operator.opcodeIndex]
        operator.inputs = np.array(tensors, np.int32)
        operator.outputs = np.array([self._activation(int(name)) for name in node.outputs], np.int32)
        self._subgraph.operators.append(operator)

    def _activation(self, name: int) -> int:
        if name not in self._activations:
            tensor = copy.copy(self._source.subgraphs[0].tensors[name])
            tensor.shape = np.array(self._cutter.shape(self._labels.shapes[name]), np.int32)
            tensor.buffer, tensor.shapeSignature = 0, None
            self._activations[name] = self._append(tensor)
        return self._activations[name]

    def _constant(self, index: int, slot: int, name: int) -> int:
        # Constants that are equal in the original can differ at a plan, e.g. the zero biases of two groups.
        label = self._labels.constants[index, slot]
        key = (name, (label.ids and tuple(map(id, label.ids)), label.values))
        if key not in self._constants:
            tensor = copy.copy(self._source.subgraphs[0].tensors[name])
            copies = self._copies[name] = self._copies.get(name, 0) + 1
            if copies > 1:  # names have to stay unique, or quantisers refuse the file
                suffix = f".{copies}"
                tensor.name = tensor.name + (suffix.encode() if isinstance(tensor.name, bytes) else suffix)
            array = self._cutter.constant(index, slot, self._graph.nodes[index].constants[slot])
            tensor.quantization = self._quantization(tensor.quantization, index, slot)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(array).data, np.uint8) if array.size else None
            self._model.buffers.append(buffer)
            tensor.shape, tensor.buffer = np.array(array.shape, np.int32), len(self._model.buffers) - 1
            self._constants[key] = self._append(tensor)
        return self._constants[key]

    def _quantization(self, parameters: Any, index: int, slot: int) -> Any:
        """Scales and zero points per channel, cut like the channels."""
        ids = self._labels.constants[index, slot].ids
        if parameters is None or parameters.scale is None or len(parameters.scale) < 2 or ids is None:
            return parameters
        dimension = ids[parameters.quantizedDimension]
        if dimension is None:
            return parameters
        cut = copy.copy(parameters)
        positions = self._cutter.positions(dimension)
        cut.scale = np.asarray(cut.scale)[positions]
        if cut.zeroPoint is not None and len(cut.zeroPoint) > 1:
            cut.zeroPoint = np.asarray(cut.zeroPoint)[positions]
        return cut

    def _append(self, tensor: Any) -> int:
        self._subgraph.tensors.append(tensor)
        return len(self._subgraph.tensors) - 1

    def _signature(self) -> Any:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_tensor_map(f"args_{i}", t) for i, t in enumerate(self._subgraph.inputs)]
        signature.outputs = [_tensor_map(f"output_{i}", t) for i, t in enumerate(self._subgraph.outputs)]
        return signature


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
