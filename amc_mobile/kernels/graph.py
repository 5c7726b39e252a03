"""An exported graph in the form that both file formats share, and the labels that width tracing gives it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.channels.ids import DimensionIds, Ids
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.widths import Expression, UndecodedInteger, WidthCode

SMALL_CONSTANT = 64  # integers that describe shapes come in constants of at most this many values
TensorName = str | int
Array = NDArray[Any]


@dataclass(frozen=True)
class Node:
    """An operator. `constants`: input slot -> array; the other slots read activations (None: absent)."""

    name: str
    inputs: tuple[TensorName | None, ...]
    constants: Mapping[int, Array]
    outputs: tuple[TensorName, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Node, ...]
    shapes: Mapping[TensorName, tuple[int, ...]]
    inputs: tuple[TensorName, ...]
    outputs: tuple[TensorName, ...]


@dataclass(frozen=True)
class ConstantLabel:
    """How one constant follows the plan: cut along `ids`, or computed (`values`), or neither."""

    dims: tuple[Expression, ...]
    ids: tuple[DimensionIds | None, ...] | None = None
    values: tuple[Expression, ...] | None = None

    @property
    def changes(self) -> bool:
        return self.ids is not None or self.values is not None


@dataclass
class Labels:
    """The expression of every integer of the graph that depends on the widths."""

    shapes: dict[TensorName, tuple[Expression, ...]] = field(default_factory=dict)
    constants: dict[tuple[int, int], ConstantLabel] = field(default_factory=dict)
    attributes: dict[tuple[int, str], Expression | tuple[Expression, ...]] = field(default_factory=dict)


class Vocabulary:
    """The distinct channel arrangements of the network's parameters, to be recognised in exported arrays."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._arrangements: dict[tuple[int, Expression], list[DimensionIds]] = {}
        seen: set[bytes] = set()
        for dims in groups.parameters.values():
            for ids in dims:
                if ids is None or ids.is_fixed:
                    continue
                fingerprint = ids.group.tobytes() + ids.position.tobytes()
                if fingerprint in seen:
                    continue
                seen.add(fingerprint)
                constant, factors = ids.expression(len(groups.groups))
                terms = tuple((int(g), int(factors[g])) for g in np.flatnonzero(factors))
                self._arrangements.setdefault((len(ids), Expression(constant, terms)), []).append(ids)

    def candidates(self, length: int, expression: Expression) -> list[DimensionIds]:
        canonical = Expression(expression.constant, tuple(sorted(expression.terms)))
        return self._arrangements.get((length, canonical), [])


class Decoder:
    """Labels the original graph by comparing it with its traces, node by node."""

    def __init__(self, groups: ChannelGroups, code: WidthCode, kept: Sequence[list[Ids]]) -> None:
        self._code = code
        self._kept = kept  # per trace, per group
        self._vocabulary = Vocabulary(groups)

    def decode(self, graphs: Sequence[Graph]) -> Labels:
        """`graphs`: the original, then the traces. Raises UnsupportedLayer naming the operator that does not decode."""
        original = graphs[0]
        counts = {len(graph.nodes) for graph in graphs}
        if len(counts) != 1:
            raise UnsupportedLayer("", f"the exported graph has {sorted(counts)} operators at different widths")
        labels = Labels()
        for names in zip(*[graph.inputs for graph in graphs], strict=True):
            labels.shapes[names[0]] = self._dims("input", [g.shapes[n] for g, n in zip(graphs, names, strict=True)], ())
        for index, nodes in enumerate(zip(*[graph.nodes for graph in graphs], strict=True)):
            where = f"operator {index} ({nodes[0].name})"
            if len({(node.name, len(node.inputs), len(node.outputs)) for node in nodes}) != 1:
                raise UnsupportedLayer("", f"{where} differs between widths: {[node.name for node in nodes]}")
            local = [e for name in original.nodes[index].inputs if name in labels.shapes for e in labels.shapes[name]]
            for slot in nodes[0].constants:
                arrays = [node.constants[slot] for node in nodes]
                labels.constants[index, slot] = self._constant(f"{where}, constant {slot}", arrays, local)
            read = local + [e for slot in nodes[0].constants for e in labels.constants[index, slot].dims]
            for names in zip(*[node.outputs for node in nodes], strict=True):
                shapes = [graph.shapes[name] for graph, name in zip(graphs, names, strict=True)]
                labels.shapes[names[0]] = self._dims(f"{where}, output", shapes, read)
            for key, value in nodes[0].attributes.items():
                values = [node.attributes[key] for node in nodes]
                if any(other != value for other in values):
                    labels.attributes[index, key] = self._attribute(f"{where}, {key}", values, local)
        return labels

    def _integer(self, where: str, values: Sequence[int], local: Sequence[Expression]) -> Expression:
        try:
            return self._code.decode(values, local)
        except UndecodedInteger as error:
            raise UnsupportedLayer("", f"{where}: {error}") from error

    def _dims(
        self, where: str, shapes: Sequence[tuple[int, ...]], local: Sequence[Expression]
    ) -> tuple[Expression, ...]:
        if len({len(shape) for shape in shapes}) != 1:
            raise UnsupportedLayer("", f"{where}: its rank changes with the widths: {list(shapes)}")
        return tuple(self._integer(f"{where} dim {d}", v, local) for d, v in enumerate(zip(*shapes, strict=True)))

    def _attribute(
        self, where: str, values: Sequence[Any], local: Sequence[Expression]
    ) -> Expression | tuple[Expression, ...]:
        if all(isinstance(value, int) for value in values):
            return self._integer(where, values, local)
        if all(isinstance(value, (list, tuple)) for value in values):
            return tuple(self._integer(where, v, local) for v in zip(*values, strict=True))
        raise UnsupportedLayer("", f"{where} changes with the widths: {list(values)}")

    def _constant(self, where: str, arrays: Sequence[Array], local: Sequence[Expression]) -> ConstantLabel:
        first = arrays[0]
        dims = self._dims(where, [array.shape for array in arrays], local)
        if all(e.is_constant for e in dims):
            if all(np.array_equal(first, other) for other in arrays[1:]):
                return ConstantLabel(dims)
            if first.dtype.kind == "i" and first.size <= SMALL_CONSTANT:
                columns = zip(*[array.ravel().tolist() for array in arrays], strict=True)
                return ConstantLabel(dims, values=tuple(self._integer(where, v, local) for v in columns))
            raise UnsupportedLayer("", f"{where}: its values change with the widths")
        options: list[list[DimensionIds | None]] = [
            [None] if e.is_constant else list(self._vocabulary.candidates(n, e))
            for e, n in zip(dims, first.shape, strict=True)
        ]
        for choice in itertools.product(*options):
            if all(
                np.array_equal(cut(first, choice, kept), traced)
                for kept, traced in zip(self._kept, arrays[1:], strict=True)
            ):
                return ConstantLabel(dims, ids=choice)
        raise UnsupportedLayer("", f"{where} of shape {first.shape} does not follow the kept channels")


def cut(array: Array, ids: Sequence[DimensionIds | None], kept: list[Ids]) -> Array:
    """The array at a plan: each dimension reduced to its surviving positions."""
    for axis, dimension in enumerate(ids):
        if dimension is not None:
            array = array.take(dimension.surviving(kept), axis)
    return array
