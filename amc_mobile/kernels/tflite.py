"""Templates of .tflite files (FlatBuffers)."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from amc_mobile.errors import UnsupportedLayer
from amc_mobile.export.metadata import AlignedBuffer, pack_tflite, parse_tflite
from amc_mobile.formats import TFLITE
from amc_mobile.kernels.kernel import CONVERSIONS, GLUE_NAMES, Array, Attribute, Graph, Node, Value
from amc_mobile.kernels.labels import NEXT_STEP, Cut
from amc_mobile.kernels.template import Template

OPERATOR_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
DTYPES = {
    schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16, schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8, schema.TensorType.INT16: np.int16, schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64, schema.TensorType.BOOL: np.bool_,
}  # fmt: skip


def parse(content: bytes) -> Any:
    """The file as a schema object. Raises ValueError when it is not a .tflite file."""
    model = parse_tflite(content)
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
                operator=_operator_name(model, operator),
                inputs=tuple(None if i < 0 else i for i in inputs),
                outputs=tuple(int(i) for i in operator.outputs),
                constants={slot: constants[i] for slot, i in enumerate(inputs) if i in constants},
                attributes=_attributes(operator),
            )
        )
    shapes: dict[Value, tuple[int, ...]] = {i: _shape(tensor) for i, tensor in enumerate(subgraph.tensors)}
    types: dict[Value, str] = {i: np.dtype(_dtype(tensor)).name for i, tensor in enumerate(subgraph.tensors)}
    inputs_, outputs = tuple(map(int, subgraph.inputs)), tuple(map(int, subgraph.outputs))
    quantised = frozenset[Value](i for i, tensor in enumerate(subgraph.tensors) if _is_quantised(tensor))
    return Graph(tuple(nodes), shapes, types, inputs_, outputs, quantised)


def _is_quantised(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.scale is not None


def _operator_name(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return str(OPERATOR_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)])


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(n) for n in tensor.shape)


def _dtype(tensor: Any) -> Any:
    if tensor.type not in DTYPES:
        raise UnsupportedLayer("", f"tensor {tensor.name!r} has TFLite type {tensor.type}, which is not supported")
    return DTYPES[tensor.type]


def _constant(model: Any, tensor: Any) -> Array | None:
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return None
    # A copy: views into the file would be unaligned and slow to slice.
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), _dtype(tensor)).reshape(_shape(tensor))


def _attributes(operator: Any) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for name, value in vars(options).items() if options is not None else ():
            attributes[name] = tuple(value.tolist()) if isinstance(value, np.ndarray) else value
    return attributes


def partners(graph: Graph, quantised: Graph) -> list[int | None]:
    """For each node of `quantised` the node of `graph` it comes from, None for conversions."""
    left = iter(range(len(graph.nodes)))
    sources = [None if node.operator in CONVERSIONS else next(left, None) for node in quantised.nodes]
    if next(left, None) is not None:
        raise UnsupportedLayer("", "the quantised file has fewer operators than the float32 file", next_step=NEXT_STEP)
    return sources


class TfliteTemplate(Template):
    """A .tflite file whose every width follows the plan."""

    runtime = TFLITE.runtime

    def units(self) -> list[list[int]]:
        """Operators one by one; PAD, QUANTIZE and DEQUANTIZE belong to their consumer where it is the only one."""
        readers = self._graph.consumers()
        units: list[list[int]] = []
        pending: dict[Value, list[int]] = {}
        for index, node in enumerate(self._graph.nodes):
            unit = [earlier for value in node.inputs for earlier in pending.pop(value, [])] + [index]
            output = node.outputs[0]
            if node.operator in GLUE_NAMES and len(readers.get(output, ())) == 1 and output not in self._graph.outputs:
                pending[output] = unit
            else:
                units.append(unit)
        return units

    def build(self, cut: Cut, nodes: Sequence[int] | None) -> bytes:
        return _Writer(self._source, self._graph, cut).write(nodes)


TEMPLATE = TfliteTemplate


class _Writer:
    """Writes one file."""

    def __init__(self, source: Any, graph: Graph, cut: Cut) -> None:
        self._source, self._graph, self._cut = source, graph, cut
        self._old = source.subgraphs[0]
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # buffer 0 is empty by convention
        self._codes: list[Any] = []
        self._activations: dict[Value, int] = {}
        self._constants: dict[Hashable, int] = {}
        self._copies: dict[Value, int] = {}
        self._code_of: dict[int, int] = {}

    def write(self, nodes: Sequence[int] | None) -> bytes:
        chosen = range(len(self._graph.nodes)) if nodes is None else nodes
        subgraph = schema.SubGraphT()
        subgraph.name = self._old.name
        subgraph.operators = [self._operator(index) for index in chosen]
        inputs, outputs = (self._graph.inputs, self._graph.outputs) if nodes is None else self._graph.borders(nodes)
        subgraph.inputs = [self._activation(value) for value in inputs]
        subgraph.outputs = [self._activation(value) for value in outputs]
        subgraph.tensors = self._tensors
        model = schema.ModelT()
        model.version, model.description = 3, self._source.description
        model.operatorCodes, model.buffers, model.subgraphs = self._codes, self._buffers, [subgraph]
        model.signatureDefs = [_signature(subgraph)]
        return pack_tflite(model)

    def _operator(self, index: int) -> Any:
        node, operator = self._graph.nodes[index], copy.copy(self._old.operators[index])
        code = operator.opcodeIndex
        if code not in self._code_of:
            self._code_of[code] = len(self._codes)
            self._codes.append(self._source.operatorCodes[code])
        changed = self._cut.changed_attributes(index)
        if changed:
            operator.builtinOptions = copy.copy(operator.builtinOptions)
            for name, value in changed.items():
                setattr(operator.builtinOptions, name, list(value) if isinstance(value, tuple) else value)
        tensors = [
            -1 if value is None else self._constant(index, slot) if slot in node.constants else self._activation(value)
            for slot, value in enumerate(node.inputs)
        ]
        operator.opcodeIndex = self._code_of[code]
        operator.inputs = np.array(tensors, np.int32)
        operator.outputs = np.array([self._activation(value) for value in node.outputs], np.int32)
        return operator

    def _activation(self, value: Value) -> int:
        if value not in self._activations:
            tensor = copy.copy(self._old.tensors[value])
            tensor.shape = np.array(self._cut.shape(value), np.int32)
            tensor.buffer, tensor.shapeSignature = 0, None
            self._activations[value] = self._append(tensor)
        return self._activations[value]

    def _constant(self, index: int, slot: int) -> int:
        # Constants that are equal in the original can differ at a plan, e.g. the zero biases of two groups.
        identity = self._cut.identity(index, slot)
        if identity not in self._constants:
            value = self._graph.nodes[index].inputs[slot]
            tensor = copy.copy(self._old.tensors[value])
            copies = self._copies[value] = self._copies.get(value, 0) + 1
            if copies > 1:  # names have to stay unique, or quantisers refuse the file
                suffix = f".{copies}"
                tensor.name = tensor.name + (suffix.encode() if isinstance(tensor.name, bytes) else suffix)
            array = self._cut.constant(index, slot)
            self._buffers.append(AlignedBuffer(array))
            tensor.shape, tensor.buffer = np.array(array.shape, np.int32), len(self._buffers) - 1
            if _is_quantised(tensor):
                tensor.quantization = self._scales(index, slot, tensor.quantization)
            self._constants[identity] = self._append(tensor)
        return self._constants[identity]

    def _scales(self, index: int, slot: int, quantization: Any) -> Any:
        if len(quantization.scale) < 2:
            return quantization
        cut = copy.copy(quantization)
        for name in ("scale", "zeroPoint", "min", "max"):
            numbers = getattr(quantization, name)
            if numbers is not None and len(numbers) > 1:
                setattr(cut, name, self._cut.along(index, slot, quantization.quantizedDimension, np.asarray(numbers)))
        return cut

    def _append(self, tensor: Any) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1


def _signature(subgraph: Any) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = [_tensor_map(f"args_{i}", t) for i, t in enumerate(subgraph.inputs)]
    signature.outputs = [_tensor_map(f"output_{i}", t) for i, t in enumerate(subgraph.outputs)]
    return signature


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
