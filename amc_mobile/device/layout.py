"""How ONNX Runtime rewrites graphs on one device: what it fuses, and which images it lays out in blocks of channels.

Both depend on the processor and on the library's build. So nothing of it is known here: a network of small questions is
optimised by the runtime on the device, and the answers are read from the graph that it made.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

from amc_mobile.errors import InvalidInput
from amc_mobile.store import parse_object

OPSET, IR_VERSION = 20, 10  # of the files that torch.onnx writes: a runtime that reads those reads the questions
BLOCKS = "com.microsoft.nchwc"  # domain of the operators that work on blocks
MOST_CHANNELS = 66  # asked one by one, so that every multiple up to half of it shows twice
WIDTHS = (4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96)  # where multiples are large
CONVERSIONS = ("ReorderInput", "ReorderOutput", "Transpose")  # of layouts
WIDE = 64  # channels that fill whole blocks everywhere
PRODUCTS = ("Conv", "Gemm", "MatMul")
UNARY = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Elu", "Gelu", "Selu", "Softplus",
)  # fmt: skip
SUMS = ("Add", "Mul")
FOLDABLE = ("BatchNormalization", "Add", "Mul")
POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
PADDED = ("Conv", "AveragePool", "MaxPool")


@dataclass(frozen=True)
class OnnxLayout:
    """What one ONNX Runtime does with graphs on one processor. By default nothing is fused, and there are no blocks.

    `block`: channels in a block; 0: images stay plain. The `..._multiple` fields: images whose channels are no multiple
    of it stay plain; 0: all do. Operators are ONNX names.
    """

    block: int = 0
    dense_from: int = 0  # a convolution that reads fewer channels wants them plain, and gives blocks all the same
    dense_multiple: int = 0  # of the channels read
    depthwise_multiple: int = 0
    grouped_multiple: int = 0  # of the channels of one group
    pool_multiples: dict[str, int] = field(default_factory=dict)
    concat_multiple: int = 0  # of each part
    on_blocks: frozenset[str] = frozenset()  # operators that take blocks and give blocks
    fused_after: dict[str, frozenset[str]] = field(default_factory=dict)  # product -> activations
    folded_after: dict[str, frozenset[str]] = field(default_factory=dict)  # product -> arithmetic with constants
    # What may follow where a convolution adds another image to its output, in blocks where there are blocks; "": a sum
    # that nothing is fused to.
    sums_fused_before: frozenset[str] = frozenset()
    sums_need_bias: bool = False  # only convolutions with a bias add
    pads_fused: frozenset[str] = frozenset()  # operators that take the padding before them
    gated_sigmoid: bool = False  # x * sigmoid(x) is one operator
    integer_channels_last: bool = False  # 8-bit convolutions move the channels to the end
    float_channels_last: bool = False  # float ones do, too, and what lies between follows them

    @property
    def summary(self) -> str:
        if self.block:
            return f"blocks of {self.block} channels"
        return "channels last" if self.float_channels_last else "no blocks of channels"

    def part_multiple(self, operator: str) -> int:
        """What the channels of each input of a pool or a concatenation must be a multiple of, to stay in blocks; 0: of
        nothing, or it is no such operator."""
        return self.concat_multiple if operator == "Concat" else self.pool_multiples.get(operator, 0)

    def text(self) -> str:
        """Canonical JSON, which `parse` reads."""
        return json.dumps(_plain(asdict(self)), sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> OnnxLayout:
        """Of what `text` wrote; "" is an unknown layout. Raises InvalidInput."""
        if not text:
            return cls()
        try:
            document = parse_object(text)
            if set(document) != {each.name for each in fields(cls)}:
                raise ValueError("its fields are others")
            layout = cls(**{name: _typed(name, value) for name, value in document.items()})
        except (ValueError, TypeError) as error:
            raise InvalidInput(
                f"not a layout of ONNX Runtime ({error}): {text[:80]!r}", next_step="run `amc-mobile profile` again"
            ) from error
        return layout


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Sets as sorted lists."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else _plain(value) if isinstance(value, dict) else value
        for name, value in document.items()
    }


def _typed(name: str, value: Any) -> Any:
    kind = next(each.type for each in fields(OnnxLayout) if each.name == name)
    if kind == "frozenset[str]" and isinstance(value, list):
        return frozenset(map(str, value))
    if kind == "dict[str, frozenset[str]]" and isinstance(value, dict):
        return {key: frozenset(map(str, operators)) for key, operators in value.items()}
    if kind == "dict[str, int]" and isinstance(value, dict) and all(type(number) is int for number in value.values()):
        return value
    if (kind == "int" and type(value) is int and 0 <= value <= 1 << 16) or (kind == "bool" and type(value) is bool):
        return value
    raise ValueError(f"{name} = {str(value)[:40]} is not of type {kind}")


def questions() -> bytes:
    """The network of questions as an .onnx file of about 150 kB: branches that share nothing but their weights."""
    return _Questions().file()


def read(optimised: bytes) -> OnnxLayout:
    """The layout that shows in the graph that a runtime made of `questions`. Raises InvalidInput."""
    import onnx

    try:
        graph = onnx.load_from_string(optimised).graph
    except Exception as error:  # protobuf's own errors share no base class with ours
        raise InvalidInput(f"the graph that ONNX Runtime wrote cannot be read: {error}") from error
    return _Answers(graph).layout()


class _Questions:
    """Builds the network. A branch ends in an output of its name, and all its inputs begin with it."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._weights: dict[str, Any] = {}

    def file(self) -> bytes:
        from onnx import helper

        for channels in range(1, MOST_CHANNELS + 1):
            self._end(f"dense.{channels}", self._convolution(self._image(f"dense.{channels}", channels), channels, 1))
        for channels in range(2, MOST_CHANNELS + 1):
            name = f"depthwise.{channels}"
            self._end(name, self._convolution(self._image(name, channels), 1, channels, groups=channels))
        for channels in WIDTHS:
            name = f"grouped.{channels}"
            self._end(name, self._convolution(self._image(name, 2 * channels), channels, 2 * channels, groups=2))
            for pool in POOLS:
                name = f"pool.{pool}.{channels}"
                self._end(name, self._pool(pool, self._image(name, channels)))
            name = f"concat.{channels}"
            parts = [self._convolution(self._image(name, WIDE, part), WIDE, channels) for part in "ab"]
            self._end(name, self._convolution(self._node("Concat", *parts, axis=1), 2 * channels, WIDE))
        for operator in UNARY:
            # Some are fused only where the graph does not end in them.
            image = self._convolution(self._image(f"Conv.{operator}", WIDE), WIDE, WIDE)
            self._end(f"Conv.{operator}", self._convolution(self._unary(operator, image), WIDE, WIDE))
            for product in ("Gemm", "MatMul"):
                rows = self._unary(operator, self._node(product, self._rows(f"{product}.{operator}"), self._matrix()))
                self._end(f"{product}.{operator}", self._node(product, rows, self._matrix()))
            self._end(f"blocks.{operator}", self._between(f"blocks.{operator}", partial(self._unary, operator)))
        for operator in FOLDABLE:
            image = self._convolution(self._image(f"fold.Conv.{operator}", WIDE), WIDE, WIDE)
            self._end(f"fold.Conv.{operator}", self._arithmetic(operator, image, shape=(WIDE, 1, 1)))
            if operator != "BatchNormalization":
                for product in ("Gemm", "MatMul"):
                    rows = self._node(product, self._rows(f"fold.{product}.{operator}"), self._matrix())
                    self._end(f"fold.{product}.{operator}", self._arithmetic(operator, rows, shape=(WIDE,)))
        name = "blocks.BatchNormalization"
        self._end(name, self._between(name, partial(self._arithmetic, "BatchNormalization", shape=(WIDE,))))
        for operator in SUMS:
            self._end(f"sum.{operator}", self._convolution(self._sum(operator, f"sum.{operator}"), WIDE, WIDE))
        bare = [self._convolution(self._image("bare", WIDE, part), WIDE, WIDE, bias=False) for part in "ab"]
        self._end("bare", self._convolution(self._unary("Relu", self._node("Add", *bare)), WIDE, WIDE))
        for operator in UNARY:
            name = f"sum.Add.{operator}"
            self._end(name, self._convolution(self._unary(operator, self._sum("Add", name)), WIDE, WIDE))
        self._end("large", self._convolution(self._image("large", WIDE), WIDE, WIDE, size=3))
        for operator in PADDED:
            image = self._node(
                "Pad", self._image(f"pad.{operator}", WIDE), self._constant("pads", [0, 0, 1, 1, 0, 0, 1, 1])
            )
            padded = self._convolution(image, WIDE, WIDE) if operator == "Conv" else self._pool(operator, image)
            self._end(f"pad.{operator}", padded)
        image = self._image("gated", WIDE)
        self._end("gated", self._node("Mul", image, self._node("Sigmoid", image)))
        self._integer()
        inputs = list({value.name: value for value in self._inputs}.values())
        graph = helper.make_graph(self._nodes, "questions", inputs, self._outputs, list(self._weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def _integer(self) -> None:
        scale, zero = self._constant("scale", 0.1), self._constant("zero", 0, "uint8")
        weights = self._constant("integers", [[[[1]]] * WIDE] * WIDE, "int8")
        image = self._image("integer", WIDE, element="uint8")
        real = self._node("DequantizeLinear", image, scale, zero)
        kernel = self._node("DequantizeLinear", weights, scale, self._constant("zero8", 0, "int8"))
        product = self._node("Conv", real, kernel)
        self._end("integer", self._node("QuantizeLinear", product, scale, zero), element="uint8")

    def _between(self, name: str, build: Callable[[str], str]) -> str:
        """An operator between a pool, into which nothing is fused, and a convolution, all on whole blocks."""
        pooled = self._pool("MaxPool", self._convolution(self._image(name, WIDE), WIDE, WIDE))
        return self._convolution(build(pooled), WIDE, WIDE)

    def _sum(self, operator: str, branch: str) -> str:
        images = [self._convolution(self._image(branch, WIDE, part), WIDE, WIDE) for part in "ab"]
        return self._node(operator, *images)

    def _image(self, branch: str, channels: int, part: str = "", element: str = "float32") -> str:
        return self._input(f"{branch}/{part}", (1, channels, 4, 4), element)

    def _rows(self, branch: str) -> str:
        return self._input(f"{branch}/", (1, WIDE), "float32")

    def _input(self, name: str, shape: tuple[int, ...], element: str) -> str:
        self._inputs.append(_value(name, shape, element))
        return name

    def _end(self, branch: str, value: str, element: str = "float32") -> None:
        self._nodes[-1].output[0] = branch
        assert value  # the last node's output, which takes the branch's name
        self._outputs.append(_value(branch, None, element))

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"value{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def _convolution(self, image: str, read: int, made: int, groups: int = 1, size: int = 1, bias: bool = True) -> str:
        weights = [self._filled(f"weights.{made}.{read}.{size}", (made, read, size, size))]
        weights += [self._filled(f"bias.{made}", (made,))] if bias else []
        return self._node("Conv", image, *weights, **({"group": groups} if groups > 1 else {}))

    def _matrix(self) -> str:
        return self._filled("matrix", (WIDE, WIDE))

    def _pool(self, operator: str, image: str) -> str:
        return self._node(operator, image, **({} if operator.startswith("Global") else {"kernel_shape": [2, 2]}))

    def _unary(self, operator: str, value: str) -> str:
        bounds = [self._constant("low", 0.0), self._constant("high", 6.0)] if operator == "Clip" else []
        return self._node(operator, value, *bounds)

    def _arithmetic(self, operator: str, value: str, *, shape: tuple[int, ...]) -> str:
        if operator == "BatchNormalization":
            vector = self._filled("vector", (WIDE,))
            return self._node(operator, value, vector, vector, vector, vector)
        return self._node(operator, value, self._filled(f"constant.{len(shape)}", shape))

    def _filled(self, name: str, shape: tuple[int, ...]) -> str:
        import numpy as np

        # Neither 0 nor 1, with which arithmetic is removed as being none.
        return self._weight(name, np.full(shape, 0.5, np.float32))

    def _constant(self, name: str, value: Any, element: str = "") -> str:
        import numpy as np

        default = np.int64 if isinstance(value, list) else np.float32
        return self._weight(name, np.array(value, np.dtype(element) if element else default))

    def _weight(self, name: str, array: Any) -> str:
        from onnx import numpy_helper

        self._weights.setdefault(name, numpy_helper.from_array(array, name))
        return name


def _value(name: str, shape: tuple[int, ...] | None, element: str) -> Any:
    import numpy as np
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(element)), shape)


