"""Runs the `torch.export` graph on channel ids in place of numbers.

Convolutions and linear layers make fresh ids for their outputs, elementwise operators unite the ids of their inputs,
normalisation follows its input, and operators that only move elements (view, permute, cat, chunk, ...) simply execute
on the id tensors. Where channels are mixed or arranged in a way no rule covers, they are fixed, which is always right:
so are those that an unknown operator reads, and parameters that are computed on.

Layers' rules raise NoRuleError where a layer's weight is computed in the forward pass or is no layer's own.

An id tensor has the shape of the activation it stands for and holds a channel id at every position. Most are expanded
from one vector of ids (strides of 0), which makes looking at them cheap.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from amc_mobile.channels.structure import FIXED, ChannelIds, Ids, KeptGroup
from amc_mobile.errors import UnsupportedLayer


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The program of a copy of `model` in evaluation mode, with static shapes.

    Raises UnsupportedLayer naming the innermost module where the network fails to run or cannot be traced.
    """
    clone = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            clone(example)
    except Exception as error:
        where, line = where_it_failed(clone, error)
        raise UnsupportedLayer(
            where,
            f"does not run on an input of shape {tuple(example.shape)}{line}: {_first_line(error)}",
            next_step="check the network and its input size",
        ) from error
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(clone, (example,), strict=False)
    except Exception as error:  # torch.export has no common base class for what it cannot trace
        where, line = where_it_failed(clone, error)
        raise UnsupportedLayer(
            where,
            f"torch.export cannot trace it{line}: {_first_line(error)}",
            next_step="replace control flow that depends on the data by tensor operators",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints the whole graph when it fails; the error says it shorter. Its warnings are about
    how it copies a recurrent layer's weights."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def where_it_failed(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """(path of the innermost module of `model` that ran, " at `source` (file, line N)"); ("", "") where not known."""
    paths = {id(module): name for name, module in model.named_modules()}
    for cause in _causes(error):
        failed_at: tuple[str, str] | None = None
        for frame in _frames(cause.__traceback__):
            owner = frame.tb_frame.f_locals.get("self")
            code = frame.tb_frame.f_code
            # torch's own call machinery also has the module as `self`; the line of interest is in its `forward`.
            if (
                isinstance(owner, nn.Module)
                and id(owner) in paths
                and not code.co_filename.endswith("nn/modules/module.py")
            ):
                summary = traceback.extract_tb(frame, limit=1)
                text = summary[0].line if summary else ""
                place = f"{Path(code.co_filename).name}, line {frame.tb_lineno}"
                failed_at = paths[id(owner)], f" at `{text}` ({place})" if text else ""
        if failed_at:
            return failed_at
    return "", ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it, the root cause first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return reversed(chain)


def _frames(start: TracebackType | None) -> Iterator[TracebackType]:
    while start is not None:
        yield start
        start = start.tb_next


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer the first one of the same tensor: modules may share tensors."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def tensor_inputs(model: nn.Module, program: torch.export.ExportedProgram) -> dict[Node, str]:
    """The placeholders of `model`'s program that hold parameters, buffers or constants, with their (first) names."""
    signature, first = program.graph_signature, first_names(model)
    names = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants
    }  # fmt: skip
    return {
        node: first.get(names[node.name], names[node.name])
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    }


