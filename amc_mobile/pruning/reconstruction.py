"""Pruned networks whose remaining weights make up for the channels that went, built once per episode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.ids import DimensionIds, Ids
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.channels.surgery import copied, resize
from amc_mobile.pruning.gram import GramStatistics, LayerGram, group_channels
from amc_mobile.pruning.importance import kept_of
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, corrected
from amc_mobile.pruning.matrices import Matrices
from amc_mobile.pruning.nested import NestedSolver
from amc_mobile.pruning.rows import as_weight

Widths = NDArray[np.int64]
CACHE_BYTES = 256 * 2**20


class Reconstructor:
    """Cuts a network to any widths and refits the layers that read what was cut.

    W' = argmin |X_kept W'^T - Y|^2 with X and Y the input and output of the layer in the original network (He et al.
    2018, AMC), without intercept. `order`: each group's channels, most important first; a plan keeps the first.
    Solved weights are kept per layer and kept inputs, the least recently used dropped beyond `cache_bytes`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        gram: GramStatistics,
        order: Mapping[str, Ids],
        *,
        ridge: float = DEFAULT_RIDGE,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._model, self._groups, self._gram, self._ridge = model, groups, gram, ridge
        self._order = {name: np.asarray(order[name]) for name in groups.names}
        self._solved: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()
        self._errors: dict[tuple[str, bytes], float] = {}
        self._cache_bytes, self._used_bytes = cache_bytes, 0
        self._cuts = _Cuts(groups, self._order)
        self._matrices = gram.matrices.branch()  # one reconstructor's factors go with it
        self._nested = _nested_solvers(gram, groups, self._order, ridge, self._matrices)
        modules = dict(model.named_modules())
        self._tensors: dict[str, Tensor] = {
            f"{path}.{name}" if path else name: tensor
            for path, module in modules.items()
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        }

    @property
    def sizes(self) -> Widths:
        """(groups,): the original channels."""
        return self._groups.sizes

    def kept(self, widths: Widths) -> dict[str, Ids]:
        """The channels that a plan of these widths, shape (groups,), keeps."""
        return kept_of(self._order, widths)

    @torch.no_grad()
    def build(self, widths: Widths, *, reconstruct: bool = True) -> nn.Module:
        """A new network in evaluation mode with `widths`, shape (groups,), kept channels; shares no tensor.

        Without `reconstruct` the weights are only cut.
        """
        survivors = self._cuts.survivors(widths)
        state = {}
        for name, axes in self._cuts.axes.items():
            tensor = self._tensors[name].detach()
            layer = name.removesuffix(".weight")
            if reconstruct and (gram := self._gram.layers.get(layer)) is not None:
                reading, writing = axes if gram.transposed else reversed(axes)
                if (inputs := survivors[reading[1]]) is not None:
                    tensor = self._solution(gram, layer, inputs, tensor.shape)
                    axes = [writing]
            for axis, dimension in axes:
                positions = survivors[dimension]
                if positions is not None:
                    tensor = tensor.index_select(axis, torch.from_numpy(positions))
            # Views of cached solutions and uncut tensors must not be shared with the new network.
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
        return _assembled(self._model, self._tensors, state)

    @torch.no_grad()
    def relative_error(self, layer: str, kept_inputs: Ids) -> float:
        """Squared error of a layer's refitted output over the variance of its output, behind its batch norm.

        `kept_inputs`: positions along its inputs. 0 for layers without a Gram matrix.
        """
        gram = self._gram.layers.get(layer)
        if gram is None or len(kept_inputs) == len(gram.in_ids):
            return 0.0
        key = (layer, kept_inputs.tobytes())
        if key not in self._errors:
            residual = gram.weight.clone()
            residual[gram.columns(kept_inputs)] -= self._columns(layer, kept_inputs).double()
            squares = (residual * (gram.moment @ residual)).sum(0) * gram.output_scale**2
            self._errors[key] = float(squares.sum()) / gram.output_variance
        return self._errors[key]

    def group_error(self, group: int, width: int) -> float:
        """The sum of relative errors of the layers that read a group, if it alone is cut to `width` channels."""
        total = 0.0
        chosen = np.sort(self._order[self._groups.names[group]][:width])
        for name in self._groups.groups[group].consumers:
            if (gram := self._gram.layers.get(name)) is not None:
                stays = (gram.in_ids.group != group) | np.isin(gram.in_ids.position, chosen)
                total += self.relative_error(name, np.flatnonzero(stays).astype(np.int64))
        return total

    def group_errors(self, group: int, widths: Ids) -> NDArray[np.float64]:
        """(widths,): about `group_error` for each of `widths`, with the ridge's penalty in it; every width at the price
        of one. Where no layer with a Gram matrix reads the whole group: the share of its channels that goes."""
        info = self._groups.groups[group]
        total = np.zeros(len(widths))
        read = False
        for name in info.consumers:
            if (gram := self._gram.layers.get(name)) is None:
                continue
            places = group_channels(gram.in_ids, group, info.channels)
            if places is None:
                continue
            others = np.flatnonzero(gram.in_ids.group != group)
            inputs = np.append(others, places[self._order[info.name]])
            solver = self._nested.get(name) or NestedSolver(gram, inputs, self._ridge, self._matrices)
            total += solver.relative_errors()[len(others) + places.shape[1] * widths]
            read = True
        return total if read else 1 - widths / info.channels

    def _solution(self, gram: LayerGram, layer: str, kept_inputs: Ids, shape: torch.Size) -> Tensor:
        kept = list(shape)
        kept[0 if gram.transposed else 1] = len(kept_inputs)
        return as_weight(self._columns(layer, kept_inputs), kept, transposed=gram.transposed)

    def _columns(self, layer: str, kept_inputs: Ids) -> Tensor:
        """(kept columns, outputs), float32."""
        key = (layer, kept_inputs.tobytes())
        if (known := self._solved.get(key)) is not None:
            self._solved.move_to_end(key)
            return known
        if (nested := self._nested.get(layer)) is not None:
            result = nested.solve(len(kept_inputs))
        else:
            result = self._solved_alone(self._gram.layers[layer], kept_inputs)
        self._solved[key] = result
        self._used_bytes += result.nbytes
        while self._used_bytes > self._cache_bytes and len(self._solved) > 1:
            self._used_bytes -= self._solved.popitem(last=False)[1].nbytes
        return result

    def _solved_alone(self, gram: LayerGram, kept_inputs: Ids) -> Tensor:
        columns = gram.columns(kept_inputs)
        moment = gram.moment[columns][:, columns]
        weight = gram.weight[columns]
        solved = weight + corrected(moment, gram.projection[columns] - moment @ weight, self._ridge)
        return solved.float()


