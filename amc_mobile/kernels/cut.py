"""What a labelled graph is at one plan: shapes, attributes and constants, cut."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from amc_mobile.kernels.expression import Expression
from amc_mobile.kernels.graph import Array, Graph, Value
from amc_mobile.kernels.labels import Ids, Labels, Vocabulary, take


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
