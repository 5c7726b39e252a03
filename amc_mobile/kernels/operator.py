"""One operator of an exported graph: what decides how long it runs, and what follows from that. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
    integer constants (paddings, permutations, target shapes) stand among them as `constantK` for slot K. `dtype`:
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
        found = [s for s, constant in zip(self.inputs, self.constants, strict=True) if s is not None and not constant]
        return found[0] if found else ()

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
