"""Names every dimension, attribute and weight of an exported graph by the channel groups it follows, and cuts by them.

Quantised weights cannot be told apart by their values: their scales depend on the channels that are left. But the
quantised file holds the same operators, with conversions between them and in front of weights.

Integers are explained by `WidthCode`. An array is accepted only when the original, cut along the id vectors of the
network's parameters, equals the array of every pruned file bit for bit. What does not decode is an error.

The network is exported as it is and again with every group pruned to a width of its own. An integer of the exported
graph then has one value per file, and the widths are chosen so that only one sum of group widths explains them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.kernel import CONVERSIONS, SMALL_CONSTANT, Array, Expression, Graph, Value, total

if TYPE_CHECKING:  # brings torch
    from amc_mobile.channels.structure import ChannelGroups


Widths = NDArray[np.int64]
MIN_CHANNELS = 2  # a convolution with one input channel is exported as another operator
MAX_TRACES = 4
ATTEMPTS = 100  # draws for each number of traces
MAX_SUMMANDS = 8  # inputs of one operator whose labels are tried as a sum


class UndecodableError(Exception):
    """No sum of group widths explains an integer."""


class AmbiguousError(UndecodableError):
    """Several expressions fit: one more trace can separate them."""


class WidthCode:
    """Explains integers. `widths`: (traces + 1, G), the original widths first; `vocabulary`: sums known to occur."""

    def __init__(self, widths: Widths, vocabulary: Iterable[Expression]) -> None:
        self.widths = widths
        single = [Expression(0, ((group, 1),)) for group in range(widths.shape[1])]
        known = (e.primitive() for e in vocabulary if not e.is_constant)
        self._bases = list(dict.fromkeys([*single, *known]))
        self._signatures = np.array([e.evaluate(widths) for e in self._bases], dtype=np.int64).reshape(-1, len(widths))
        self._explained: dict[tuple[tuple[int, ...], tuple[Expression, ...]], Expression] = {}

    @property
    def traces(self) -> int:
        return len(self.widths) - 1

    def is_unambiguous(self) -> bool:
        """No known sum has the values of another's multiple, none stays the same in all files."""
        signatures = self._signatures
        if (signatures == signatures[:, :1]).all(axis=1).any():
            return False
        # [i, j]: whether row i is a whole multiple of row j
        factors = signatures[:, None, 0] // signatures[None, :, 0]
        multiple = (signatures[None] * factors[..., None] == signatures[:, None]).all(axis=2) & (factors > 0)
        return int(multiple.sum()) == len(signatures)

    def explain(self, values: Sequence[int], local: Iterable[Expression] = ()) -> Expression:
        """The sum that has `values` (one per file). `local`: labels of the same operator's inputs.

        Tried first: multiples of known sums, multiples and sums of `local`; then those plus a constant. Raises
        UndecodableError, or AmbiguousError where explanations differ.
        """
        key = (tuple(int(v) for v in values), tuple(e for e in local if not e.is_constant))
        if key not in self._explained:
            self._explained[key] = self._explain(np.array(key[0], dtype=np.int64), list(key[1]))
        return self._explained[key]

    def _explain(self, values: Widths, local: list[Expression]) -> Expression:
        if (values == values[0]).all():
            return Expression(int(values[0]))
        sums = [
            total(chosen)
            for count in range(1, min(len(local), MAX_SUMMANDS) + 1)
            for chosen in combinations(local[:MAX_SUMMANDS], count)
        ]
        expressions = {
            self._bases[i].times(int(values[0]) // int(self._signatures[i, 0])) for i in self._dividing(values)
        }
        for expression in sums:
            signature = expression.evaluate(self.widths)
            if _multiples(signature[None], values)[0]:
                expressions.add(expression.times(int(values[0]) // int(signature[0])))
        if not expressions:
            candidates = [*sums, *(self._bases if self.traces > 1 else [])]
            for expression in candidates:
                rest = values - expression.evaluate(self.widths)
                if (rest == rest[0]).all():
                    expressions.add(expression.plus(int(rest[0])))
        if len(expressions) > 1:
            raise AmbiguousError(f"the sizes {values.tolist()} have {len(expressions)} explanations")
        if not expressions:
            raise UndecodableError(f"no channel group explains the sizes {values.tolist()}")
        return expressions.pop()

    def _dividing(self, values: Widths) -> list[int]:
        return [int(i) for i in np.flatnonzero(_multiples(self._signatures, values))]


def _multiples(signatures: Widths, values: Widths) -> NDArray[np.bool_]:
    """Of which rows of `signatures` the vector `values` is a whole multiple."""
    factors = values[0] // signatures[:, 0]
    return np.asarray((signatures * factors[:, None] == values).all(axis=1) & (factors > 0))


def choose_widths(sizes: Widths, vocabulary: Sequence[Expression], *, traces: int = 1, seed: int = 0) -> WidthCode:
    """Widths for as few traces as are unambiguous, at least `traces`. `sizes`: (G,), each above MIN_CHANNELS.

    Raises UndecodableError when more than MAX_TRACES would be needed.
    """
    rng = np.random.default_rng(seed)
    for count in range(traces, MAX_TRACES + 1):
        for _ in range(ATTEMPTS):
            widths = _draw(sizes, count, rng)
            if widths is None:
                continue
            code = WidthCode(widths, vocabulary)
            if code.is_unambiguous():
                return code
    raise UndecodableError(f"{len(sizes)} channel groups with {int(sizes.sum())} channels are too many to tell apart")


def _draw(sizes: Widths, traces: int, rng: np.random.Generator) -> Widths | None:
    """Random widths, shape (traces + 1, G), whose shares of the originals differ between groups; None if none is left.

    Equal shares would make the sizes of one group multiples of another's, as in 16 of 32 and 32 of 64.
    """
    taken: set[tuple[float, ...]] = set()
    rows = []
    for size in (int(s) for s in sizes):
        for attempt in range(40):
            # At least half stays while there is room: far from zero, fewer sums coincide.
            low = min(max(MIN_CHANNELS, size // 2), size - 1) if attempt < 10 else MIN_CHANNELS
            # The full width alone identifies nothing; among several traces it makes room for small groups.
            high = size if traces == 1 or attempt < 10 else size + 1
            row = [int(w) for w in rng.integers(low, high, traces)]
            share = tuple(w / size for w in row)
            if share not in taken and min(share) < 1:
                break
        else:
            return None
        taken.add(share)
        rows.append([size, *row])
    return np.array(rows, dtype=np.int64).reshape(len(sizes), traces + 1).T


Ids = NDArray[np.int64]


class Vocabulary:
    """The distinct id vectors of parameter dimensions, and how many of their positions survive a plan."""

    def __init__(self, groups: ChannelGroups) -> None:
        sizes = groups.sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.vectors: list[Ids] = []  # channel numbers across all groups; the last number is that of fixed channels
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


class Cut:
    """A labelled graph at one plan. `kept`: per group the channels that stay."""

    def __init__(self, graph: Graph, labels: Labels, vocabulary: Vocabulary, kept: Sequence[Ids]) -> None:
        self._graph, self._labels, self._vocabulary = graph, labels, vocabulary
        self.widths = [len(indices) for indices in kept]
        self._alive = vocabulary.alive(kept)
        self._survivors: dict[int, Ids] = {}

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(e.at(self.widths) if e.terms else e.constant for e in self._labels.shapes[value])

    def changed_attributes(self, index: int) -> dict[str, int | tuple[int, ...]]:
        """The attributes of a node that follow the widths, by name."""
        return {
            name: label.at(self.widths) if isinstance(label, Expression) else tuple(e.at(self.widths) for e in label)
            for name, label in self._labels.attributes.get(index, {}).items()
        }

    def identity(self, index: int, slot: int) -> Hashable:
        """Equal for constants that are one tensor in the original and are cut alike."""
        label = self._labels.constants[index, slot]
        return (self._graph.nodes[index].inputs[slot], label.vectors, label.values)

    def constant(self, index: int, slot: int) -> Array:
        """What a node reads at a slot: cut along its id vectors, or sizes worked out anew."""
        label = self._labels.constants[index, slot]
        array = self._graph.nodes[index].constants[slot]
        if label.values is not None:
            values = [e.at(self.widths) for e in label.values]
            return np.array(values, dtype=array.dtype).reshape(array.shape)
        for vector in label.vectors:
            self._know(vector)
        return take(array, label.vectors, self._survivors)

    def along(self, index: int, slot: int, axis: int, numbers: Array) -> Array:
        """`numbers`, one per position of a constant's `axis` (its scales, say), cut as the constant is."""
        vector = self._labels.constants[index, slot].vectors[axis]
        self._know(vector)
        return take(numbers, (vector,), self._survivors)

    def _know(self, vector: int | None) -> None:
        if vector is not None and vector not in self._survivors:
            self._survivors[vector] = np.flatnonzero(self._alive[self._vocabulary.vectors[vector]])


NEXT_STEP = "stay with float32 (--fp32)"


def overlay(labels: Labels, graph: Graph, quantised: Graph, partners: Sequence[int | None]) -> Labels:
    """Labels of `quantised` from those of `graph`. `partners`: per node of `quantised`, None for conversions.

    Raises UnsupportedLayer naming the operator where the two do not match.
    """
    return _Overlay(labels, graph, quantised, partners).run()


class _Overlay:
    def __init__(self, labels: Labels, graph: Graph, quantised: Graph, partners: Sequence[int | None]) -> None:
        self._old, self._graph, self._new, self._partners = labels, graph, quantised, partners
        self._makers = {value: index for index, node in enumerate(quantised.nodes) for value in node.outputs}
        self._labels = Labels()

    def run(self) -> Labels:
        for old, new in zip(self._graph.inputs, self._new.inputs, strict=True):
            self._labels.shapes[new] = self._old.shapes[old]
        for index, partner in enumerate(self._partners):
            if self._new.nodes[index].operator in CONVERSIONS:
                self._conversion(index)
            else:
                self._operator(index, partner)
        for index, node in enumerate(self._new.nodes):
            self._require(all(value in self._labels.shapes for value in node.outputs), index)
        return self._labels

    def _conversion(self, index: int) -> None:
        node = self._new.nodes[index]
        if node.inputs[0] in self._labels.shapes:  # an activation; weights are labelled by who reads them
            self._labels.shapes[node.outputs[0]] = self._labels.shapes[node.inputs[0]]
        for slot, array in node.constants.items():
            if slot:
                self._labels.constants[index, slot] = _whole(array.shape)

    def _operator(self, index: int, partner: int | None) -> None:
        node = self._new.nodes[index]
        self._require(partner is not None, index)
        assert partner is not None
        old = self._graph.nodes[partner]
        forms = [(n.operator, len(n.inputs), len(n.outputs)) for n in (node, old)]
        self._require(forms[0] == forms[1], index)
        for slot, value in enumerate(node.inputs):
            label = self._old.constants.get((partner, slot))
            self._require((slot in node.constants) <= (label is not None), index)
            if value is None or label is None:
                continue
            at = (index, slot) if slot in node.constants else self._conversion_of(index, value)
            array = self._new.nodes[at[0]].constants[at[1]]
            self._require(array.shape == old.constants[slot].shape, index)
            self._require(self._labels.constants.setdefault(at, label) == label, index)
            if at[0] != index:
                self._labels.shapes[value] = label.dims
                self._label_scales(at[0], label)
        for position, value in enumerate(node.outputs):
            self._require(self._new.shapes[value] == self._graph.shapes[old.outputs[position]], index)
            self._labels.shapes[value] = self._old.shapes[old.outputs[position]]
        if partner in self._old.attributes:
            self._labels.attributes[index] = self._old.attributes[partner]

    def _conversion_of(self, reader: int, value: Value) -> tuple[int, int]:
        """The node and slot of the constant that `value` is made from."""
        maker = self._makers.get(value)
        self._require(maker is not None and 0 in self._new.nodes[maker].constants, reader)
        assert maker is not None
        return maker, 0

    def _label_scales(self, index: int, label: ConstantLabel) -> None:
        """Scales and zero points that are constants of their own, one per channel of the weights."""
        node = self._new.nodes[index]
        axis = node.attributes.get("axis", 1)
        shape = node.constants[0].shape
        for slot, array in node.constants.items():
            if slot and array.shape and isinstance(axis, int) and array.shape == shape[axis : axis + 1]:
                self._labels.constants[index, slot] = ConstantLabel((label.dims[axis],), (label.vectors[axis],))

    def _require(self, fits: bool, index: int) -> None:
        if not fits:
            raise UnsupportedLayer(
                "", f"{self._new.describe(index)} is quantised in a way that is not known", next_step=NEXT_STEP
            )


def _whole(shape: tuple[int, ...]) -> ConstantLabel:
    return ConstantLabel(tuple(Expression(size) for size in shape), (None,) * len(shape))
