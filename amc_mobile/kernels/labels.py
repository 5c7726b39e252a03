"""Names every dimension, attribute and weight of an exported graph by the channel groups it follows.

Integers are explained by `WidthCode`. An array is accepted only when the original, cut along the id vectors of the
network's parameters, equals the array of every pruned file bit for bit. What does not decode is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.expression import Expression
from amc_mobile.kernels.graph import SMALL_CONSTANT, Array, Graph, Value
from amc_mobile.kernels.width_code import AmbiguousError, UndecodableError, WidthCode

if TYPE_CHECKING:  # brings torch
    from amc_mobile.channels.groups import ChannelGroups

Ids = NDArray[np.int64]


class Vocabulary:
    """The distinct id vectors of parameter dimensions, and how many of their positions survive a plan."""

    def __init__(self, groups: ChannelGroups) -> None:
        sizes = groups.sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.vectors: list[Ids] = []  # channel numbers across all groups; the last number stands for fixed
        self.expressions: list[Expression] = []
        self._by_size: dict[tuple[int, Expression], list[int]] = {}
        seen = set()
        for dims in groups.parameters.values():
            for ids in dims:
                if ids is None or ids.is_fixed:
                    continue
                vector = np.where(ids.group < 0, self._starts[-1], self._starts[ids.group] + ids.position)
                if vector.tobytes() in seen:
                    continue
                seen.add(vector.tobytes())
                constant, factors = ids.expression(len(sizes))
                expression = Expression(constant, tuple((int(g), int(factors[g])) for g in np.flatnonzero(factors)))
                self._by_size.setdefault((len(vector), expression), []).append(len(self.vectors))
                self.vectors.append(vector)
                self.expressions.append(expression)

    def candidates(self, length: int, expression: Expression) -> list[int]:
        return self._by_size.get((length, expression), [])

    def alive(self, kept: Sequence[Ids]) -> NDArray[np.bool_]:
        """Which channels stay, across all groups, the fixed number included. `kept`: per group."""
        alive = np.zeros(int(self._starts[-1]) + 1, dtype=np.bool_)
        alive[-1] = True
        for start, indices in zip(self._starts, kept, strict=False):
            alive[start + indices] = True
        return alive


@dataclass(frozen=True)
class ConstantLabel:
    """`dims`: its shape; `vectors`: per axis the id vector it is cut along, None for whole; `values`: the elements
    themselves where they are sizes that follow the widths."""

    dims: tuple[Expression, ...]
    vectors: tuple[int | None, ...]
    values: tuple[Expression, ...] | None = None

    @property
    def changes(self) -> bool:
        return self.values is not None or any(v is not None for v in self.vectors)


@dataclass
class Labels:
    """Everything that follows the widths. `attributes`: only those that change."""

    shapes: dict[Value, tuple[Expression, ...]] = field(default_factory=dict)
    constants: dict[tuple[int, int], ConstantLabel] = field(default_factory=dict)
    attributes: dict[int, dict[str, Expression | tuple[Expression, ...]]] = field(default_factory=dict)

    def of_input(self, graph: Graph, index: int, slot: int) -> tuple[Expression, ...] | None:
        label = self.constants.get((index, slot))
        if label is not None:
            return label.dims
        value = graph.nodes[index].inputs[slot]
        return None if value is None else self.shapes[value]


def decode(graphs: Sequence[Graph], code: WidthCode, vocabulary: Vocabulary, kept: Sequence[Sequence[Ids]]) -> Labels:
    """Labels of `graphs[0]`, the original, from the pruned `graphs[1:]`; `kept`: per pruned graph and group.

    Raises AmbiguousError when another trace would help, else UnsupportedLayer naming the operator that does not decode.
    """
    return _Decoder(graphs, code, vocabulary, kept).run()


class _Decoder:
    def __init__(
        self, graphs: Sequence[Graph], code: WidthCode, vocabulary: Vocabulary, kept: Sequence[Sequence[Ids]]
    ) -> None:
        self.graphs, self.code, self.vocabulary = graphs, code, vocabulary
        self.original = graphs[0]
        alive = [vocabulary.alive(lists) for lists in kept]
        self.survivors = [[np.flatnonzero(live[vector]) for vector in vocabulary.vectors] for live in alive]
        self.labels = Labels()

    def run(self) -> Labels:
        counts = [len(graph.nodes) for graph in self.graphs]
        if len(set(counts)) > 1:
            raise UnsupportedLayer("", f"pruned networks are exported with other operators: {counts} of them")
        for values in zip(*(graph.inputs for graph in self.graphs), strict=True):
            self.labels.shapes[values[0]] = self._shape(values, [], "the input")
        for index in range(counts[0]):
            self._node(index)
        return self.labels

    def _node(self, index: int) -> None:
        nodes = [graph.nodes[index] for graph in self.graphs]
        where = self.original.describe(index)
        names = {node.operator for node in nodes}
        forms = {(len(n.inputs), len(n.outputs), tuple(n.constants), tuple(n.attributes)) for n in nodes}
        if len(names) > 1 or len(forms) > 1:
            raise UnsupportedLayer("", f"{where} is exported as another operator in pruned networks: {sorted(names)}")
        local: list[Expression] = []
        for value in nodes[0].inputs:
            if value is not None and value in self.labels.shapes:
                local += self.labels.shapes[value]
        for slot in nodes[0].constants:
            label = self._constant(index, slot, local, f"{where} constant {slot}")
            self.labels.constants[index, slot] = label
        widths = [e for slot in nodes[0].constants for e in self.labels.constants[index, slot].dims]
        for position, values in enumerate(zip(*(node.outputs for node in nodes), strict=True)):
            self.labels.shapes[values[0]] = self._shape(values, local + widths, f"{where} output {position}")
        for name in nodes[0].attributes:
            self._attribute(index, name, local, f"{where} attribute {name}")

    def _shape(self, values: Sequence[Value], local: Iterable[Expression], where: str) -> tuple[Expression, ...]:
        return self._integers([g.shapes[v] for g, v in zip(self.graphs, values, strict=True)], local, where)

    def _integers(
        self, rows: Sequence[Sequence[int]], local: Iterable[Expression], where: str
    ) -> tuple[Expression, ...]:
        """`rows`: one list of integers per file."""
        if len({len(row) for row in rows}) > 1:
            raise UnsupportedLayer("", f"{where}: {[len(row) for row in rows]} dimensions in pruned networks")
        try:
            return tuple(self.code.explain(column, local) for column in zip(*rows, strict=True))
        except AmbiguousError as error:
            raise AmbiguousError(f"{where}: {error}") from error
        except UndecodableError as error:
            raise UnsupportedLayer(
                "", f"{where}: {error}", next_step="prune a network without this operator"
            ) from error

    def _attribute(self, index: int, name: str, local: list[Expression], where: str) -> None:
        values = [graph.nodes[index].attributes[name] for graph in self.graphs]
        if all(value == values[0] for value in values):
            return
        changing = self.labels.attributes.setdefault(index, {})
        if all(isinstance(value, int) for value in values):
            changing[name] = self._integers([[value] for value in values], local, where)[0]  # type: ignore[list-item]
        elif all(isinstance(v, tuple) and all(isinstance(i, int) for i in v) for v in values):
            changing[name] = self._integers(values, local, where)  # type: ignore[arg-type]
        else:
            raise UnsupportedLayer("", f"{where} changes with the widths: {values}")

    def _constant(self, index: int, slot: int, local: list[Expression], where: str) -> ConstantLabel:
        arrays = [graph.nodes[index].constants[slot] for graph in self.graphs]
        original = arrays[0]
        dims = self._integers([array.shape for array in arrays], local, where)
        if all(e.is_constant for e in dims):
            whole = (None,) * len(dims)
            if all(_identical(original, array) for array in arrays[1:]):
                return ConstantLabel(dims, whole)
            if original.dtype.kind == "i" and original.size <= SMALL_CONSTANT:
                values = self._integers([array.ravel().tolist() for array in arrays], local, where)
                return ConstantLabel(dims, whole, values)
            raise UnsupportedLayer("", f"{where}: its values change with the widths of the network")
        options: list[Sequence[int | None]] = [
            [None] if e.is_constant else self.vocabulary.candidates(length, e)
            for e, length in zip(dims, original.shape, strict=True)
        ]
        for vectors in product(*options):
            if all(
                _identical(take(original, vectors, survivors), array)
                for survivors, array in zip(self.survivors, arrays[1:], strict=True)
            ):
                return ConstantLabel(dims, tuple(vectors))
        raise UnsupportedLayer(
            "",
            f"{where} of shape {original.shape} does not follow the channels that were kept",
            next_step="prune a network without this operator",
        )


def take(array: Array, vectors: Sequence[int | None], survivors: Mapping[int, Ids] | Sequence[Ids]) -> Array:
    """`array` cut along the id vectors of its axes. `survivors`: per vector, which of its positions stay."""
    for axis, vector in enumerate(vectors):
        if vector is not None and len(survivors[vector]) != array.shape[axis]:
            array = array.take(survivors[vector], axis)
    return array


def _identical(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
