"""Runs the `torch.export` graph on channel ids in place of numbers.

Convolutions and linear layers make fresh ids for their outputs, elementwise operators unite the ids of their inputs,
normalisation follows its input, and operators that only move elements (view, permute, cat, chunk, ...) simply execute
on the id tensors. Where channels are mixed or arranged in a way no rule covers, they are fixed, which is always right;
an unknown operator is an error that names its module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from amc_mobile.channels import operators
from amc_mobile.channels.ids import FIXED, ChannelIds, Ids
from amc_mobile.channels.traced import Parameter, TracedLayer, channel_vector, spread, varying_dimensions
from amc_mobile.errors import UnsupportedLayer


class IdTrace(Interpreter):
    """Executes an exported graph on int64 tensors of channel ids, shaped like the activations.

    `rigid`: channels that are reshaped, sliced or split by explicit sizes are fixed. `has_sized_moves` tells after
    the run whether there were any.
    """

    def __init__(self, module: GraphModule, *, rigid: bool) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would rewrite our errors' text
        self.rigid = rigid
        self.has_sized_moves = False
        self.ids = ChannelIds()
        self.layers: list[TracedLayer] = []
        self.parameters: dict[str, tuple[Ids | None, ...]] = {}
        self.fixed: list[tuple[Ids, str]] = []  # ids that may not be cut, with the reason
        self._node: Node

    def run_node(self, n: Node) -> Any:
        self._node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operators.operator_name(target)
        try:
            return self._execute(name, target, args, kwargs)
        except UnsupportedLayer:
            raise
        except Exception as error:  # whatever a rule did not foresee: name the place
            raise self._unsupported(f"operator {name} cannot be traced as it is used here ({error})") from error

    def _execute(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name.startswith("_assert"):
            return None
        value = self._node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        if name in operators.CONSTANTS:
            return torch.full(shape, FIXED, dtype=torch.int64)
        if name in operators.BINARY:
            return self._binary(args[0], args[1], shape)
        first = args[0] if args else None
        if isinstance(first, Parameter) and name not in operators.MIXING:
            raise self._unsupported(f"operator {name} computes on the parameter {first.name}")
        if name in operators.CONVOLUTIONS:
            return self._convolution(name, args, kwargs, shape)
        if name == "linear":
            return self._linear(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias"), shape)
        if name in operators.PER_CHANNEL:
            return self._per_channel(args)
        if name in operators.ELEMENTWISE and not any(isinstance(a, (Tensor, Parameter)) for a in args[1:]):
            return first
        if name in operators.REDUCTIONS:
            return self._reduce(args, kwargs, shape)
        if any(part in name for part in operators.OVER_SPACE) and isinstance(value, Tensor):
            return spread(self._vector(args[0]), shape)
        if name in operators.PADDING:
            return self._pad(args[0], list(args[1]), shape)
        if name in operators.MOVING:
            return self._move(name, target, args, kwargs)
        if name in operators.MIXING and isinstance(value, Tensor):
            for mixed in args:
                if isinstance(mixed, Tensor):
                    self._fix(mixed, f"mixed by {name}")
            return torch.full(shape, FIXED, dtype=torch.int64)
        raise self._unsupported(f"operator {name} is not supported")

    # Layers with weights ---------------------------------------------------------------------------------------

    def _convolution(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
        transposed = "transpose" in name
        names = ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight, groups, count = given["input"], self._weight(given["weight"]), int(given.get("groups", 1)), shape[1]
        ids_in = self._vector(x)
        dims: list[Ids | None] = [None] * len(weight.shape)
        if groups == 1:
            ids_out = self._outputs_of(weight, 1 if transposed else 0, count)
            dims[0], dims[1] = (ids_in, ids_out) if transposed else (ids_out, ids_in)
        elif groups == len(ids_in) == count and not transposed:
            dims[0] = ids_out = ids_in
        else:
            self.fixed.append((ids_in, "read by a grouped convolution"))
            dims[1 if transposed else 0] = ids_out = self.ids.fresh(count)
            if transposed:  # its second dimension holds one share of the outputs
                dims[1] = None
            self.fixed.append((ids_out, "grouped convolution"))
        spatial = len(shape) - 2
        padding = given.get("padding", 0)
        self._add_layer(
            weight, given.get("bias"), tuple(dims), transposed, ids_in, ids_out, tuple(x.shape), shape, groups,
            stride=_per_dimension(given.get("stride", 1), spatial),
            padding=padding if isinstance(padding, str) else _per_dimension(padding, spatial),
            dilation=_per_dimension(given.get("dilation", 1), spatial),
        )  # fmt: skip
        return spread(ids_out, shape)

    def _linear(self, x: Tensor, given: Any, bias: Any, shape: tuple[int, ...]) -> Tensor:
        weight = self._weight(given)
        ids_in = self._vector(x.movedim(-1, 1)) if x.ndim > 1 else x.numpy().copy()
        ids_out = self._outputs_of(weight, 0, shape[-1])
        self._add_layer(weight, bias, (ids_out, ids_in), False, ids_in, ids_out, tuple(x.shape), shape, 1)
        return torch.from_numpy(ids_out).expand(shape)

    def _add_layer(
        self,
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
        padding: tuple[int, ...] | str = (),
        dilation: tuple[int, ...] = (),
    ) -> None:
        if any(ids is not None for ids in dims):
            self._note(weight, dims)
        if isinstance(bias, Parameter):
            self._note(bias, (out_ids,))
        self.layers.append(
            TracedLayer(
                weight.name.rpartition(".")[0], transposed, in_ids, out_ids, weight.shape, groups, stride, padding,
                dilation, in_shape, out_shape, has_bias=isinstance(bias, Parameter),
            )
        )  # fmt: skip

    def _weight(self, weight: Any) -> Parameter:
        if not isinstance(weight, Parameter):
            raise self._unsupported("the weight of a layer is computed in the forward pass")
        return weight

    def _per_channel(self, args: tuple[Any, ...]) -> Tensor:
        vector = self._vector(args[0])
        for value in args[1:5]:
            if isinstance(value, Parameter) and value.shape == (len(vector),):
                self._note(value, (vector,))
        return args[0]  # type: ignore[no-any-return]

    # Operators without weights ---------------------------------------------------------------------------------

    def _binary(self, a: Any, b: Any, shape: tuple[int, ...]) -> Tensor:
        tensors = [value for value in (a, b) if isinstance(value, Tensor)]
        bare = [value for value in (a, b) if isinstance(value, Parameter)]
        if not tensors:
            raise self._unsupported(f"the parameter {bare[0].name} is computed on in the forward pass")
        for value in bare:
            if np.prod(value.shape) > 1:
                self._fix(tensors[0], f"combined with the bare parameter {value.name}")
        if len(tensors) < 2:
            # A constant may have more dimensions or channels than what it is combined with.
            return tensors[0].expand(shape)
        first, second = tensors
        if first.ndim == second.ndim >= 2:
            one, other = channel_vector(first), channel_vector(second)
            if one is not None and other is not None:
                if len(one) == len(other):
                    self.ids.unite(one, other)
                    return spread(np.maximum(one, other), shape)
                # One channel against many: it keeps its width of one, the others are not coupled by it.
                narrow, wide = sorted((one, other), key=len)
                self.fixed.append((narrow, "broadcast over channels"))
                return spread(wide, shape)
        left, right = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        self.ids.unite(left.numpy(), right.numpy())
        return torch.maximum(left, right)

    def _reduce(self, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
        x: Tensor = args[0]
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [d % x.ndim for d in ([given] if isinstance(given, int) else given or range(x.ndim))]
        keepdim = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
        if not bool((x == x.amax(dims, keepdim=True)).all()):
            self._fix(x, "reduced over channels")
            return torch.full(shape, FIXED, dtype=torch.int64)
        return x.amax(dims, keepdim=keepdim)

    def _pad(self, x: Tensor, amounts: list[int], shape: tuple[int, ...]) -> Tensor:
        # Pairs (before, after) from the last dimension backwards; channels are dimension 1.
        pairs = dict(enumerate(zip(amounts[::2], amounts[1::2], strict=True)))
        if any(pairs.get(x.ndim - 1, (0, 0))):
            raise self._unsupported("the batch dimension is padded")
        before, after = (int(amount) for amount in pairs.get(x.ndim - 2, (0, 0)))
        vector = self._vector(x)
        vector = vector[max(0, -before) : len(vector) - max(0, -after)]  # negative amounts cut
        padded = np.pad(vector, (max(0, before), max(0, after)), constant_values=FIXED)
        return spread(padded, shape)

    def _move(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0]
        if name in ("cat", "concat"):
            return self._concatenate(list(x), int(args[1] if len(args) > 1 else kwargs.get("dim", 0)))
        varying = varying_dimensions(x) if isinstance(x, Tensor) else []
        if name in operators.SIZED_VIEWS or name in operators.SIZED_CUTS | {"select", "unbind"}:
            along = None if name in operators.SIZED_VIEWS else _cut_dimension(name, args, kwargs) % x.ndim
            if varying and (along is None or along in varying):
                if name in ("select", "unbind"):
                    self._fix(x, "single channels are picked by their index")
                elif self.rigid:
                    self._fix(x, "reshaped or split by sizes that do not follow the number of channels")
                self.has_sized_moves = True
        # An expanded id tensor has strides of 0, on which a plain view is refused.
        result = x.reshape(args[1]) if name in ("view", "_unsafe_view") else target(*args, **kwargs)
        if name in ("chunk", "split") and len({part.shape for part in result}) == 1:
            for part in result[1:]:  # equal parts have to stay equal
                self.ids.unite(result[0].numpy(), part.numpy())
        if name in operators.SIZED_VIEWS and len(varying) == 1:
            self._keep_rectangular(result)
        return result

    def _concatenate(self, parts: list[Tensor], dim: int) -> Tensor:
        if dim % parts[0].ndim != 1 and parts[0].ndim > 1:
            vectors = [channel_vector(part) for part in parts]
            if all(vector is not None for vector in vectors):  # joined in space: the same channels on both sides
                for part in parts[1:]:
                    self.ids.unite(self._vector(parts[0]), self._vector(part))
                parts = [spread(self._vector(parts[0]), tuple(part.shape)) for part in parts]
        return torch.cat([part.contiguous() for part in parts], dim)

    def _keep_rectangular(self, x: Tensor) -> None:
        """A channel dimension split in two (a channel shuffle) has to keep equally many channels in each row."""
        varying = varying_dimensions(x)
        if len(varying) == 2:
            rows = min(varying, key=lambda d: x.shape[d])
            plane = x[tuple(slice(None) if d in varying else slice(0, 1) for d in range(x.ndim))]
            self.ids.unite(plane.numpy(), plane.narrow(rows, 0, 1).numpy())

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
        self.fixed.append((np.unique(x.numpy()), why))

    def _vector(self, x: Tensor) -> Ids:
        """The ids along dimension 1. Where they differ by position, they are fixed: then every position is alike."""
        vector = channel_vector(x)
        if vector is None:
            self._fix(x, f"arranged differently by position when read by {self._node.name}")
            vector = np.full(x.shape[1], FIXED, dtype=np.int64)
        return vector

    def _unsupported(self, why: str) -> UnsupportedLayer:
        next_step = "write the module with supported operators, or use a network without it"
        return UnsupportedLayer(operators.module_path(self._node), why, next_step=next_step)


def _cut_dimension(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    position = 2 if name in ("split", "split_with_sizes") else 1
    return int(args[position] if len(args) > position else kwargs.get("dim", 0))


def _per_dimension(value: Any, length: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * length
    values = tuple(int(v) for v in value)
    return values * length if len(values) == 1 else values
