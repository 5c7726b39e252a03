"""Lays the labels of a float32 file over its quantised form.

Quantised weights cannot be told apart by their values: their scales depend on the channels that are left. But the
quantised file holds the same operators, with conversions between them and in front of weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.expression import Expression
from amc_mobile.kernels.graph import Graph, Value
from amc_mobile.kernels.labels import ConstantLabel, Labels
from amc_mobile.kernels.operator import CONVERSIONS

ABSORBED = ("Relu", "Clip")  # by the range of the quantised values
QDQ_SUFFIX = "_QuantizeLinear_Input"  # of a network's output, which is converted back
NEXT_STEP = "stay with float32 (--fp32)"


def in_order(graph: Graph, quantised: Graph) -> list[int | None]:
    """For each node of `quantised` the node of `graph` it comes from, where operators keep their order."""
    left = iter(range(len(graph.nodes)))
    partners = [None if node.operator in CONVERSIONS else next(left, None) for node in quantised.nodes]
    if next(left, None) is not None:
        raise UnsupportedLayer("", "the quantised file has fewer operators than the float32 file", next_step=NEXT_STEP)
    return partners


def by_output(graph: Graph, quantised: Graph) -> list[int | None]:
    """As `in_order`, where nodes are sorted anew but what they make keeps its name."""
    makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
    partners: list[int | None] = []
    for node in quantised.nodes:
        index = None if node.operator in CONVERSIONS else makers.get(str(node.outputs[0]).removesuffix(QDQ_SUFFIX))
        while index is not None and graph.nodes[index].operator in set(ABSORBED) - {node.operator}:
            value = graph.nodes[index].inputs[0]
            index = None if value is None else makers.get(value)
        partners.append(index)
    return partners


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
