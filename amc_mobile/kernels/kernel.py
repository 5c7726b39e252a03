"""Exported graphs as plain data: operators, nodes, and kernels, whose keys are the latency table's. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import InvalidInput
from amc_mobile.formats import BY_RUNTIME


@dataclass(frozen=True)
class Expression:
    """`constant` + sum of factor * width over `terms`, pairs (group index, factor) in ascending group order."""

    constant: int
    terms: tuple[tuple[int, int], ...] = ()

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def at(self, widths: Sequence[int]) -> int:
        """The value at one plan, `widths` of length G."""
        return self.constant + sum(factor * widths[group] for group, factor in self.terms)

    def evaluate(self, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values at many plans: shape (..., G) to (...)."""
        total = np.full(widths.shape[:-1], self.constant, dtype=np.int64)
        for group, factor in self.terms:
            total += factor * widths[..., group]
        return total

    def times(self, factor: int) -> Expression:
        return Expression(self.constant * factor, tuple((g, f * factor) for g, f in self.terms))

    def plus(self, constant: int) -> Expression:
        return Expression(self.constant + constant, self.terms)

    def primitive(self) -> Expression:
        """Divided by the greatest common divisor of all its numbers."""
        divisor = math.gcd(self.constant, *(f for _, f in self.terms))
        if divisor < 2:
            return self
        return Expression(self.constant // divisor, tuple((g, f // divisor) for g, f in self.terms))

    def linear(self, groups: int) -> NDArray[np.int64]:
        """The factors alone, shape (groups,)."""
        factors = np.zeros(groups, dtype=np.int64)
        for group, factor in self.terms:
            factors[group] = factor
        return factors


def total(expressions: Iterable[Expression]) -> Expression:
    constant, factors = 0, dict[int, int]()
    for expression in expressions:
        constant += expression.constant
        for group, factor in expression.terms:
            factors[group] = factors.get(group, 0) + factor
    return Expression(constant, tuple(sorted((g, f) for g, f in factors.items() if f)))


Shape = tuple[int, ...]
Attribute = int | float | str | bool | None | tuple[int, ...] | tuple[float, ...]

ITEM_BYTES = {
    "float32": 4, "float16": 2, "float64": 8, "int8": 1, "uint8": 1, "bool": 1, "int16": 2, "int32": 4, "int64": 8,
}  # fmt: skip

CONVOLUTIONS = ("CONV_2D", "Conv")
TRANSPOSED = ("TRANSPOSE_CONV", "ConvTranspose")
LINEAR = ("FULLY_CONNECTED", "Gemm", "MatMul", "BATCH_MATMUL")
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "QuantizeLinear", "DequantizeLinear")  # of a number format
GLUE_NAMES = ("PAD", "PADV2", "QUANTIZE", "DEQUANTIZE")  # belong to their only consumer


