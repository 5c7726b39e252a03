"""Pruned networks whose remaining weights make up for the channels that went, built once per episode."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from amc_mobile.channels.structure import ChannelGroups, DimensionIds, Ids
from amc_mobile.channels.surgery import copied, resize
from amc_mobile.models.task import runs_channels_last
from amc_mobile.pruning.channel_choice import kept_of
from amc_mobile.pruning.gram import GramStatistics, LayerGram, as_weight, group_channels
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, Matrices, corrected, factorised
from amc_mobile.pruning.program import Program


@dataclass(frozen=True)
class Folding:
    """(convolution, batch norm) module paths that can become one layer; the same for every plan of a network.

    `channels_last`: whether the network runs in that layout; `view` on a map does not.
    """

    pairs: tuple[tuple[str, str], ...]
    channels_last: bool = True


def find_folding(model: nn.Module, example: Tensor) -> Folding:
    """All pairs where a batch norm alone reads a convolution and each is executed once.

    `example`: (N, C, H, W). Traces the network, which takes seconds: once for all plans.
    """
    program = Program(model, example.contiguous())
    means = [step.norm.mean for step in program.steps if step.norm is not None]
    modules = dict(model.named_modules())
    pairs = []
    for step in program.single_steps().values():
        if step.norm is not None and means.count(step.norm.mean) == 1:
            norm = step.norm.mean.rpartition(".")[0]
            if _can_fold(modules.get(step.layer), modules.get(norm)):
                pairs.append((step.layer, norm))
    return Folding(tuple(pairs), runs_channels_last(folded(model, Folding(tuple(pairs))), example))


@torch.no_grad()
def folded(model: nn.Module, folding: Folding | None = None) -> nn.Module:
    """A copy in evaluation mode with fewer batch norms, in channels-last layout where that works.

    `folding`: of this network or of the one it was cut from. Without it, those pairs that stand next to each other in
    an nn.Sequential: whether other batch norms follow a convolution is not visible from the module tree.
    """
    modules = dict(model.named_modules())
    memo: dict[int, Any] = {}  # what copying puts in place of a module
    folding = folding or _in_sequence(modules)
    for layer, norm in folding.pairs:
        conv, batch_norm = modules[layer], modules[norm]
        assert isinstance(conv, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d)
        memo[id(conv)], memo[id(batch_norm)] = _fused(conv, batch_norm), nn.Identity()
    clone = copied(model, memo).eval()
    layout = torch.channels_last if folding.channels_last else torch.contiguous_format
    return clone.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _in_sequence(modules: dict[str, nn.Module]) -> Folding:
    pairs = []
    for path, module in modules.items():
        if type(module) is nn.Sequential:
            prefix = f"{path}." if path else ""
            names = list(module._modules)
            for first, second in pairwise(names):
                if _can_fold(module._modules[first], module._modules[second]):
                    pairs.append((prefix + first, prefix + second))
    return Folding(tuple(pairs))


def _can_fold(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    # Subclasses may do more in their forward, such as padding or an activation.
    return type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fused = copy.copy(conv)
    fused._parameters = {"weight": weight, "bias": bias}
    return fused


class NestedSolver:
    """For a layer that reads one channel group. Factorised on first use: columns^2 x 8 bytes go to `matrices`."""

    def __init__(self, gram: LayerGram, inputs: Ids, ridge: float, matrices: Matrices) -> None:
        """`inputs`: all positions along the layer's inputs in the order in which they are added."""
        self._gram, self._ridge, self._matrices = gram, ridge, matrices
        self._columns = gram.columns(inputs)

    @cached_property
    def _factor(self) -> tuple[Tensor, Tensor]:
        """L' (upper), and Z; sets what was added to the diagonal."""
        moment = self._gram.moment[self._columns][:, self._columns]
        factor = factorised(moment, self._ridge)
        weight = self._gram.weight[self._columns]
        # A - moment is what factorising added: the ridge may have had to grow.
        self._added = float((factor[0] @ factor[0]) - moment[0, 0])
        right = self._gram.projection[self._columns] + self._added * weight
        factor = self._matrices.keep(factor)
        return factor.T, torch.linalg.solve_triangular(factor, right, upper=False)

    def relative_errors(self) -> NDArray[np.float64]:
        """(inputs + 1,): by how many inputs stay, the least of squared error and ridge penalty over the output's
        variance, behind the batch norm; 0 with all of them. One pass gives every prefix: the explained part adds up.
        """
        _, forward = self._factor
        scale = self._gram.output_scale.square()
        weight = self._gram.weight[self._columns]
        per_column = (forward.square() - self._added * weight.square()) @ scale
        explained = per_column.reshape(-1, self._gram.block).sum(1).cumsum(0)
        left = (explained[-1] - torch.cat([torch.zeros(1, dtype=torch.float64), explained])).clamp_min(0)
        return np.asarray(left.numpy() / self._gram.output_variance)

    def solve(self, inputs: int) -> Tensor:
        """(kept columns, outputs), float32, columns in their original order.

        `inputs`: how many input channels the first channels of the order occupy.
        """
        upper, forward = self._factor
        count = inputs * self._gram.block
        solved: Tensor = torch.linalg.solve_triangular(upper[:count, :count], forward[:count], upper=True)
        return solved[torch.argsort(self._columns[:count])].float()


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
