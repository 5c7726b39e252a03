"""The export template: whole models and single kernels at any plan, from one true export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import InvalidInput
from amc_mobile.kernels.kernel import Attribute, Expression, Graph, Kernel, Operator, Shape
from amc_mobile.kernels.labels import MIN_CHANNELS, Cut, Ids, Labels, Vocabulary
from amc_mobile.kernels.onnx_layout import Border

if TYPE_CHECKING:  # brings torch
    from amc_mobile.channels.groups import ChannelGroups, Layer

Widths = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class KernelSite:
    """A place in the network where a kernel runs.

    `axes`: the sums of group widths that decide its shapes, usually the input and the output channels; every size in
    the kernel is a multiple of one of them, a sum of them or constant. `group_indices`: the groups it depends on.
    `other_code_from`: axis -> the value from which on the runtime is known to run other code.
    """

    index: int
    name: str  # module path of its layer, else the operator's name and number
    operator_type: str
    nodes: tuple[int, ...]
    axes: tuple[Expression, ...]
    group_indices: tuple[int, ...]
    other_code_from: Mapping[int, int] = field(default_factory=dict)


class Template(ABC):
    """What both file formats share. `kept`: group name -> original channels that stay; others keep everything."""

    runtime: str

    def __init__(self, groups: ChannelGroups, graph: Graph, labels: Labels, vocabulary: Vocabulary) -> None:
        self.group_names = groups.names
        self.sizes: Widths = groups.sizes
        self._graph, self._labels, self._vocabulary = graph, labels, vocabulary
        self._operators: dict[int, Callable[[Sequence[int]], Operator]] = {}
        self._kernels: dict[tuple[int, ...], Kernel] = {}
        self.sites = self._find_sites(groups)

    @abstractmethod
    def units(self) -> list[list[int]]:
        """Nodes that the runtime executes as one kernel, in order of execution."""

    @abstractmethod
    def build(self, cut: Cut, nodes: Sequence[int] | None) -> bytes:
        """The file at a plan: the whole model, or only `nodes`."""

    def other_code_from(self, nodes: Sequence[int], axes: Sequence[Expression]) -> dict[int, int]:
        """Axis of a kernel -> the value from which on the runtime runs other code."""
        return {}

    @property
    def converts_layouts(self) -> bool:
        """Whether kernels cut out may convert between layouts where the whole model does not."""
        return False

    @cached_property
    def borders(self) -> tuple[Border, ...]:
        """The values whose conversion between layouts the whole model may spare its kernels; empty: not known."""
        return ()

    def model_at(self, kept: Mapping[str, Ids]) -> bytes:
        """The whole model's file at a plan, weights cut to size. Raises InvalidInput for channels that do not exist."""
        return self.build(self._cut(kept), None)

    def cut(self, site_index: int, kept: Mapping[str, Ids]) -> bytes:
        """A file with one kernel only, as it is in the whole model at that plan."""
        return self.build(self._cut(kept), self.sites[site_index].nodes)

    def cut_at_widths(self, site_index: int, widths: Widths) -> bytes:
        """A kernel at `widths`, shape (groups,): which channels stay does not change its latency."""
        kept = [np.arange(int(width), dtype=np.int64) for width in widths]
        return self.build(self._cut_of(kept), self.sites[site_index].nodes)

    def kernel_at(self, site_index: int, widths: Sequence[int] | Widths) -> Kernel:
        """The kernel of a site at `widths`, one per group."""
        site = self.sites[site_index]
        at = [int(width) for width in widths] if not isinstance(widths, np.ndarray) else widths.tolist()
        key = (site_index, *(axis.at(at) for axis in site.axes))
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = Kernel(self.runtime, tuple(self._operators[n](at) for n in site.nodes))
        return kernel

    def kernels(self, widths: Sequence[int] | Widths) -> list[Kernel]:
        return [self.kernel_at(site.index, widths) for site in self.sites]

    def _cut(self, kept: Mapping[str, Ids]) -> Cut:
        unknown = sorted(set(kept) - set(self.group_names))
        if unknown:
            raise InvalidInput(f"no channel groups {unknown[:3]}", next_step=f"the groups are {list(self.group_names)}")
        lists = []
        for name, size in zip(self.group_names, self.sizes, strict=True):
            indices = np.asarray(kept[name] if name in kept else np.arange(size), dtype=np.int64)
            if (indices[1:] <= indices[:-1]).any():
                indices = np.unique(indices)
            if len(indices) < MIN_CHANNELS or indices[0] < 0 or indices[-1] >= size:
                raise InvalidInput(
                    f"{name}: cannot keep {len(indices)} channels, up to {indices[-1:].tolist()}, of {size}",
                    next_step=f"keep at least {MIN_CHANNELS} of the channels 0 to {size - 1}",
                )
            lists.append(indices)
        return self._cut_of(lists)

    def _cut_of(self, lists: Sequence[Ids]) -> Cut:
        return Cut(self._graph, self._labels, self._vocabulary, lists)

    # Kernels ---------------------------------------------------------------------------------------------------

    def _find_sites(self, groups: ChannelGroups) -> tuple[KernelSite, ...]:
        units = self.units()
        self._operators = {node: self._operator(node) for unit in units for node in unit}
        at = self.sizes.tolist()
        kernels = [Kernel(self.runtime, tuple(self._operators[n](at) for n in nodes)) for nodes in units]
        names = _layer_names(kernels, groups.layers)
        sites = []
        for index, nodes in enumerate(units):
            axes = independent((e for node in nodes for e in self._expressions(node)), len(at))
            depends = tuple(sorted({group for axis in axes for group, _ in axis.terms}))
            kind = kernels[index].operator_type
            changes = self.other_code_from(nodes, axes)
            sites.append(KernelSite(index, names[index], kind, tuple(nodes), axes, depends, changes))
        return tuple(sites)

    def _expressions(self, index: int) -> list[Expression]:
        """Every size of a node: inputs, weights, outputs, then computed constants and attributes."""
        node, labels = self._graph.nodes[index], self._labels
        shapes = [labels.of_input(self._graph, index, slot) for slot in range(len(node.inputs))]
        shapes += [labels.shapes[value] for value in node.outputs]
        found = [e for shape in shapes if shape is not None for e in shape]
        for slot in node.constants:
            found += labels.constants[index, slot].values or ()
        for label in labels.attributes.get(index, {}).values():
            found += [label] if isinstance(label, Expression) else label
        return found

    def _operator(self, index: int) -> Callable[[Sequence[int]], Operator]:
        """The operator of a node as a function of the widths; what does not change is worked out once."""
        graph, labels = self._graph, self._labels
        node = graph.nodes[index]
        inputs = [_shape_of(labels.of_input(graph, index, slot)) for slot in range(len(node.inputs))]
        outputs = [_shape_of(labels.shapes[value]) for value in node.outputs]
        attributes: dict[str, Callable[[Sequence[int]], Attribute]] = {
            name: _always(value) for name, value in node.attributes.items()
        }
        for slot in node.constants:
            values = labels.constants[index, slot].values
            if values is not None:
                attributes[f"constant{slot}"] = _shape_of(values)
            elif graph.is_small_integer(index, slot):
                integers = tuple(int(v) for v in node.constants[slot].ravel())
                attributes[f"constant{slot}"] = _always(integers)
        for name, label in labels.attributes.get(index, {}).items():
            attributes[name] = label.at if isinstance(label, Expression) else _shape_of(label)
        constants = tuple(slot in node.constants for slot in range(len(node.inputs)))
        dtype = _type_name(graph, index)
        ordered = sorted(attributes.items())

        def at(widths: Sequence[int]) -> Operator:
            return Operator(
                name=node.operator,
                inputs=tuple(shape(widths) for shape in inputs),
                constants=constants,
                outputs=tuple(_present(shape(widths)) for shape in outputs),
                attributes=tuple((name, value(widths)) for name, value in ordered),
                dtype=dtype,
            )

        return at


