"""Runs the `torch.export` graph on channel ids in place of numbers.

Convolutions and linear layers make fresh ids for their outputs, elementwise operators unite the ids of their inputs,
normalisation follows its input, and operators that only move elements (view, permute, cat, chunk, ...) simply execute
on the id tensors. Where channels are mixed or arranged in a way no rule covers, they are fixed, which is always right:
so are those that an unknown operator reads, and parameters that are computed on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from amc_mobile.channels import layer_rules, operators
from amc_mobile.channels.ids import FIXED
from amc_mobile.channels.structure import KeptGroup
from amc_mobile.channels.trace_record import NoRuleError, TraceRecord
from amc_mobile.channels.traced import Parameter, channel_vector, spread, varying_dimensions


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
        name = operators.operator_name(target)
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
        if name in operators.CONVOLUTIONS | {"linear"} and isinstance(made, Tensor):
            channels = int(made.shape[-1 if name == "linear" else 1])
            layer = operators.module_path(self.record.node)
            self.record.kept.append(KeptGroup(layer or name, channels, f"made by {self.record.operator}, {why}"))
        self.record.other_macs += operators.product_macs(self.record.node)
        return pytree.tree_map(lambda value: _fixed(tuple(value.shape)) if isinstance(value, Tensor) else value, made)

    def _execute(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name.startswith("_assert"):
            return None
        value = self.record.node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        if name in operators.CONSTANTS:
            return _fixed(shape)
        if name in operators.BINARY:
            return self._binary(args[0], args[1], shape)
        first = args[0] if args else None
        if isinstance(first, Parameter) and name not in operators.MIXING:
            raise NoRuleError("which computes on the parameter")
        if name in operators.CONVOLUTIONS:
            return layer_rules.convolution(self.record, name, args, kwargs, shape)
        if name == "linear":
            return layer_rules.linear(self.record, args, kwargs, shape)
        if name in operators.PER_CHANNEL:
            return layer_rules.per_channel(self.record, args)
        if name in operators.ELEMENTWISE and not any(isinstance(a, (Tensor, Parameter)) for a in args[1:]):
            return first
        if name in operators.REDUCTIONS:
            return self._reduce(args, kwargs, shape)
        if any(part in name for part in operators.OVER_SPACE):
            return self._over_space(args, value)
        if name in operators.PADDING:
            return self._pad(args[0], list(args[1]), shape)
        if name in operators.MOVING:
            return self._move(name, target, args, kwargs)
        if name in operators.MIXING and isinstance(value, Tensor):
            for mixed in args:
                if isinstance(mixed, Tensor):
                    self.record.fix(mixed, f"mixed by {name}")
                elif isinstance(mixed, Parameter):
                    self.record.keep(mixed, f"parameter {mixed.name} is read by {self.record.operator}")
            self.record.other_macs += operators.product_macs(self.record.node)
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
            one, other = channel_vector(first), channel_vector(second)
            if one is not None and other is not None:
                if len(one) == len(other):
                    self.record.ids.unite(one, other)
                    return spread(np.maximum(one, other), shape)
                # One channel against many: it keeps its width of one, the others are not coupled by it.
                narrow, wide = sorted((one, other), key=len)
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
        if name in operators.SIZED_VIEWS or name in operators.SIZED_CUTS | {"select", "unbind"}:
            along = None if name in operators.SIZED_VIEWS else _cut_dimension(name, args, kwargs) % x.ndim
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
        if name in operators.SIZED_VIEWS and len(varying) == 1:
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