class _Answers:
    """Reads the optimised graph, branch by branch: which operators it has, and how many convert layouts."""

    def __init__(self, graph: Any) -> None:
        self._made = {name: node for node in graph.node for name in node.output if name}
        self._sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def layout(self) -> OnnxLayout:
        widths = range(1, MOST_CHANNELS + 1)
        dense = [channels for channels in widths if self._reads_blocks(f"dense.{channels}")]
        block = self._block()
        if not block:
            return OnnxLayout(**self._fusions())
        blockwise = {op for op in (*UNARY, "BatchNormalization") if self._keeps_blocks(f"blocks.{op}")}
        sums = {op for op in SUMS if self._keeps_blocks(f"sum.{op}")}
        return OnnxLayout(
            block=block,
            dense_from=min(dense, default=0),
            dense_multiple=_divisor(dense),
            depthwise_multiple=_divisor(c for c in widths if c > 1 and self._reads_blocks(f"depthwise.{c}")),
            grouped_multiple=_divisor(c for c in WIDTHS if self._reads_blocks(f"grouped.{c}")),
            pool_multiples={
                pool: _divisor(c for c in WIDTHS if self._reads_blocks(f"pool.{pool}.{c}")) for pool in POOLS
            },
            concat_multiple=_divisor(c for c in WIDTHS if self._keeps_blocks(f"concat.{c}")),
            on_blocks=frozenset(blockwise | sums),
            **self._fusions(),
        )

    def _fusions(self) -> dict[str, Any]:
        integer = [node for node in self._nodes("integer") if node.op_type == "QLinearConv"]
        return {
            "fused_after": {
                product: frozenset(op for op in UNARY if self._work(f"{product}.{op}") == 2) for product in PRODUCTS
            },
            "folded_after": {
                product: frozenset(op for op in FOLDABLE if self._work(f"fold.{product}.{op}") == 1)
                for product in PRODUCTS
            },
            "sums_fused_before": frozenset(op for op in ("", *UNARY) if self._takes_sums(op)),
            "sums_need_bias": self._takes_sums("Relu") and self._work("bare") > 3,
            "pads_fused": frozenset(op for op in PADDED if self._work(f"pad.{op}") == 1),
            "gated_sigmoid": self._work("gated") == 1,
            "integer_channels_last": any(
                attribute.name == "channels_last" and attribute.i for node in integer for attribute in node.attribute
            ),
            "float_channels_last": any(node.op_type.startswith("Nhwc") for node in self._nodes("large")),
        }

    def _nodes(self, branch: str) -> list[Any]:
        """The nodes that a branch's output comes from."""
        nodes: dict[str, Any] = {}
        waiting = [branch]
        while waiting:
            node = self._made.get(waiting.pop())
            if node is not None and node.output[0] not in nodes:
                nodes[node.output[0]] = node
                waiting += node.input
        return list(nodes.values())

    def _counts(self, branch: str) -> Counter[str]:
        return Counter(node.op_type for node in self._nodes(branch))

    def _work(self, branch: str) -> int:
        """How many operators do a branch's work, conversions aside."""
        counts = self._counts(branch)
        return sum(counts.values()) - sum(counts[name] for name in CONVERSIONS)

    def _reads_blocks(self, branch: str) -> bool:
        return self._counts(branch)["ReorderInput"] > 0

    def _takes_sums(self, following: str) -> bool:
        """Whether the first of three convolutions in a row also adds what the second gives."""
        return self._work(f"sum.Add.{following}" if following else "sum.Add") == 3

    def _keeps_blocks(self, branch: str) -> bool:
        """Whether blocks go all the way, and only what the branch gives is made plain."""
        return self._counts(branch)["ReorderOutput"] == 1

    def _block(self) -> int:
        """Channels that a convolution's one output channel is filled up to."""
        filled = [
            self._sizes[node.input[1]][0]
            for node in self._nodes(f"dense.{WIDE}")
            if node.op_type == "Conv" and node.domain == BLOCKS and node.input[1] in self._sizes
        ]
        return int(filled[0]) if filled else 0


def _divisor(widths: Iterable[int]) -> int:
    return math.gcd(*widths)
