"""What ONNX Runtime's CPU provider converts between layouts in kernels cut out, and not in the whole model.

Where it lays images out in blocks of channels, its float convolutions work on these. A kernel cut out gets plain values
and gives plain values, so it converts at its borders; in the whole model neighbours hand each other blocks. Which of
them do depends on the widths: a convolution that reads fewer channels than a block holds wants them plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amc_mobile.device.layout import POOLS, SUMS, OnnxLayout
from amc_mobile.kernels.kernel import Expression, Graph, Node, Value

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ITEM_BYTES = 4  # only float32 is laid out in blocks
MOST_GROUPS = 2  # that a table of plans is looked up by


class Demand(NamedTuple):
    """A condition on a number of channels: at least `at_least`, and a multiple of `multiple`."""

    channels: Expression
    at_least: int = 1
    multiple: int = 1

    def is_met(self, widths: Widths) -> Flags:
        """(N, groups) -> (N,)."""
        count = self.channels.evaluate(widths)
        return np.asarray((count >= self.at_least) & (count % self.multiple == 0))


Demands = frozenset[Demand] | None  # all must be met; None: never
ALWAYS: frozenset[Demand] = frozenset()


@dataclass(frozen=True, eq=False)
class Border:
    """A value that kernels read or make, and what its layout demands.

    `axes`: the sums of group widths that decide what is spared, `group_indices`: the groups in them. Where these are
    more than MOST_GROUPS, only the number of channels follows the plan: what is converted is taken as in the original.
    """

    block: int  # channels
    channels: Expression
    bytes_per_channel: int
    sizes: Widths  # (groups,), of the original
    is_output: bool
    given: Demands  # in blocks, in the whole model
    given_alone: Demands  # by its kernel cut out
    taken: tuple[Demands, ...]  # in blocks, per reading node in the whole model
    taken_alone: tuple[Demands, ...]  # per reading kernel cut out

    @property
    def group_indices(self) -> tuple[int, ...]:
        demands = [
            one for found in (self.given, self.given_alone, *self.taken, *self.taken_alone) for one in found or ()
        ]
        expressions = [self.channels, *(demand.channels for demand in demands)]
        return tuple(sorted({group for expression in expressions for group, _ in expression.terms}))

    @property
    def axes(self) -> tuple[Expression, ...]:
        groups = self.group_indices
        if len(groups) > MOST_GROUPS:
            return () if self.channels.is_constant else (self.channels,)
        return tuple(Expression(0, ((group, 1),)) for group in groups)

    def spared_mb(self, values: Floats) -> Floats:
        """(N, axes) -> (N,): megabytes that kernels cut out convert and the whole model does not."""
        widths = np.tile(self.sizes, (len(values), 1))
        if len(self.group_indices) > MOST_GROUPS:
            channels = values[:, 0] if values.shape[1] else np.full(len(values), self.channels.constant)
        else:
            widths[:, list(self.group_indices)] = values
            channels = self.channels.evaluate(widths)
        filled = np.ceil(channels / self.block) * self.block
        return np.asarray(self._conversions_spared(widths) * filled * (self.bytes_per_channel / 1e6))

    def _conversions_spared(self, widths: Widths) -> Widths:
        nobody = np.zeros((1, len(widths)), dtype=bool)
        takes = np.array([_are_met(demands, widths) for demands in self.taken]).reshape(-1, len(widths))
        given = _are_met(self.given, widths)
        wanted_plain = np.concatenate([nobody | self.is_output, ~takes]).any(axis=0)
        wanted_in_blocks = np.concatenate([nobody, takes]).any(axis=0)
        alone = [_are_met(demands, widths) for demands in (self.given_alone, *self.taken_alone)]
        in_whole = np.where(given, wanted_plain, wanted_in_blocks)
        return np.asarray(np.sum(alone, axis=0, dtype=np.int64) - in_whole)


def _are_met(demands: Demands, widths: Widths) -> Flags:
    met = np.full(len(widths), demands is not None)
    for demand in demands or ():
        met &= demand.is_met(widths)
    return met


class Layouts:
    """The layouts of a float graph's images on a device that lays them out in blocks."""

    def __init__(
        self,
        graph: Graph,
        shapes: Mapping[Value, tuple[Expression, ...]],
        units: Sequence[Sequence[int]],
        sizes: Widths,
        layout: OnnxLayout,
    ) -> None:
        self._graph, self._shapes, self._sizes, self._layout = graph, shapes, sizes, layout
        self._units = units
        self._unit_of = {node: place for place, unit in enumerate(units) for node in unit}
        self._makers = {value: index for index, node in enumerate(graph.nodes) for value in node.outputs}
        self._given: dict[Value, Demands] = dict.fromkeys(graph.inputs)
        self._taken: list[Demands] = []  # per node

    def borders(self) -> tuple[Border, ...]:
        """Every image that crosses the border of a kernel where something may be spared."""
        for index, node in enumerate(self._graph.nodes):
            taken, given = self._demands(index, node)
            self._taken.append(taken)
            self._given |= dict.fromkeys(node.outputs, given)
        every = [self._border(value) for value in (*self._graph.inputs, *self._makers) if self._is_image(value)]
        return tuple(border for border in every if border is not None)

    def _is_image(self, value: Value) -> bool:
        return len(self._graph.shapes[value]) == 4 and self._graph.types[value] == "float32"

    def _border(self, value: Value) -> Border | None:
        maker = self._makers.get(value)
        readers = self._readers(value)
        kernels = dict.fromkeys(self._unit_of[reader] for reader in readers)
        is_output = value in self._graph.outputs
        if not is_output and maker is not None and list(kernels) == [self._unit_of[maker]]:
            return None  # stays within its kernel
        alone = [next((self._alone(r)[0] for r in readers if self._unit_of[r] == kernel), None) for kernel in kernels]
        made = [] if maker is None else [self._alone(node)[1] for node in self._units[self._unit_of[maker]]]
        given_alone = next((demands for demands in made if demands is not None), None)
        channels, *others = (self._shapes[value][axis] for axis in (1, 0, 2, 3))
        if given_alone is None and not any(demands is not None for demands in (*alone, self._given[value])):
            return None
        return Border(
            block=self._layout.block,
            channels=channels,
            bytes_per_channel=ITEM_BYTES * math.prod(size.at(self._sizes.tolist()) for size in others),
            sizes=self._sizes,
            is_output=is_output,
            given=self._given[value],
            given_alone=given_alone,
            taken=tuple(self._taken[reader] for reader in readers),
            taken_alone=tuple(alone),
        )

    def _readers(self, value: Value) -> list[int]:
        """The nodes that read a value, each once; a convolution reads what is padded for it."""
        readers = list[int]()
        for index in dict.fromkeys(self._graph.consumers().get(value, [])):
            node = self._graph.nodes[index]
            into = self._graph.consumers().get(node.outputs[0], [])
            if node.operator == "Pad" and into and self._unit_of[into[0]] == self._unit_of[index]:
                readers += into
            else:
                readers.append(index)
        return readers

    def _alone(self, index: int) -> tuple[Demands, Demands]:
        """What a node takes and gives in blocks where everything around it is plain."""
        node = self._graph.nodes[index]
        images = [value for value in _data(node) if self._is_image(value)]
        if not images or not self._is_image(node.outputs[0]):
            return None, None
        if node.operator == "Conv":
            return self._of_convolution(node)
        if node.operator in POOLS and (multiple := self._layout.part_multiple(node.operator)):
            whole = frozenset({Demand(self._shapes[images[0]][1], multiple=multiple)})
            return whole, whole
        return None, None

    def _of_convolution(self, node: Node) -> tuple[Demands, Demands]:
        weight, groups = node.constants.get(1), int(str(node.attributes.get("group", 1)))
        if weight is None:
            return None, None
        layout, (made, read) = self._layout, weight.shape[:2]
        if groups == 1:
            # The original decides: plans keep to the multiples that it has.
            if read >= layout.dense_from and not _fits(read, layout.dense_multiple):
                return None, None
            return frozenset({Demand(self._shapes[_data(node)[0]][1], at_least=layout.dense_from)}), ALWAYS
        if (read, made) == (1, groups):
            fits = _fits(made, layout.depthwise_multiple)
        else:
            fits = _fits(read, layout.grouped_multiple) and _fits(made // groups, layout.grouped_multiple)
        return (ALWAYS, ALWAYS) if fits else (None, None)

    def _demands(self, index: int, node: Node) -> tuple[Demands, Demands]:
        """What a node takes and gives in blocks in the whole model."""
        alone = self._alone(index)
        if alone[1] is not None:
            return alone
        data = _data(node)
        layouts = [self._given.get(value) for value in data]
        if not data or any(layout is None for layout in layouts):
            return None, None
        every = ALWAYS.union(*(layout or () for layout in layouts))
        maker = self._makers.get(data[0], index)
        fused = maker != index and self._unit_of[maker] == self._unit_of[index] and len(data) == 1
        if node.operator == "Concat":
            if not self._layout.concat_multiple:
                return None, None
            every |= {Demand(self._shapes[value][1], multiple=self._layout.concat_multiple) for value in data}
        elif node.operator in SUMS and not node.constants:
            alike = all(self._shapes[value] == self._shapes[data[0]] for value in data)
            if not alike or node.operator not in self._layout.on_blocks:
                return None, None
        elif not fused and (node.operator in SUMS or node.operator not in self._layout.on_blocks):
            return None, None
        return (every, every) if self._is_image(node.outputs[0]) else (None, None)


def _fits(channels: int, multiple: int) -> bool:
    return multiple > 0 and channels % multiple == 0


def _data(node: Node) -> list[Value]:
    return [value for slot, value in enumerate(node.inputs) if value is not None and slot not in node.constants]