@dataclass(frozen=True)
class Operator:
    """An operator with everything that decides how long it runs, and no names.

    `inputs`: a shape per slot, None where the slot is left out; `constants`: which slots are weights or other
    constants. Shapes are in the file's own layout (TFLite: NHWC, ONNX: NCHW). `attributes`: sorted by name; small
    integer constants (paddings, permutations, target shapes) are among them as `constantK` for slot K. `dtype`:
    the activations' type, followed by `/` and the weights' type where that differs ("float32", "int8",
    "float32/int8").
    """

    name: str
    inputs: tuple[Shape | None, ...]
    constants: tuple[bool, ...]
    outputs: tuple[Shape, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()
    dtype: str = "float32"

    def attribute(self, name: str, default: Any = None) -> Any:
        return dict(self.attributes).get(name, default)

    @property
    def weight(self) -> Shape | None:
        """The shape of the weights of a convolution or linear operator."""
        if self.name not in CONVOLUTIONS + TRANSPOSED + LINEAR + ("DEPTHWISE_CONV_2D",) or len(self.inputs) < 2:
            return None
        return self.inputs[1]

    @property
    def kind(self) -> str:
        """What a predictor may treat alike: conv1x1, convkxk, depthwise, grouped, transposed, linear, else the name."""
        weight = self.weight
        if weight is None:
            return self.name.lower()
        if self.name in LINEAR:
            return "linear"
        if self.name in TRANSPOSED:
            return "transposed"
        groups = self._groups(weight)
        if self.name == "DEPTHWISE_CONV_2D" or (groups > 1 and groups == self.in_channels):
            return "depthwise"
        if groups > 1:
            return "grouped"
        return "conv1x1" if self.window == (1, 1) else "convkxk"

    def _groups(self, weight: Shape) -> int:
        if self.name == "CONV_2D":
            return max(1, self.in_channels // weight[3])
        return int(self.attribute("group", 1))

    @property
    def _channels_last(self) -> bool:
        return self.name.isupper()

    def _channel(self, shape: Shape) -> int:
        if not shape:
            return 1
        if len(shape) < 3:
            return shape[-1]
        return shape[-1] if self._channels_last else shape[1]

    def _map(self, shape: Shape) -> Shape:
        if len(shape) < 3:
            return ()
        return shape[1:-1] if self._channels_last else shape[2:]

    @property
    def data(self) -> Shape:
        """The shape of the first input that is an activation (of a transposed convolution: the third slot)."""
        shapes = [s for s, constant in zip(self.inputs, self.constants, strict=True) if s is not None and not constant]
        return shapes[0] if shapes else ()

    @property
    def in_channels(self) -> int:
        return self._channel(self.data)

    @property
    def out_channels(self) -> int:
        return self._channel(self.outputs[0]) if self.outputs else 1

    @property
    def out_map(self) -> Shape:
        """Height and width of the output; empty where it has none."""
        return self._map(self.outputs[0]) if self.outputs else ()

    @property
    def window(self) -> Shape:
        """Height and width of a convolution's or a pooling's window; empty for other operators."""
        weight = self.weight
        if weight is not None:
            return () if self.name in LINEAR else weight[1:3] if self._channels_last else weight[2:]
        if self.attribute("filterHeight"):
            return (int(self.attribute("filterHeight")), int(self.attribute("filterWidth")))
        return tuple(self.attribute("kernel_shape", ()))

    @property
    def strides(self) -> Shape:
        if self.attribute("strideH") is not None:
            return (int(self.attribute("strideH")), int(self.attribute("strideW")))
        return tuple(self.attribute("strides", ()))

    @property
    def window_label(self) -> str:
        """Window and stride, like `3x3/2`; empty where it has no window."""
        if not self.window:
            return ""
        strides = self.strides
        step = "" if not strides or set(strides) == {1} else f"/{'x'.join(map(str, dict.fromkeys(strides)))}"
        return "x".join(map(str, self.window)) + step

    @property
    def macs(self) -> int:
        """Multiply-accumulates for the shapes given, biases left out; 0 for operators without weights or products."""
        weight = self.weight
        if weight is None or not self.outputs:
            return 0
        outputs = math.prod(self.outputs[0])
        if self.name in LINEAR:
            # Every output is a dot product along the input's last dimension.
            transposed = bool(self.attribute("adjX", False) or self.attribute("transA", 0))
            return outputs * (self.data[-2] if transposed else self.data[-1])
        if self.name in TRANSPOSED:
            return math.prod(self.data) * math.prod(weight) // self._channel(self.data)
        if self.name == "DEPTHWISE_CONV_2D":
            return outputs * weight[1] * weight[2]
        return outputs * math.prod(weight[1:])

    @property
    def weight_bytes(self) -> int:
        size = ITEM_BYTES.get(self.dtype.rpartition("/")[2], 4)
        constant = (s for s, c in zip(self.inputs, self.constants, strict=True) if c and s is not None)
        return size * sum(math.prod(shape) for shape in constant)

    def activation_bytes_of(self, shapes: tuple[Shape | None, ...]) -> int:
        size = ITEM_BYTES.get(self.dtype.partition("/")[0], 4)
        return size * sum(math.prod(shape) for shape in shapes if shape is not None)

    def to_list(self) -> list[Any]:
        return [
            self.name,
            [None if s is None else list(s) for s in self.inputs],
            [int(c) for c in self.constants],
            [list(s) for s in self.outputs],
            [[k, list(v) if isinstance(v, tuple) else v] for k, v in self.attributes],
            self.dtype,
        ]

    @classmethod
    def from_list(cls, document: list[Any]) -> Operator:
        name, inputs, constants, outputs, attributes, dtype = document
        return cls(
            str(name),
            tuple(None if s is None else tuple(int(v) for v in s) for s in inputs),
            tuple(bool(c) for c in constants),
            tuple(tuple(int(v) for v in s) for s in outputs),
            tuple((str(k), tuple(v) if isinstance(v, list) else v) for k, v in attributes),
            str(dtype),
        )


Value = Hashable  # what a file calls a tensor: TFLite an index, ONNX a name
Array = NDArray[np.generic]
SMALL_CONSTANT = 64  # integer constants up to this many elements carry shapes, paddings, permutations


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. `inputs`: None where a slot is left out; `constants`: the values of constant slots."""

    operator: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[int, Array]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order of execution. `shapes` and `types` (NumPy names) cover every value that is read or made.

    `quantised`: values whose integers are real numbers divided by a scale.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[Value, Shape]
    types: Mapping[Value, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    quantised: frozenset[Value] = frozenset()

    def describe(self, index: int) -> str:
        return f"operator {index} ({self.nodes[index].operator})"

    def consumers(self) -> dict[Value, list[int]]:
        """The nodes that read each value, in order; a node that reads it twice is there twice."""
        readers: dict[Value, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for value in node.inputs:
                if value is not None:
                    readers.setdefault(value, []).append(index)
        return readers

    def borders(self, nodes: Sequence[int]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """What `nodes` read from outside and what they make that none of them reads."""
        chosen = [self.nodes[index] for index in nodes]
        made = dict.fromkeys(value for node in chosen for value in node.outputs)
        read = dict.fromkeys(
            value
            for node in chosen
            for slot, value in enumerate(node.inputs)
            if value is not None and slot not in node.constants
        )
        return tuple(v for v in read if v not in made), tuple(v for v in made if v not in read)

    def is_small_integer(self, index: int, slot: int) -> bool:
        """Whether a constant carries sizes or positions rather than weights."""
        array = self.nodes[index].constants[slot]
        if self.nodes[index].inputs[slot] in self.quantised:  # e.g. a bias
            return False
        return array.dtype.kind == "i" and array.dtype.itemsize >= 4 and array.size <= SMALL_CONSTANT


# Work that is folded into its neighbour: it does not name the unit.
MINOR = (*CONVERSIONS, "PAD", "PADV2", "Pad", "Relu", "Clip")


@dataclass(frozen=True)
class Kernel:
    """The operators that run as one, in order. Layers of equal shape are one kernel, whatever their names."""

    runtime: str
    operators: tuple[Operator, ...]

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON document, 64 hex digits."""
        text = json.dumps(self.to_document(), separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def main(self) -> Operator:
        """The operator that the unit is named after: the one with most MACs, else the first that is not minor."""
        heaviest = max(self.operators, key=lambda operator: operator.macs)
        if heaviest.macs:
            return heaviest
        return next((o for o in self.operators if o.name not in MINOR), self.operators[-1])

    @property
    def operator_type(self) -> str:
        return self.main.kind

    @property
    def keeps_channels(self) -> bool:
        """Whether what comes in goes out channel by channel, as in a depthwise convolution or an addition."""
        main = self.main
        return (main.in_channels == main.out_channels and main.macs == 0) or main.kind == "depthwise"

    @cached_property
    def label(self) -> str:
        """For people, like `PAD+CONV_2D 3x3/2 32->64 @56x56`: window/stride, channels, height x width of the output."""
        main = self.main
        names = [operator.name for operator in self.operators]
        parts = ["+".join([name for name in names if name not in CONVERSIONS] or names)]
        if main.window:
            parts.append(main.window_label)
        parts.append(str(main.out_channels) if self.keeps_channels else f"{main.in_channels}->{main.out_channels}")
        if main.out_map:
            parts.append("@" + "x".join(map(str, main.out_map)))
        others = [o.dtype for o in (main, *self.operators) if o.dtype != "float32"]
        if others:  # what is computed on, else what weights are converted from
            parts.append(min(others, key=lambda dtype: dtype.startswith("float32")).removesuffix("/float32"))
        return " ".join(parts)

    @cached_property
    def macs(self) -> int:
        return sum(operator.macs for operator in self.operators)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(operator.weight_bytes for operator in self.operators)

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes that the unit reads and writes at its borders."""
        # Inside a unit each operator hands its output to the next one, so only borders are counted.
        last, handed, converted = self.operators[-1], 0, 0
        total = last.activation_bytes_of(last.outputs)
        for operator in self.operators:
            data = [s for s, constant in zip(operator.inputs, operator.constants, strict=True) if not constant]
            present = [s for s in data if s is not None]
            if not present:  # converts weights, which a later operator reads after its other inputs
                converted += 1
                continue
            total += operator.activation_bytes_of(tuple(present[handed : max(handed, len(present) - converted)]))
            handed = 1
        return total

    def to_document(self) -> dict[str, Any]:
        return {"runtime": self.runtime, "operators": [operator.to_list() for operator in self.operators]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Kernel:
        """Raises InvalidInput when the document is not a kernel."""
        try:
            operators = tuple(Operator.from_list(o) for o in document["operators"])
            if document["runtime"] not in BY_RUNTIME or not operators:
                raise ValueError("unknown runtime or no operator")
            return cls(document["runtime"], operators)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"not a kernel: {error!r}") from error
