"""What tracing a network yields: channel groups, layers, where parameters hold which channels, what plans cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.plan import PruningPlan
from amc_mobile.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

Ids = NDArray[np.int64]
Widths = NDArray[np.int64]  # kept channels, (..., groups)
Costs = NDArray[np.float64]
FIXED = 0


class ChannelIds:
    """Union-find over channel ids; the smallest id of a class is its root, so that FIXED stays FIXED."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def fresh(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def unite(self, a: Ids | int, b: Ids | int) -> None:
        """Unites pairwise; the arrays are broadcast against each other."""
        left, right = np.broadcast_arrays(np.asarray(a), np.asarray(b))
        if not left.size:
            return
        for a_id, b_id in np.unique(np.stack([left.ravel(), right.ravel()], 1), axis=0):
            first, second = self.root(int(a_id)), self.root(int(b_id))
            if first != second:
                self._parent[max(first, second)] = min(first, second)

    def roots(self) -> Ids:
        """The root of every id, shape (ids,)."""
        return np.array([self.root(channel) for channel in range(len(self._parent))], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DimensionIds:
    """Where the channels along one dimension come from.

    `group`: shape (n,), the index of the channel group, -1 for positions that stay; `position`: shape (n,), the
    channel's index inside its group.
    """

    group: Ids
    position: Ids

    def __len__(self) -> int:
        return len(self.group)

    @property
    def is_fixed(self) -> bool:
        return bool((self.group < 0).all())

    def surviving(self, kept: list[Ids]) -> Ids:
        """Positions that stay, ascending, when group g keeps the channels `kept[g]`."""
        stays = self.group < 0
        for index in np.unique(self.group[self.group >= 0]):
            inside = self.group == index
            stays[inside] = np.isin(self.position[inside], kept[index])
        return np.flatnonzero(stays).astype(np.int64)

    def expression(self, groups: int) -> tuple[int, NDArray[np.int64]]:
        """(constant, factor per group): the number of surviving positions as a sum of group widths."""
        factors = np.zeros(groups, dtype=np.int64)
        for index in np.unique(self.group[self.group >= 0]):
            inside = self.position[self.group == index]
            factors[index] = len(inside) // (int(inside.max()) + 1)
        return int((self.group < 0).sum()), factors


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that layers share. `producers` make them, `consumers` read them; both are module paths."""

    name: str  # its first producer
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class KeptGroup:
    """Channels that cannot be cut, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Layer:
    """One execution of a convolution or linear layer. Sizes are (height, width) in the unpruned network.

    A 1-D convolution has height 1. A linear layer that reads (N, H, W, F) or (N, T, F) has the sizes (H, W) or (1, T),
    otherwise (1, 1). `positions`: how often the weight
    is applied for one image: at every position of the output (of a transposed convolution: of the input), also where
    the network folds space into the batch.
    """

    name: str  # module path; a module that is called twice has two layers of the same name
    kind: str  # "conv", "depthwise", "grouped", "transposed" or "linear"
    in_ids: DimensionIds
    out_ids: DimensionIds
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    out_size: tuple[int, int]
    positions: int

    @property
    def macs_per_channel_pair(self) -> int:
        """Multiply-accumulates of one image for one input and one output channel."""
        return self.kernel_size[0] * self.kernel_size[1] * self.positions

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image in the unpruned network, biases left out."""
        return self.macs_per_channel_pair * len(self.out_ids) * (len(self.in_ids) // self.groups)


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The groups in order of first use, and where every parameter holds their channels.

    `parameters`: per parameter or buffer that holds channels, the channels along each of its dimensions (None for
    dimensions without, such as a kernel's height). `layers`: in order of execution. `input_shape`: (N, C, H, W).
    `other_macs`: multiply-accumulates of one image outside the layers, such as the products of attention. Their
    channels stay, so that they are the same at every plan.
    """

    groups: tuple[ChannelGroup, ...]
    kept_groups: tuple[KeptGroup, ...]
    parameters: Mapping[str, tuple[DimensionIds | None, ...]]
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    other_macs: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def channels(self) -> dict[str, int]:
        return {group.name: group.channels for group in self.groups}

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Shape (groups,): the original widths."""
        return np.array([group.channels for group in self.groups], dtype=np.int64)

    @property
    def kinds(self) -> dict[str, str]:
        """By group: "residual" where several layers write it, "depthwise" where one filters each channel, else ""."""
        filtered = {int(i) for la in self.layers if la.kind == "depthwise" for i in np.unique(la.in_ids.group)}
        return {
            group.name: "residual" if len(group.producers) > 1 else "depthwise" if index in filtered else ""
            for index, group in enumerate(self.groups)
        }

    def plan(self, kept: Mapping[str, int]) -> PruningPlan:
        """A plan written by hand: channels kept by group name; groups that are not named stay whole.

        Raises InvalidInput for an unknown group and for counts that are out of range.
        """
        self._require(kept)
        return PruningPlan(self.channels, {**self.channels, **kept})

    def _require(self, names: Iterable[str]) -> None:
        if unknown := sorted(set(names) - set(self.names)):
            raise InvalidInput(
                f"no channel group is called {unknown[0]!r}", next_step=f"groups: {', '.join(self.names)}"
            )

    def kept_lists(self, kept: Mapping[str, Ids]) -> list[Ids]:
        """`kept` in group order; groups that are not named keep everything.

        Raises InvalidInput for an unknown group and for channels that are not sorted, unique and in range.
        """
        self._require(kept)
        lists = []
        for group in self.groups:
            chosen = np.asarray(kept.get(group.name, np.arange(group.channels)), dtype=np.int64)
            in_range = len(chosen) and chosen[0] >= 0 and chosen[-1] < group.channels
            if not in_range or not (np.diff(chosen) > 0).all():
                raise InvalidInput(
                    f"{group.name}: kept channels must be sorted, unique and below {group.channels}, not {chosen}"
                )
            lists.append(chosen)
        return lists

    def surviving(self, ids: DimensionIds, kept: Mapping[str, Ids]) -> Ids:
        """The original positions of a dimension that stay, ascending."""
        return ids.surviving(self.kept_lists(kept))


class CostModel:
    """MACs and parameters of the whole network at any plan, as arithmetic on `widths`: (..., groups)."""

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        count = len(groups.groups)
        layers = groups.layers
        self._other_macs = groups.other_macs
        self._macs = _Products(
            # A grouped convolution reads only its share of the input channels.
            np.array(
                [layer.macs_per_channel_pair / (layer.groups if layer.kind == "grouped" else 1) for layer in layers]
            ),
            [layer.out_ids for layer in layers],
            [None if layer.kind == "depthwise" else layer.in_ids for layer in layers],
            count,
        )
        trained = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        shapes = {name: shape for name, shape in trained.items() if name in groups.parameters}
        self._fixed_parameters = float(sum(np.prod(shape) for name, shape in trained.items() if name not in shapes))
        channels = [[ids for ids in groups.parameters[name] if ids is not None] for name in shapes]
        rest = [
            np.prod([n for n, ids in zip(shape, groups.parameters[name], strict=True) if ids is None])
            for name, shape in shapes.items()
        ]
        first, second = [ids[0] for ids in channels], [ids[1] if len(ids) > 1 else None for ids in channels]
        self._sizes = _Products(np.array(rest, dtype=np.float64), first, second, count)

    def macs(self, widths: Widths) -> Costs:
        """(...): multiply-accumulates of one image in the whole network; batch normalisation is folded away.

        Products of two activations count as well, as they do in the kernels of the exported file.
        """
        return np.asarray(self._macs(widths).sum(axis=-1) + self._other_macs)

    def parameters(self, widths: Widths) -> Costs:
        """(...): trained parameters, batch-norm scales and shifts included."""
        return np.asarray(self._sizes(widths).sum(axis=-1) + self._fixed_parameters)


class _Products:
    """Per item a constant times the surviving positions of one or two dimensions. Exact up to 2**53."""

    def __init__(
        self,
        constants: Costs,
        first: Sequence[DimensionIds | None],
        second: Sequence[DimensionIds | None],
        groups: int,
    ) -> None:
        self._constants = constants
        self._dimensions = [_linear_forms(ids, groups) for ids in (first, second)]

    def __call__(self, widths: Widths) -> Costs:
        result = self._constants
        for offsets, factors in self._dimensions:
            result = result * (offsets + np.asarray(widths, dtype=np.float64) @ factors)
        return result


def _linear_forms(dimensions: Sequence[DimensionIds | None], groups: int) -> tuple[Costs, Costs]:
    """Offsets (items,) and factors (groups, items) that give each dimension's length; 1 for None."""
    offsets = np.ones(len(dimensions))
    factors = np.zeros((groups, len(dimensions)))
    for item, ids in enumerate(dimensions):
        if ids is not None:
            offsets[item], factors[:, item] = ids.expression(groups)
    return offsets, factors