def _nested_solvers(
    gram: GramStatistics, groups: ChannelGroups, order: Mapping[str, Ids], ridge: float, matrices: Matrices
) -> dict[str, NestedSolver]:
    """For the layers that read one group only: whatever a plan keeps there is the start of that group's order."""
    solvers = {}
    for name, layer in gram.layers.items():
        read = np.unique(layer.in_ids.group)
        if len(read) != 1 or read[0] < 0:
            continue
        group = groups.groups[read[0]]
        places = group_channels(layer.in_ids, int(read[0]), group.channels)
        if places is not None:
            solvers[name] = NestedSolver(layer, places[order[group.name]].ravel(), ridge, matrices)
    return solvers


class _Cuts:
    """Which positions stay along each dimension; equal dimensions are worked out once."""

    def __init__(self, groups: ChannelGroups, order: Mapping[str, Ids]) -> None:
        ranks = []
        for name in groups.names:
            rank = np.empty(len(order[name]), dtype=np.int64)
            rank[order[name]] = np.arange(len(rank))
            ranks.append(rank)
        self._sizes = groups.sizes
        self._dimensions: list[tuple[Ids, Ids]] = []  # the group of each position, its rank in the group's order
        self.axes: dict[str, list[tuple[int, int]]] = {}  # by parameter: (axis, index of the dimension)
        known: dict[bytes, int] = {}

        def index_of(ids: DimensionIds) -> int:
            key = ids.group.tobytes() + ids.position.tobytes()
            if key not in known:
                known[key] = len(self._dimensions)
                rank = np.full(len(ids), -1, dtype=np.int64)
                for group in np.unique(ids.group[ids.group >= 0]):
                    inside = ids.group == group
                    rank[inside] = ranks[group][ids.position[inside]]
                self._dimensions.append((ids.group, rank))
            return known[key]

        for name, dims in groups.parameters.items():
            self.axes[name] = [(axis, index_of(ids)) for axis, ids in enumerate(dims) if ids is not None]

    def survivors(self, widths: Widths) -> list[Ids | None]:
        """For each dimension the positions that stay, ascending; None where all do."""
        limits = np.append(widths, 1)  # group -1 is the last entry: a fixed position, of rank -1, always stays
        found: list[Ids | None] = []
        for group, rank in self._dimensions:
            stays = rank < limits[group]
            found.append(None if stays.all() else np.flatnonzero(stays))
        return found


def _assembled(model: nn.Module, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` in evaluation mode with the tensors of `state` in place of its own."""
    memo: dict[int, Any] = {}
    for name, tensor in state.items():
        original = tensors[name]
        if isinstance(original, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=original.requires_grad)
        memo[id(original)] = tensor
    built = copied(model, memo).eval()
    for module in built.modules():
        resize(module)
    return built
