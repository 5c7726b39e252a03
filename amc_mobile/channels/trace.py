"""Runs the `torch.export` graph on channel ids in place of numbers.

Convolutions and linear layers make fresh ids for their outputs, elementwise operators unite the ids of their inputs,
normalisation follows its input, and operators that only move elements (view, permute, cat, chunk, ...) simply execute
on the id tensors. No operator is guessed: an unknown one is an error that names its module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from amc_mobile.channels.ids import FIXED, ChannelIds, Ids
from amc_mobile.errors import UnsupportedLayer

CONVOLUTIONS = {"conv1d", "conv2d", "conv_transpose2d"}
ELEMENTWISE = {
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh", "leaky_relu", "elu",
    "dropout", "clone", "contiguous", "mish", "detach", "alias", "clamp", "clamp_min", "softplus", "_to_copy", "to",
    "exp", "abs", "neg", "sqrt", "rsqrt", "pow", "feature_dropout", "log_sigmoid", "selu", "celu",
}  # fmt: skip
BINARY = {"add", "mul", "sub", "div", "maximum", "minimum"}
MOVING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "cat", "concat", "chunk", "split",
    "split_with_sizes", "slice", "select", "unsqueeze", "squeeze", "expand", "narrow", "channel_shuffle",
    "pixel_shuffle", "_unsafe_view", "unbind", "getitem", "native_channel_shuffle",
}  # fmt: skip
PADDING = {"pad", "constant_pad_nd", "zero_pad2d"}
OVER_SPACE = ("pool", "upsample", "interpolate")
MIXING = {"softmax", "log_softmax", "matmul", "bmm", "scaled_dot_product_attention"}


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the network: its name and shape stand in for its values."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TracedLayer:
    """One execution of a convolution or linear layer, with the ids of its input and output channels."""

    name: str
    transposed: bool
    in_ids: Ids
    out_ids: Ids
    weight_shape: tuple[int, ...]
    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    has_bias: bool


def operator_name(target: Any) -> str:
    packet = getattr(target, "_overloadpacket", target)
    return str(getattr(packet, "__name__", packet)).rstrip("_")


def module_path(node: Node) -> str:
    """The module in which a node of an exported graph was called, as a path like `features.3`."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values()]
    return paths[-1].removeprefix("L['self'].") if paths else ""