@dataclass(frozen=True)
class Parameter:
    """A parameter, buffer or constant of the network: its name and shape in place of its values."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TracedLayer:
    """One execution of a convolution or linear layer, with the ids of its input and output channels."""

    name: str  # module path
    transposed: bool
    in_ids: Ids
    out_ids: Ids
    weight_shape: tuple[int, ...]
    groups: int
    stride: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def channel_vector(x: Tensor) -> Ids | None:
    """The ids along dimension 1, or None where they are not the same at every position of the other dimensions."""
    for dim in range(x.ndim):
        if dim != 1 and x.shape[dim] > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    return rows[0].numpy().copy() if bool((rows == rows[0]).all()) else None


def spread(vector: Ids, shape: tuple[int, ...]) -> Tensor:
    """An id tensor of `shape` with `vector` along dimension 1 at every position."""
    return torch.from_numpy(vector).view(1, -1, *[1] * (len(shape) - 2)).expand(shape)


def varying_dimensions(x: Tensor) -> list[int]:
    """The dimensions along which channel ids change."""
    for dim in range(x.ndim):
        if x.stride(dim) == 0:
            x = x.narrow(dim, 0, min(1, x.shape[dim]))
    return [d for d in range(x.ndim) if x.shape[d] > 1 and not bool((x == x.narrow(d, 0, 1)).all())]


class NoRuleError(Exception):
    """An operator, or a use of one, that no rule covers; says why. What it reads stays whole."""


class TraceRecord:
    """Filled node by node. `node`: the present one, which reasons and errors name.

    `parameters`: name -> ids per dimension; `fixed`: ids that may not be cut, with the reason; `kept`: layers that are
    left as they are; `has_sized_moves`: whether channels were reshaped, sliced or split by explicit sizes;
    `other_macs`: multiply-accumulates of the whole batch outside `layers`. `layer_modules`: paths of the modules that
    hold the weight of a layer.
    """

    node: Node

    def __init__(self, layer_modules: frozenset[str]) -> None:
        self.layer_modules = layer_modules
        self.ids = ChannelIds()
        self.layers: list[TracedLayer] = []
        self.parameters: dict[str, tuple[Ids | None, ...]] = {}
        self.fixed: list[tuple[Ids, str]] = []
        self.kept: list[KeptGroup] = []
        self._whole: list[tuple[Parameter, str]] = []
        self.has_sized_moves = False
        self.other_macs = 0

    def outputs_of(self, weight: Parameter, dimension: int, count: int) -> Ids:
        """Fresh ids, or those of the first call where a module is called again."""
        earlier = self.parameters.get(weight.name)
        ids = earlier[dimension] if earlier else None
        return ids if ids is not None else self.ids.fresh(count)

    def note(self, parameter: Parameter, dims: tuple[Ids | None, ...]) -> None:
        """`dims`: per dimension of the parameter the ids along it, None where it holds no channels."""
        earlier = self.parameters.setdefault(parameter.name, dims)
        for old, new in zip(earlier, dims, strict=True):
            if old is not None and new is not None and old is not new:
                self.ids.unite(old, new)

    def fix(self, x: Tensor, why: str) -> None:
        """The channels in `x` may not be cut."""
        self.fixed.append((np.unique(x.numpy()), why))

    def keep(self, parameter: Parameter, why: str) -> None:
        """No dimension of `parameter` may be cut, wherever else the network reads it."""
        self._whole.append((parameter, why))

    def all_fixed(self) -> list[tuple[Ids, str]]:
        """`fixed` and the channels along the dimensions of parameters that are kept. Complete after the last node."""
        held = [(self.parameters.get(parameter.name, ()), why) for parameter, why in self._whole]
        return self.fixed + [(ids, why) for dims, why in held for ids in dims if ids is not None]

    def vector(self, x: Tensor) -> Ids:
        """The ids along dimension 1. Where they differ by position, they are fixed: then every position is alike."""
        vector = channel_vector(x)
        if vector is None:
            self.fix(x, f"arranged differently by position when read by {self.node.name}")
            vector = np.full(x.shape[1], FIXED, dtype=np.int64)
        return vector

    @property
    def operator(self) -> str:
        """The present node for a reason, like `operator cumsum (middle.1)`."""
        module = module_path(self.node)
        return f"operator {operator_name(self.node.target)}" + (f" ({module})" if module else "")


def convolution(
    record: TraceRecord, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> Tensor:
    """A convolution of any kind, transposed or depthwise too. `shape`: of its output."""
    transposed = "transpose" in name
    names = ["input", "weight", "bias", "stride", "padding"]
    names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, groups, count = given["input"], _weight(record, given["weight"]), int(given.get("groups", 1)), shape[1]
    ids_in = record.vector(x)
    dims: list[Ids | None] = [None] * len(weight.shape)
    if groups == 1:
        ids_out = record.outputs_of(weight, 1 if transposed else 0, count)
        dims[0], dims[1] = (ids_in, ids_out) if transposed else (ids_out, ids_in)
    elif groups == len(ids_in) == count and not transposed:
        dims[0] = ids_out = ids_in
    else:
        record.fixed.append((ids_in, "read by a grouped convolution"))
        dims[1 if transposed else 0] = ids_out = record.ids.fresh(count)
        if transposed:  # its second dimension holds one share of the outputs
            dims[1] = None
        record.fixed.append((ids_out, "grouped convolution"))
    stride = given.get("stride", 1)
    strides = (stride,) if isinstance(stride, int) else tuple(int(step) for step in stride)
    _add_layer(
        record, weight, given.get("bias"), tuple(dims), transposed, ids_in, ids_out, tuple(x.shape), shape, groups,
        stride=strides * (len(shape) - 2) if len(strides) == 1 else strides,
    )  # fmt: skip
    return spread(ids_out, shape)


def linear(record: TraceRecord, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    """A linear layer. `shape`: of its output."""
    x, weight, bias = args[0], _weight(record, args[1]), args[2] if len(args) > 2 else kwargs.get("bias")
    ids_in = record.vector(x.movedim(-1, 1)) if x.ndim > 1 else x.numpy().copy()
    ids_out = record.outputs_of(weight, 0, shape[-1])
    _add_layer(record, weight, bias, (ids_out, ids_in), False, ids_in, ids_out, tuple(x.shape), shape, 1)
    return torch.from_numpy(ids_out).expand(shape)


def per_channel(record: TraceRecord, args: tuple[Any, ...]) -> Tensor:
    """A normalisation, which follows its input."""
    vector = record.vector(args[0])
    for value in args[1:5]:
        if isinstance(value, Parameter) and value.shape == (len(vector),):
            record.note(value, (vector,))
    return args[0]  # type: ignore[no-any-return]


def _add_layer(
    record: TraceRecord,
    weight: Parameter,
    bias: Any,
    dims: tuple[Ids | None, ...],
    transposed: bool,
    in_ids: Ids,
    out_ids: Ids,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    groups: int,
    stride: tuple[int, ...] = (),
) -> None:
    if any(ids is not None for ids in dims):
        record.note(weight, dims)
    if isinstance(bias, Parameter):
        record.note(bias, (out_ids,))
    record.layers.append(
        TracedLayer(
            weight.name.rpartition(".")[0], transposed, in_ids, out_ids, weight.shape, groups, stride, in_shape,
            out_shape,
        )
    )  # fmt: skip


def _weight(record: TraceRecord, weight: Any) -> Parameter:
    if not isinstance(weight, Parameter):
        raise NoRuleError("whose weight is computed in the forward pass")
    module, _, attribute = weight.name.rpartition(".")
    if attribute != "weight" or module not in record.layer_modules:
        raise NoRuleError(f"whose weight is the parameter {weight.name}, not that of a layer")
    return weight


class IdTrace(Interpreter):
    """Executes an exported graph on int64 tensors of channel ids, shaped like the activations.

    `rigid`: channels that are reshaped, sliced or split by explicit sizes are fixed. `record`: what a run found out.
    `layer_modules`: paths of the modules that hold the weight of a layer.
    """

    def __init__(self, module: GraphModule, layer_modules: frozenset[str], *, rigid: bool) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would rewrite our errors' text
        self.rigid = rigid
        self.record = TraceRecord(layer_modules)

    def run_node(self, n: Node) -> Any:
        self.record.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operator_name(target)
        try:
            return self._execute(name, target, args, kwargs)
        except NoRuleError as error:
            return self._keep_whole(name, str(error), args, kwargs)
        except Exception as error:  # whatever a rule did not foresee
            return self._keep_whole(name, f"which cannot be followed as it is used ({error})", args, kwargs)

    def _keep_whole(self, name: str, why: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator without a rule reads stays as it is, and so does what its result is combined with."""
        values = pytree.tree_leaves((args, kwargs))
        for value in values:
            if isinstance(value, Tensor):
                self.record.fix(value, f"read by {self.record.operator}, {why}")
            elif isinstance(value, Parameter):
                self.record.keep(value, f"parameter {value.name} is read by {self.record.operator}, {why}")
        made = self.record.node.meta.get("val")
        if name in CONVOLUTIONS | {"linear"} and isinstance(made, Tensor):
            channels = int(made.shape[-1 if name == "linear" else 1])
            layer = module_path(self.record.node)
            self.record.kept.append(KeptGroup(layer or name, channels, f"made by {self.record.operator}, {why}"))
        self.record.other_macs += product_macs(self.record.node)
        return pytree.tree_map(lambda value: _fixed(tuple(value.shape)) if isinstance(value, Tensor) else value, made)

    def _execute(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name.startswith("_assert"):
            return None
        value = self.record.node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        if name in CONSTANTS:
            return _fixed(shape)
        if name in BINARY:
            return self._binary(args[0], args[1], shape)
        first = args[0] if args else None
        if isinstance(first, Parameter) and name not in MIXING:
            raise NoRuleError("which computes on the parameter")
        if name in CONVOLUTIONS:
            return convolution(self.record, name, args, kwargs, shape)
        if name == "linear":
            return linear(self.record, args, kwargs, shape)
        if name in PER_CHANNEL:
            return per_channel(self.record, args)
        if name in ELEMENTWISE and not any(isinstance(a, (Tensor, Parameter)) for a in args[1:]):
            return first
        if name in REDUCTIONS:
            return self._reduce(args, kwargs, shape)
        if any(part in name for part in OVER_SPACE):
            return self._over_space(args, value)
        if name in PADDING:
            return self._pad(args[0], list(args[1]), shape)
        if name in MOVING:
            return self._move(name, target, args, kwargs)
        if name in MIXING and isinstance(value, Tensor):
            for mixed in args:
                if isinstance(mixed, Tensor):
                    self.record.fix(mixed, f"mixed by {name}")
                elif isinstance(mixed, Parameter):
                    self.record.keep(mixed, f"parameter {mixed.name} is read by {self.record.operator}")
            self.record.other_macs += product_macs(self.record.node)
            return _fixed(shape)
        raise NoRuleError("which has no rule for channels")

    # Operators without weights ---------------------------------------------------------------------------------

    def _binary(self, a: Any, b: Any, shape: tuple[int, ...]) -> Tensor:
        tensors = [value for value in (a, b) if isinstance(value, Tensor)]
        bare = [value for value in (a, b) if isinstance(value, Parameter)]
        if not tensors:
            raise NoRuleError("which computes on the parameter")
        for value in bare:
            self.record.keep(value, f"the bare parameter {value.name} is combined with activations")
            if np.prod(value.shape) > 1:
                self.record.fix(tensors[0], f"combined with the bare parameter {value.name}")
        if len(tensors) < 2:
            # A constant may have more dimensions or channels than what it is combined with.
            return tensors[0].expand(shape)
        first, second = tensors
        if 1 in (first.numel(), second.numel()):  # one number for all channels couples none of them
            number, many = sorted((first, second), key=Tensor.numel)
            self.record.fix(number, "broadcast over channels")
            return many.expand(shape)
        if first.ndim == second.ndim >= 2:
            first_ids, second_ids = channel_vector(first), channel_vector(second)
            if first_ids is not None and second_ids is not None:
                if len(first_ids) == len(second_ids):
                    self.record.ids.unite(first_ids, second_ids)
                    return spread(np.maximum(first_ids, second_ids), shape)
                # One channel against many: it keeps its width of one, the others are not coupled by it.
                narrow, wide = sorted((first_ids, second_ids), key=len)
                self.record.fixed.append((narrow, "broadcast over channels"))
                return spread(wide, shape)
        left, right = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        self.record.ids.unite(left.numpy(), right.numpy())
        return torch.maximum(left, right)

    def _reduce(self, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
        x: Tensor = args[0]
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [d % x.ndim for d in ([given] if isinstance(given, int) else given or range(x.ndim))]
        keepdim = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
        if not bool((x == x.amax(dims, keepdim=True)).all()):
            self.record.fix(x, f"reduced over channels by {self.record.operator}")
            return _fixed(shape)
        return x.amax(dims, keepdim=keepdim)

    def _over_space(self, args: tuple[Any, ...], made: Any) -> Any:
        """Pooling and resizing, some of which also give the positions that they chose, or are given them."""
        vectors = [self.record.vector(value) for value in args if isinstance(value, Tensor)]
        for other in vectors[1:]:
            self.record.ids.unite(vectors[0], other)
        return pytree.tree_map(lambda value: spread(vectors[0], tuple(value.shape)), made)

    def _pad(self, x: Tensor, amounts: list[int], shape: tuple[int, ...]) -> Tensor:
        # Pairs (before, after) from the last dimension backwards; channels are dimension 1.
        pairs = dict(enumerate(zip(amounts[::2], amounts[1::2], strict=True)))
        if any(pairs.get(x.ndim - 1, (0, 0))):
            raise NoRuleError("which pads the batch")
        before, after = (int(amount) for amount in pairs.get(x.ndim - 2, (0, 0)))
        vector = self.record.vector(x)
        vector = vector[max(0, -before) : len(vector) - max(0, -after)]  # negative amounts cut
        padded = np.pad(vector, (max(0, before), max(0, after)), constant_values=FIXED)
        return spread(padded, shape)

    def _move(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if name in ("cat", "concat"):
            return self._concatenate(list(x), int(args[1] if len(args) > 1 else kwargs.get("dim", 0)))
        varying = varying_dimensions(x) if isinstance(x, Tensor) else []
        if name in SIZED_VIEWS or name in SIZED_CUTS | {"select", "unbind"}:
            along = None if name in SIZED_VIEWS else _cut_dimension(name, args, kwargs) % x.ndim
            if varying and (along is None or along in varying):
                if name in ("select", "unbind"):
                    self.record.fix(x, "single channels are picked by their index")
                elif self.rigid:
                    self.record.fix(x, "reshaped or split by sizes that do not follow the number of channels")
                self.record.has_sized_moves = True
        # An expanded id tensor has strides of 0, on which a plain view is refused.
        result = x.reshape(args[1]) if name in ("view", "_unsafe_view") else target(*args, **kwargs)
        if name in ("chunk", "split") and len({part.shape for part in result}) == 1:
            for part in result[1:]:  # equal parts have to stay equal
                self.record.ids.unite(result[0].numpy(), part.numpy())
        if name in SIZED_VIEWS and len(varying) == 1:
            self._keep_rectangular(result)
        return result

    def _concatenate(self, parts: list[Tensor], dim: int) -> Tensor:
        if dim % parts[0].ndim != 1 and parts[0].ndim > 1:
            vectors = [channel_vector(part) for part in parts]
            if all(vector is not None for vector in vectors):  # joined in space: the same channels on both sides
                for part in parts[1:]:
                    self.record.ids.unite(self.record.vector(parts[0]), self.record.vector(part))
                parts = [spread(self.record.vector(parts[0]), tuple(part.shape)) for part in parts]
        return torch.cat([part.contiguous() for part in parts], dim)

    def _keep_rectangular(self, x: Tensor) -> None:
        """A channel dimension split in two (a channel shuffle) has to keep equally many channels in each row."""
        varying = varying_dimensions(x)
        if len(varying) == 2:
            rows = min(varying, key=lambda d: x.shape[d])
            plane = x[tuple(slice(None) if d in varying else slice(0, 1) for d in range(x.ndim))]
            self.record.ids.unite(plane.numpy(), plane.narrow(rows, 0, 1).numpy())


def _fixed(shape: tuple[int, ...]) -> Tensor:
    return torch.full((), FIXED, dtype=torch.int64).expand(shape)


def _cut_dimension(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    position = 2 if name in ("split", "split_with_sizes") else 1
    return int(args[position] if len(args) > position else kwargs.get("dim", 0))