def _always(value: T) -> Callable[[Sequence[int]], T]:
    return lambda widths: value


def _shape_of(label: tuple[Expression, ...] | None) -> Callable[[Sequence[int]], Shape | None]:
    if label is None:
        return _always(None)
    if all(e.is_constant for e in label):
        return _always(tuple(e.constant for e in label))
    return lambda widths: tuple(e.at(widths) if e.terms else e.constant for e in label)


def _present(shape: Shape | None) -> Shape:
    assert shape is not None  # outputs always have a shape
    return shape


def _type_name(graph: Graph, index: int) -> str:
    """The activations' type, and the weights' where it is another: "float32", "float32/int8"."""
    node = graph.nodes[index]
    data = [graph.types[v] for s, v in enumerate(node.inputs) if v is not None and s not in node.constants]
    activation = data[0] if data else graph.types[node.outputs[0]]
    weights = [str(c.dtype) for s, c in node.constants.items() if not graph.is_small_integer(index, s)]
    return activation if not weights or weights[0] == activation else f"{activation}/{weights[0]}"


def independent(expressions: Iterable[Expression], groups: int) -> tuple[Expression, ...]:
    """The first expressions that are no sums of multiples of those before them, constants aside."""
    chosen: list[Expression] = []
    rows: list[NDArray[np.int64]] = []
    for expression in dict.fromkeys(expressions):
        if expression.is_constant:
            continue
        row = expression.linear(groups)
        if np.linalg.matrix_rank(np.array([*rows, row], dtype=np.float64)) > len(rows):
            chosen.append(expression)
            rows.append(row)
    return tuple(chosen)


def _layer_names(kernels: Sequence[Kernel], layers: Sequence[Layer]) -> list[str]:
    """The module path of the first layer of equal work that no kernel before it took; else operator and number."""
    left = list(layers)
    names = []
    for index, kernel in enumerate(kernels):
        match = next((layer for layer in left if kernel.macs and _is_of(kernel, layer)), None)
        if match is not None:
            left.remove(match)
        names.append(f"{kernel.main.name.lower()}_{index}" if match is None else match.name)
    return names


def _is_of(kernel: Kernel, layer: Layer) -> bool:
    return kernel.macs == layer.macs and kernel.main.out_channels == len(layer.out_ids)
