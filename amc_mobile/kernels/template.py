"""The export template: whole models and single kernels at any plan, from one true export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.channels.ids import DimensionIds, Ids
from amc_mobile.kernels.graph import Array, Graph, Labels
from amc_mobile.kernels.kernel import Kernel, Operator
from amc_mobile.kernels.widths import Expression


@dataclass(frozen=True)
class KernelSite:
    """A place in the network where a kernel runs; its shapes depend on the plan through `axes`."""

    index: int
    name: str  # module path of its layer, else the operator's name and number
    operator_type: str
    nodes: tuple[int, ...]
    axes: tuple[Expression, ...]  # the distinct width expressions of its shapes, usually input and output channels
    group_indices: tuple[int, ...]


class PlanCutter:
    """Cuts constants for one plan; positions that survive are found once per arrangement."""

    def __init__(self, labels: Labels, kept: list[Ids]) -> None:
        self._labels = labels
        self._kept = kept
        self.widths = [len(indices) for indices in kept]
        self._surviving: dict[int, Ids] = {}

    def shape(self, dims: Sequence[Expression]) -> tuple[int, ...]:
        return tuple(e.at(self.widths) for e in dims)

    def positions(self, ids: DimensionIds) -> Ids:
        found = self._surviving.get(id(ids))
        if found is None:
            found = self._surviving[id(ids)] = ids.surviving(self._kept)
        return found

    def constant(self, node: int, slot: int, array: Array) -> Array:
        label = self._labels.constants[node, slot]
        if label.values is not None:
            return np.array([e.at(self.widths) for e in label.values], dtype=array.dtype).reshape(array.shape)
        for axis, ids in enumerate(label.ids or ()):
            if ids is not None:
                positions = self.positions(ids)
                if len(positions) != array.shape[axis]:
                    array = array.take(positions, axis)
        return array


class Template(ABC):
    """What both file formats share. `kept`: group name -> original channels that stay, sorted."""

    runtime: str

    def __init__(self, groups: ChannelGroups, graph: Graph, labels: Labels) -> None:
        self.group_names = groups.names
        self.sizes: NDArray[np.int64] = groups.sizes
        self._graph = graph
        self._labels = labels
        self._kernels: dict[tuple[int, ...], Kernel] = {}
        self.sites = self._find_sites(groups)

    @abstractmethod
    def units(self) -> list[list[int]]:
        """Nodes that the runtime executes as one kernel, in order of execution."""

    @abstractmethod
    def build(self, cutter: PlanCutter, nodes: Sequence[int] | None) -> bytes:
        """The file at a plan: the whole model, or only `nodes`."""

    def model_at(self, kept: Mapping[str, Ids]) -> bytes:
        """The whole model's file at a plan, weights cut to size."""
        return self.build(self._cutter(kept), None)

    def cut(self, site_index: int, kept: Mapping[str, Ids]) -> bytes:
        """A file with one kernel only, as it is in the whole model at that plan."""
        return self.build(self._cutter(kept), self.sites[site_index].nodes)

    def cut_at_widths(self, site_index: int, widths: NDArray[np.int64]) -> bytes:
        """A kernel at `widths`, shape (groups,): which channels stay does not change its latency."""
        kept = [np.arange(int(width), dtype=np.int64) for width in widths]
        return self.build(PlanCutter(self._labels, kept), self.sites[site_index].nodes)

    def kernel_at(self, site_index: int, widths: NDArray[np.int64]) -> Kernel:
        """The kernel of a site at `widths`, shape (groups,)."""
        site = self.sites[site_index]
        cache_key = (site_index, *(axis.at(widths) for axis in site.axes))  # type: ignore[arg-type]
        kernel = self._kernels.get(cache_key)
        if kernel is None:
            operators = tuple(self._operator(node, widths) for node in site.nodes)
            kernel = self._kernels[cache_key] = Kernel(self.runtime, operators)
        return kernel

    def kernels(self, widths: NDArray[np.int64]) -> list[Kernel]:
        return [self.kernel_at(site.index, widths) for site in self.sites]

    def _cutter(self, kept: Mapping[str, Ids]) -> PlanCutter:
        full = dict(zip(self.group_names, self.sizes, strict=True))
        lists = [np.asarray(kept.get(name, np.arange(full[name])), dtype=np.int64) for name in self.group_names]
        return PlanCutter(self._labels, lists)

    def _operator(self, index: int, widths: NDArray[np.int64]) -> Operator:
        node, labels = self._graph.nodes[index], self._labels
        at = [int(width) for width in widths]
        shapes: list[tuple[int, ...] | None] = []
        attributes = {
            key: tuple(v) if isinstance(v, list) else v.decode() if isinstance(v, bytes) else v
            for key, v in node.attributes.items()
        }
        for slot, name in enumerate(node.inputs):
            if slot in node.constants:
                label = labels.constants[index, slot]
                shapes.append(tuple(e.at(at) for e in label.dims))
                array = node.constants[slot]
                if label.values is not None:
                    attributes[f"constant {slot}"] = str([e.at(at) for e in label.values])
                elif array.dtype.kind == "i" and array.size <= 16:
                    attributes[f"constant {slot}"] = str(array.ravel().tolist())
            else:
                shapes.append(None if name is None else tuple(e.at(at) for e in labels.shapes[name]))
        for (owner, key), value in labels.attributes.items():
            if owner == index:
                attributes[key] = str([e.at(at) for e in value] if isinstance(value, tuple) else value.at(at))
        return Operator(
            name=node.name,
            inputs=tuple(shapes),
            constants=tuple(slot in node.constants for slot in range(len(node.inputs))),
            outputs=tuple(tuple(e.at(at) for e in labels.shapes[name]) for name in node.outputs),
            attributes=tuple(sorted(attributes.items())),
        )

    def _find_sites(self, groups: ChannelGroups) -> tuple[KernelSite, ...]:
        kernels, axes = [], []
        for nodes in self.units():
            kernels.append(Kernel(self.runtime, tuple(self._operator(node, self.sizes) for node in nodes)))
            axes.append(tuple(dict.fromkeys(e for node in nodes for e in self._expressions(node) if e.terms)))
        names = _layer_names(kernels, groups)
        return tuple(
            KernelSite(
                index=index,
                name=names[index],
                operator_type=kernels[index].operator_type,
                nodes=tuple(nodes),
                axes=axes[index],
                group_indices=tuple(sorted({g for e in axes[index] for g, _ in e.terms})),
            )
            for index, nodes in enumerate(self.units())
        )

    def _expressions(self, index: int) -> list[Expression]:
        node, labels = self._graph.nodes[index], self._labels
        found = [e for name in (*node.inputs, *node.outputs) if name in labels.shapes for e in labels.shapes[name]]
        for slot in node.constants:
            label = labels.constants[index, slot]
            found += [*label.dims, *(label.values or ())]
        for (owner, _), value in labels.attributes.items():
            if owner == index:
                found += list(value) if isinstance(value, tuple) else [value]
        return found


def _layer_names(kernels: Sequence[Kernel], groups: ChannelGroups) -> list[str]:
    """The layer of each kernel where the computing kernels match the network's layers one to one, in order and MACs."""
    plain = [f"{kernel.main.name.lower()}_{index}" for index, kernel in enumerate(kernels)]
    computing = [index for index, kernel in enumerate(kernels) if kernel.macs]
    if len(computing) != len(groups.layers):
        return plain
    named = list(plain)
    for index, layer in zip(computing, groups.layers, strict=True):
        inputs = 1 if layer.kind == "depthwise" else len(layer.in_ids) // layer.groups
        macs = inputs * len(layer.out_ids) * np.prod(layer.kernel_size) * np.prod(layer.out_size)
        if kernels[index].macs != macs:
            return plain
        named[index] = layer.name
    return named