class IdTrace(Interpreter):
    """Executes an exported graph on int64 tensors of channel ids, shaped like the activations."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.ids = ChannelIds()
        self.layers: list[TracedLayer] = []
        self.parameters: dict[str, tuple[Ids | None, ...]] = {}
        self.fixed: list[tuple[Ids, str]] = []  # ids that may not be cut, with the reason
        self._node: Node | None = None

    def run_node(self, n: Node) -> Any:
        self._node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operator_name(target)
        assert self._node is not None
        out = self._node.meta.get("val")
        if name in CONVOLUTIONS:
            return self._convolution(name, args, kwargs, tuple(out.shape))
        if name == "linear":
            return self._linear(args, tuple(out.shape))
        if name in ("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm", "prelu"):
            return self._per_channel(args)
        if name in ELEMENTWISE:
            return args[0]
        if name in BINARY:
            return self._binary(args[0], args[1], tuple(out.shape))
        if name in ("mean", "sum", "amax", "amin"):
            return self._reduce(args, kwargs, tuple(out.shape))
        if any(part in name for part in OVER_SPACE):
            return self._spread(self._vector(args[0]), tuple(out.shape))
        if name in PADDING:
            return self._pad(args, tuple(out.shape))
        if name in MOVING:
            return self._move(name, target, args, kwargs)
        if name in MIXING:
            for value in args:
                if isinstance(value, Tensor):
                    self._fix(value, f"mixed by {name}")
            return torch.full(tuple(out.shape), FIXED, dtype=torch.int64)
        raise self._unsupported(f"operator {name} is not supported")

    # Operators -------------------------------------------------------------------------------------------------

    def _convolution(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
    ) -> Tensor:
        transposed = "transpose" in name
        x, weight = args[0], args[1]
        names = ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        groups = int(given.get("groups", 1))
        ids_in = self._vector(x)
        count = shape[1]
        dims: list[Ids | None] = [None] * len(weight.shape)
        if groups == 1:
            ids_out = self._outputs_of(weight, 1 if transposed else 0, count)
            dims[0], dims[1] = (ids_in, ids_out) if transposed else (ids_out, ids_in)
        elif groups == len(ids_in) == count and not transposed:
            ids_out = ids_in
            dims[0] = ids_out
        else:
            self._fix_ids(ids_in, "read by a grouped convolution")
            ids_out = self.ids.fresh(count)
            self._fix_ids(ids_out, "grouped convolution")
        self._note(weight, tuple(dims))
        bias = given.get("bias")
        if isinstance(bias, Parameter):
            self._note(bias, (ids_out,))
        spatial = len(shape) - 2
        self.layers.append(
            TracedLayer(
                name=weight.name.rpartition(".")[0],
                transposed=transposed,
                in_ids=ids_in,
                out_ids=ids_out,
                weight_shape=weight.shape,
                groups=groups,
                stride=_tuple(given.get("stride", 1), spatial),
                padding=p if isinstance(p := given.get("padding", 0), str) else _tuple(p, spatial),
                dilation=_tuple(given.get("dilation", 1), spatial),
                in_shape=tuple(x.shape),
                out_shape=shape,
                has_bias=isinstance(bias, Parameter),
            )
        )
        return self._spread(ids_out, shape)

    def _linear(self, args: tuple[Any, ...], shape: tuple[int, ...]) -> Tensor:
        x, weight = args[0], args[1]
        bias = args[2] if len(args) > 2 else None
        rows = x.reshape(-1, x.shape[-1])
        if not bool((rows == rows[0]).all()):
            raise self._unsupported("a linear layer whose input features differ by position")
        ids_in = rows[0].numpy().copy()
        ids_out = self._outputs_of(weight, 0, shape[-1])
        self._note(weight, (ids_out, ids_in))
        if isinstance(bias, Parameter):
            self._note(bias, (ids_out,))
        self.layers.append(
            TracedLayer(
                name=weight.name.rpartition(".")[0], transposed=False, in_ids=ids_in, out_ids=ids_out,
                weight_shape=weight.shape, groups=1, stride=(), padding=(), dilation=(), in_shape=tuple(x.shape),
                out_shape=shape, has_bias=isinstance(bias, Parameter),
            )
        )  # fmt: skip
        return torch.from_numpy(ids_out).expand(shape)

    def _per_channel(self, args: tuple[Any, ...]) -> Tensor:
        vector = self._vector(args[0])
        for value in args[1:5]:
            if isinstance(value, Parameter) and value.shape == (len(vector),):
                self._note(value, (vector,))
        return args[0]  # type: ignore[no-any-return]

    def _binary(self, a: Any, b: Any, shape: tuple[int, ...]) -> Tensor:
        tensors = [value for value in (a, b) if isinstance(value, Tensor)]
        for value in (a, b):
            if isinstance(value, Parameter) and np.prod(value.shape) > 1:
                self._fix(tensors[0], f"combined with the bare parameter {value.name}")
        if len(tensors) < 2:
            return tensors[0].expand(shape)
        first, second = tensors
        if first.ndim == second.ndim >= 2:
            one, other = self._try_vector(first), self._try_vector(second)
            if one is not None and other is not None:
                if len(one) == len(other):
                    self.ids.unite(one, other)
                    return self._spread(np.maximum(one, other), shape)
                # One channel against many: it keeps its width of one, the others are not coupled by it.
                narrow, wide = sorted((one, other), key=len)
                self._fix_ids(narrow, "broadcast over channels")
                return self._spread(wide, shape)
        left, right = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        self.ids.unite(left.numpy(), right.numpy())
        return torch.maximum(left, right)

    def _reduce(self, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
        x: Tensor = args[0]
        given = args[1] if len(args) > 1 else kwargs.get("dim", list(range(x.ndim)))
        dims = [d % x.ndim for d in ([given] if isinstance(given, int) else given)]
        keepdim = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
        if not bool((x == x.amax(dims, keepdim=True)).all()):
            self._fix(x, "reduced over channels")
            return torch.full(shape, FIXED, dtype=torch.int64)
        return x.amax(dims, keepdim=keepdim)

    def _pad(self, args: tuple[Any, ...], shape: tuple[int, ...]) -> Tensor:
        amounts = list(args[1])
        before, after = (int(amounts[4]), int(amounts[5])) if len(amounts) > 5 else (0, 0)
        return self._spread(np.pad(self._vector(args[0]), (before, after), constant_values=FIXED), shape)

    def _move(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in ("cat", "concat"):
            args = ([value.contiguous() for value in args[0]], *args[1:])
        result = target(*args, **kwargs)
        if name in ("chunk", "split") and len({part.shape for part in result}) == 1:
            for part in result[1:]:  # equal parts have to stay equal
                self.ids.unite(result[0].numpy(), part.numpy())
        if isinstance(result, Tensor) and result.ndim == 5:
            self._keep_rectangular(result)
        return result

    def _keep_rectangular(self, x: Tensor) -> None:
        """A channel dimension split in two (a channel shuffle) has to keep equally many channels in each row."""
        varying = [d for d in range(1, 5) if x.shape[d] > 1 and not bool((x == x.narrow(d, 0, 1)).all())]
        if len(varying) == 2:
            along = min(varying, key=lambda d: x.shape[d])
            plane = x[tuple(slice(None) if d in varying else slice(0, 1) for d in range(5))]
            self.ids.unite(plane.numpy(), plane.narrow(along, 0, 1).numpy())

    # Ids -------------------------------------------------------------------------------------------------------

    def _outputs_of(self, weight: Parameter, dimension: int, count: int) -> Ids:
        """Fresh ids, or those of the first call where a module is called again."""
        earlier = self.parameters.get(weight.name)
        known = earlier[dimension] if earlier else None
        return known if known is not None else self.ids.fresh(count)

    def _note(self, parameter: Parameter, dims: tuple[Ids | None, ...]) -> None:
        earlier = self.parameters.setdefault(parameter.name, dims)
        for old, new in zip(earlier, dims, strict=True):
            if old is not None and new is not None and old is not new:
                self.ids.unite(old, new)

    def _fix(self, x: Tensor, why: str) -> None:
        self._fix_ids(np.unique(x.numpy()), why)

    def _fix_ids(self, ids: Ids, why: str) -> None:
        self.fixed.append((ids, why))

    def _try_vector(self, x: Tensor) -> Ids | None:
        for dim in range(x.ndim):
            if dim != 1 and x.shape[dim] > 1 and x.stride(dim) == 0:
                x = x.narrow(dim, 0, 1)
        rows = x.movedim(1, -1).reshape(-1, x.shape[1])
        return rows[0].numpy().copy() if bool((rows == rows[0]).all()) else None

    def _vector(self, x: Tensor) -> Ids:
        """The ids along dimension 1, which have to be the same at every position of the others."""
        vector = self._try_vector(x)
        if vector is None:
            raise self._unsupported("channels are arranged differently at different positions")
        return vector

    def _spread(self, vector: Ids, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(vector).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)

    def _unsupported(self, why: str) -> UnsupportedLayer:
        node = self._node
        assert node is not None
        return UnsupportedLayer(
            module_path(node), f"{why} ({node.name})", next_step="write the module with supported operators"
        )


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * length
    values = tuple(int(v) for v in value)
    return values * length if len(values) == 1 else values
