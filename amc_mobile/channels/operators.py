"""The ATen operators that the id trace knows, by what they do to channels."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

CONVOLUTIONS = {"conv1d", "conv2d", "conv_transpose2d"}
PER_CHANNEL = {"batch_norm", "instance_norm", "prelu"}  # a parameter per channel, channels stay apart
ELEMENTWISE = {
    "abs", "alias", "celu", "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "detach", "dropout", "elu", "erf",
    "exp", "feature_dropout", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log", "log_sigmoid",
    "mish", "neg", "ones_like", "pow", "reciprocal", "relu", "relu6", "rsqrt", "rsub", "selu", "sigmoid", "silu",
    "softplus", "sqrt", "square", "tanh", "threshold", "to", "_to_copy", "zeros_like",
}  # fmt: skip
BINARY = {"add", "mul", "sub", "div", "maximum", "minimum"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
PADDING = {"pad", "constant_pad_nd"}
OVER_SPACE = ("pool", "upsample", "interpolate")  # parts of names
MOVING = {
    "cat", "channel_shuffle", "chunk", "concat", "expand", "expand_as", "flatten", "getitem", "narrow",
    "native_channel_shuffle", "permute", "pixel_shuffle", "pixel_unshuffle", "reshape", "select", "slice", "split",
    "split_with_sizes", "squeeze", "stack", "transpose", "unbind", "unflatten", "unsqueeze", "_unsafe_view", "view",
}  # fmt: skip
# An exported graph does not tell `x.shape[1] // 2` from 32: whether these adapt to fewer channels, only running tells.
SIZED_VIEWS = {"view", "reshape", "_unsafe_view", "unflatten"}
SIZED_CUTS = {"slice", "narrow", "split", "split_with_sizes"}
MIXING = {
    "bmm", "group_norm", "layer_norm", "log_softmax", "matmul", "mm", "rms_norm", "scaled_dot_product_attention",
    "softmax",
}  # fmt: skip
RECURRENT = {"gru", "lstm", "rnn_relu", "rnn_tanh"}
CONSTANTS = {"arange", "full", "new_full", "new_ones", "new_zeros", "ones", "zeros"}


def product_macs(node: Node) -> int:
    """Multiply-accumulates of an operator that multiplies tensors with each other; 0 for every other one."""
    name = operator_name(node.target)
    made: tuple[int, ...] = tuple(getattr(node.meta.get("val"), "shape", ()))
    shapes = [_shape(argument) for argument in node.args]
    if name in ("bmm", "matmul", "mm"):
        return math.prod(made) * shapes[0][-1]
    if name in ("addmm", "baddbmm"):
        return math.prod(made) * shapes[1][-1]
    if name == "scaled_dot_product_attention":
        queries, keys, values = shapes[:3]
        return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
    if name == "einsum" and "." not in str(node.args[0]):
        words = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
        operands: Any = node.args[1]
        sizes = [
            pair
            for word, operand in zip(words, operands, strict=True)
            for pair in zip(word, _shape(operand), strict=False)
        ]
        return math.prod(dict(sizes).values()) if len(words) > 1 else 0
    if name in CONVOLUTIONS:
        return math.prod(shapes[0] if "transpose" in name else made) * math.prod(shapes[1][1:])
    if name == "linear":
        return math.prod(made) * shapes[1][-1]
    if name in RECURRENT:  # the sequence, the first states (one or several), the weights of every layer
        weights: Any = node.args[2]
        steps = math.prod(shapes[0][:-1])
        return steps * sum(math.prod(_shape(weight)) for weight in weights if len(_shape(weight)) == 2)
    return 0


def _shape(argument: Any) -> tuple[int, ...]:
    return tuple(getattr(argument.meta.get("val"), "shape", ())) if isinstance(argument, Node) else ()


def operator_name(target: Any) -> str:
    """`relu` for `aten.relu_.default`: overloads and in-place variants move channels alike."""
    packet = getattr(target, "_overloadpacket", target)
    return str(getattr(packet, "__name__", packet)).rstrip("_")


def module_path(node: Node) -> str:
    """The module in which a node of an exported graph was called, as a path like `features.3`; "" for the network."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values()]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""
