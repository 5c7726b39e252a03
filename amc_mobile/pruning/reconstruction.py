"""Pruned networks whose remaining weights make up for the channels that went.

`Reconstructor` builds one at any plan in milliseconds, as an episode of a search needs it: every layer by itself, from
the Gram matrices of the original network. `refit` makes the final network: layer by layer in order of execution, on
what the pruned network itself computes. `prune` does it for any network without a workspace.

The nested solver: with A = X'X / rows + ridge and B = X'Y / rows + ridge W, rows in the order of importance, the
Cholesky factor of a leading block of A is the leading block of its factor L, and the forward solution Z = L^-1 B is
nested in the same way: the weights for the first n columns are L_n^-T Z_n, one triangular solve. The ridge is `ridge`
times the mean diagonal over ALL columns and holds the weights to where they are, as in `least_squares.corrected`.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.plan import PruningPlan
from amc_mobile.channels.structure import ChannelGroups, DimensionIds, Ids, Widths
from amc_mobile.channels.surgery import copied, with_tensors
from amc_mobile.channels.trace import operator_name
from amc_mobile.errors import InvalidInput, NotFinite, UnsupportedLayer
from amc_mobile.models.task import LabelledImages, runs_channels_last
from amc_mobile.pruning.channel_choice import kept_of, l1_order
from amc_mobile.pruning.gram import (
    MAX_COLUMNS,
    ROWS_PER_COLUMN,
    GramStatistics,
    LayerGram,
    as_columns,
    as_weight,
    group_channels,
    output_positions,
    read_at,
    readable_layers,
    sample_positions,
    written_at,
)
from amc_mobile.pruning.least_squares import (
    DEFAULT_RIDGE,
    SHARE,
    Matrices,
    Moments,
    WideRows,
    available_bytes,
    best_fit,
    corrected,
    factorised,
)
from amc_mobile.pruning.program import (
    Execution,
    LayerStep,
    NormStep,
    PairedExecutions,
    Program,
    batches_within,
    peak_bytes,
)

CACHE_BYTES = 256 * 2**20  # of solved weights
# Images whose values occupy this much are refitted on, but LEAST_IMAGES where they are larger: more gain nothing.
# A constant, so that a network's weights do not depend on the machine.
VALUES_BYTES = 2 * 2**30
LEAST_IMAGES = 400
MIN_NORM_SAMPLES = 1000  # values per channel under which a batch norm keeps its statistics
HELD_OUT = 0.2  # of the images, to choose each layer's ridge
SMALLEST_SCALE = 1e-6  # a batch norm with a smaller factor hides its layer's output: nothing can be fitted through it
WIDE_ROWS = 4096  # of a layer with more than MAX_COLUMNS columns: VGG-16's widest then takes 0.4 GB


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
def folded(model: nn.Module, folding: Folding) -> nn.Module:
    """A copy in evaluation mode with fewer batch norms, in channels-last layout where that works.

    `folding`: of this network or of the one it was cut from.
    """
    modules = dict(model.named_modules())
    memo: dict[int, Any] = {}  # what copying puts in place of a module
    for layer, norm in folding.pairs:
        conv, batch_norm = modules[layer], modules[norm]
        assert isinstance(conv, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d)
        memo[id(conv)], memo[id(batch_norm)] = _fused(conv, batch_norm), nn.Identity()
    clone = copied(model, memo).eval()
    layout = torch.channels_last if folding.channels_last else torch.contiguous_format
    return clone.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


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

    def __init__(self, gram: LayerGram, inputs: Ids, matrices: Matrices) -> None:
        """`inputs`: all positions along the layer's inputs in the order in which they are added."""
        self._gram, self._matrices = gram, matrices
        self._columns = gram.columns(inputs)

    @cached_property
    def _factor(self) -> tuple[Tensor, Tensor]:
        """L' (upper), and Z; sets what was added to the diagonal."""
        moment = self._gram.moment[self._columns][:, self._columns]
        factor = factorised(moment, DEFAULT_RIDGE)
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


class Reconstructor:
    """Cuts a network to any widths and refits the layers that read what was cut.

    W' = argmin |X_kept W'^T - Y|^2 with X and Y the input and output of the layer in the original network (He et al.
    2018, AMC), without intercept. `order`: each group's channels, most important first; a plan keeps the first.
    Solved weights are kept per layer and kept inputs, the least recently used dropped beyond CACHE_BYTES.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        gram: GramStatistics,
        order: Mapping[str, Ids],
    ) -> None:
        self._model, self._groups, self._gram = model, groups, gram
        self._order = {name: np.asarray(order[name]) for name in groups.names}
        self._solved: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()
        self._used_bytes = 0
        self._cuts = _Cuts(groups, self._order)
        self._matrices = gram.matrices.branch()  # one reconstructor's factors go with it
        self._nested = _nested_solvers(gram, groups, self._order, self._matrices)
        self._tensors: dict[str, Tensor] = dict(
            [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        )

    def kept(self, widths: Widths) -> dict[str, Ids]:
        """The channels that a plan of these widths, shape (groups,), keeps."""
        return kept_of(self._order, widths)

    @torch.no_grad()
    def build(self, widths: Widths) -> nn.Module:
        """A new network in evaluation mode with `widths`, shape (groups,), kept channels; shares no tensor."""
        survivors = self._cuts.survivors(widths)
        state = {}
        for name, axes in self._cuts.axes.items():
            tensor = self._tensors[name].detach()
            layer = name.removesuffix(".weight")
            if (gram := self._gram.layers.get(layer)) is not None:
                reading, writing = axes if gram.transposed else reversed(axes)
                if (inputs := survivors[reading[1]]) is not None:
                    shape = list(tensor.shape)
                    shape[reading[0]] = len(inputs)
                    tensor = as_weight(self._columns(layer, inputs), shape, transposed=gram.transposed)
                    axes = [writing]
            for axis, dimension in axes:
                positions = survivors[dimension]
                if positions is not None:
                    tensor = tensor.index_select(axis, torch.from_numpy(positions))
            # Views of cached solutions and uncut tensors must not be shared with the new network.
            state[name] = tensor.clone(memory_format=torch.contiguous_format)
        return with_tensors(self._model, ((self._tensors[name], new) for name, new in state.items())).eval()

    def group_errors(self, group: int, widths: Ids) -> NDArray[np.float64]:
        """(widths,): the sum over the layers that read a group of the squared error of their refitted outputs, over
        the variance behind their batch norms, if it alone is cut to each of `widths`; the ridge's penalty included.

        Where no layer with a Gram matrix reads the whole group: the share of its channels that goes.
        """
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
            solver = self._nested.get(name) or NestedSolver(gram, inputs, self._matrices)
            total += solver.relative_errors()[len(others) + places.shape[1] * widths]
            read = True
        return total if read else 1 - widths / info.channels

    def _columns(self, layer: str, kept_inputs: Ids) -> Tensor:
        """(kept columns, outputs), float32."""
        key = (layer, kept_inputs.tobytes())
        if (solution := self._solved.get(key)) is not None:
            self._solved.move_to_end(key)
            return solution
        if (nested := self._nested.get(layer)) is not None:
            result = nested.solve(len(kept_inputs))
        else:
            result = self._solved_alone(self._gram.layers[layer], kept_inputs)
        self._solved[key] = result
        self._used_bytes += result.nbytes
        while self._used_bytes > CACHE_BYTES and len(self._solved) > 1:
            self._used_bytes -= self._solved.popitem(last=False)[1].nbytes
        return result

    def _solved_alone(self, gram: LayerGram, kept_inputs: Ids) -> Tensor:
        columns = gram.columns(kept_inputs)
        moment = gram.moment[columns][:, columns]
        weight = gram.weight[columns]
        solved = weight + corrected(moment, gram.projection[columns] - moment @ weight, DEFAULT_RIDGE)
        return solved.float()


def _nested_solvers(
    gram: GramStatistics, groups: ChannelGroups, order: Mapping[str, Ids], matrices: Matrices
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
            solvers[name] = NestedSolver(layer, places[order[group.name]].ravel(), matrices)
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
        index: dict[bytes, int] = {}

        def index_of(ids: DimensionIds) -> int:
            key = ids.group.tobytes() + ids.position.tobytes()
            if key not in index:
                index[key] = len(self._dimensions)
                rank = np.full(len(ids), -1, dtype=np.int64)
                for group in np.unique(ids.group[ids.group >= 0]):
                    inside = ids.group == group
                    rank[inside] = ranks[group][ids.position[inside]]
                self._dimensions.append((ids.group, rank))
            return index[key]

        for name, dims in groups.parameters.items():
            self.axes[name] = [(axis, index_of(ids)) for axis, ids in enumerate(dims) if ids is not None]

    def survivors(self, widths: Widths) -> list[Ids | None]:
        """For each dimension the positions that stay, ascending; None where all do."""
        limits = np.append(widths, 1)  # group -1 is the last entry: a fixed position, of rank -1, always stays
        survivors: list[Ids | None] = []
        for group, rank in self._dimensions:
            stays = rank < limits[group]
            survivors.append(None if stays.all() else np.flatnonzero(stays))
        return survivors


@dataclass(frozen=True, eq=False)
class LayerTask:
    """A layer of the pruned network that gets new weights."""

    step: LayerStep
    target: Node  # in the original network: the sum that the layer enters last, or its own output
    residual: bool  # whether `target` is the sum
    channels: Tensor  # the original output channels that the layer still makes


@dataclass(frozen=True, eq=False)
class NormTask:
    """A batch norm of the pruned network that gets new statistics."""

    norm: NormStep
    target: Node  # in the original network: what the batch norm reads
    channels: Tensor  # the original channels that it still reads


Tasks = dict[Node, LayerTask | NormTask]


def find_tasks(original: Program, pruned: Program, groups: ChannelGroups, kept: Mapping[str, Ids]) -> Tasks:
    """By node of the pruned network, in order of execution.

    Layers are refitted where their inputs differ from the original's, unless they are executed twice or have several
    groups. Batch norms behind other layers are refreshed where their inputs differ.
    """
    counterpart = _paired(original, pruned)
    affected = _affected(original, pruned, counterpart)
    place = {node: index for index, node in enumerate(pruned.nodes)}
    layers = readable_layers(groups)
    steps, original_steps = pruned.single_steps(), original.single_steps()
    tasks: Tasks = {}
    behind_layers: set[Node] = set()
    for node in pruned.nodes:
        step = steps.get(node)
        if step is not None and step.layer in layers and step.input in affected:
            if step.norm is not None and pruned.readers[step.norm.mean] > 1:
                continue
            residual = step.other is not None and place[step.other] < place[node]
            target = original_steps[counterpart[node]].total if residual else counterpart[node]
            assert target is not None
            channels = torch.from_numpy(groups.surviving(layers[step.layer].out_ids, kept))
            tasks[node] = LayerTask(step, target, residual, channels)
            behind_layers |= {step.norm.node} if step.norm is not None else set()
        elif node in affected and node not in behind_layers and (norm := pruned.norm_of(node)) is not None:
            dimensions = groups.parameters.get(norm.mean)
            if dimensions is not None and dimensions[0] is not None and pruned.readers[norm.mean] == 1:
                source = counterpart[node].args[0]
                assert isinstance(source, Node)
                tasks[node] = NormTask(norm, source, torch.from_numpy(groups.surviving(dimensions[0], kept)))
    return tasks


def _paired(original: Program, pruned: Program) -> dict[Node, Node]:
    """The original network's node for each of the pruned one's."""
    same = [(a.op, str(a.target)) for a in original.nodes] == [(b.op, str(b.target)) for b in pruned.nodes]
    if not same:
        raise UnsupportedLayer(
            "", "the pruned network executes other operators than the original", next_step="refit is not possible"
        )
    return dict(zip(pruned.nodes, original.nodes, strict=True))


def _affected(original: Program, pruned: Program, pairs: Mapping[Node, Node]) -> set[Node]:
    """Nodes of the pruned network whose values differ from the original's."""
    affected: set[Node] = set()
    for node in pruned.nodes:
        name = pruned.names.get(node)
        if name is not None:
            differs = pruned.state[name].shape != original.state[original.names[pairs[node]]].shape
        else:
            differs = any(source in affected for source in node.all_input_nodes)
        if differs:
            affected.add(node)
    return affected


@torch.no_grad()
def refit(
    model: nn.Module,
    groups: ChannelGroups,
    kept: Mapping[str, Ids],
    images: Tensor | LabelledImages,
    *,
    start: nn.Module | None = None,
    positions: int = 20,
    seed: int = 0,
    memory_bytes: int | None = None,
    on_images: Callable[[int], None] | None = None,
) -> nn.Module:
    """A new network cut to `kept`, every layer behind a cut refitted in order of execution.

    A layer's inputs are those of the pruned network so far. Its target is the original layer's output, or, where it
    is the last to enter a sum with a shortcut, the original sum less the pruned network's own shortcut: it makes up
    for what earlier layers got wrong. Intercepts go to the bias or the running mean behind the layer. The
    statistics of a batch norm behind another layer move as those of its inputs do between the two networks.

    `images`: normalised, (N, C, H, W), or a set that is normalised batch by batch; the first of them, LEAST_IMAGES or
    more, are used. `start`: a network cut to `kept`, whose weights stay where nothing is refitted; None: the original's
    weights, cut. `memory_bytes`: for the values of all images that both networks still need, None: half of what is
    free; those that do not fit are computed again for each layer, which takes time and changes no number. `on_images`
    is given the number of images used.
    """
    pruned = copy.deepcopy(start).eval() if start is not None else surgery.apply(model, groups, kept).eval()
    batches, original_program = batches_within(model, images)
    program = Program(pruned, batches[0])
    most = max(-(-LEAST_IMAGES // batches.size), VALUES_BYTES // (2 * peak_bytes(original_program)))
    batches = batches.first(most)
    if on_images is not None:
        on_images(len(batches) * batches.size)
    tasks = find_tasks(original_program, program, groups, kept)
    waiting = Counter(task.target for task in tasks.values())
    memory_bytes = int(available_bytes() * SHARE) if memory_bytes is None else memory_bytes
    runs = PairedExecutions(original_program, program, batches, waiting, memory_bytes)
    fitter = _Fitter(runs, program, len(batches), positions, torch.Generator().manual_seed(seed))
    changed: set[str] = set()
    for node, task in tasks.items():
        if isinstance(task, LayerTask):
            changed |= fitter.fit(task)
        else:
            changed |= _refresh(runs, program, node, task)
        waiting[task.target] -= 1
        if waiting[task.target] == 0:
            runs.release(task.target)
    for name in changed:
        path, _, attribute = name.rpartition(".")
        getattr(pruned.get_submodule(path), attribute).copy_(program.state[name])
    return pruned


def prune(
    module: nn.Module,
    plan: PruningPlan | Mapping[str, int],
    example_input: Tensor,
    *,
    images: Tensor | LabelledImages | None = None,
) -> nn.Module:
    """A smaller copy of any network, which needs no workspace; `module` is left as it was.

    `plan`: a PruningPlan of this network, or channels to keep by the name of a group, as `find_groups` names them.
    Groups that are not named stay whole. Where the plan does not say which channels stay, those do whose readers have
    the largest absolute weights. `example_input`: (N, C, H, W). `images`: normalised, a few hundred, to refit the
    remaining weights on; without them the weights are only cut.
    Raises InvalidInput for plans of another network, and UnsupportedLayer.

        smaller = prune(module, {"layer1.0.conv1": 16}, torch.randn(1, 3, 224, 224))
    """
    groups = find_groups(module, example_input)
    if not isinstance(plan, PruningPlan):
        plan = groups.plan(plan)
    if plan.channels != groups.channels:
        raise InvalidInput(
            f"the plan is for the groups {dict(plan.channels)}, the network has {groups.channels}",
            next_step="give the network and the example input that the plan was made for",
        )
    by_weight = kept_of(l1_order(groups, module), plan.widths)
    kept = {name: np.asarray(indices, dtype=np.int64) for name, indices in (plan.kept_indices or {}).items()}
    kept = by_weight | kept
    return surgery.apply(module, groups, kept) if images is None else refit(module, groups, kept, images)


class _Fitter:
    def __init__(
        self,
        runs: PairedExecutions,
        program: Program,
        batches: int,
        positions: int,
        generator: torch.Generator,
    ) -> None:
        self._runs, self._program, self._batches = runs, program, batches
        self._positions, self._generator = positions, generator

    def fit(self, task: LayerTask) -> set[str]:
        """Changes the weights in the pruned program's state; returns the names of what it changed."""
        step, state = task.step, self._program.state
        weight = state[f"{step.layer}.weight"]
        current = as_columns(weight, transposed=step.is_transposed)
        columns, outputs = current.shape
        visible = torch.ones(outputs, dtype=torch.bool)
        scale = torch.ones(outputs)
        if step.norm is not None:
            scale = step.norm.scale(state)
            visible = (scale.abs() > SMALLEST_SCALE) if task.residual else visible
        kind = Moments if columns <= MAX_COLUMNS else WideRows
        parts: list[Moments] = [kind(columns, outputs) for _ in range(2)]
        for original, pruned in self._runs.at(task.target, step.node):
            rows, targets, per_image = self._rows(task, original, pruned, columns)
            residuals = targets - rows @ current
            split = max(1, round(len(rows) // per_image * (1 - HELD_OUT))) * per_image  # between images
            parts[0].add(rows[:split], residuals[:split])
            parts[1].add(rows[split:], residuals[split:])
        if not all(part.is_finite for part in parts):
            raise NotFinite(step.layer)
        change, intercept = best_fit(
            parts[0], parts[1], DEFAULT_RIDGE,
            intercept=step.bias is not None or step.norm is not None, scale=scale.double() * visible,
        )  # fmt: skip
        new_columns = current + (change * visible).to(weight.dtype)
        state[f"{step.layer}.weight"] = as_weight(new_columns, weight.shape, transposed=step.is_transposed)
        intercept = intercept.to(weight.dtype) * visible
        if step.bias is not None:
            state[step.bias] = state[step.bias] + intercept
        elif step.norm is not None:
            state[step.norm.mean] = state[step.norm.mean] - intercept
        place = step.bias or (step.norm.mean if step.norm is not None else None)
        return {f"{step.layer}.weight"} | ({place} if place else set())

    def _rows(
        self, task: LayerTask, original: Execution, pruned: Execution, columns: int
    ) -> tuple[Tensor, Tensor, int]:
        """(rows, columns) inputs of the layer, (rows, outputs) what it should give beyond its bias, rows per image."""
        step, state = task.step, self._program.state
        images = pruned.value(step.input)
        total = len(images) * self._batches
        per_image = max(self._positions, -(-ROWS_PER_COLUMN * columns // total))
        if columns > MAX_COLUMNS:
            per_image = max(1, WIDE_ROWS // total)
        drawn = sample_positions(len(images), output_positions(step.node), per_image, self._generator)
        linear = operator_name(step.node.target) == "linear"
        targets = written_at(original.value(task.target), drawn, channels_last=linear)[:, task.channels]
        if task.residual:
            assert step.other is not None
            targets = targets - written_at(pruned.value(step.other), drawn, channels_last=linear)
            if step.norm is not None:
                scale = step.norm.scale(state)
                shift = state[step.norm.bias] if step.norm.bias else torch.zeros_like(scale)
                scale = torch.where(scale.abs() > SMALLEST_SCALE, scale, 1.0)
                targets = (targets - shift) / scale + state[step.norm.mean]
        if step.bias is not None:
            targets = targets - state[step.bias]
        return read_at(step.node, images, drawn), targets, drawn.shape[1]


def _refresh(runs: PairedExecutions, program: Program, node: Node, task: NormTask) -> set[str]:
    """Moves a batch norm's mean and variance as those of its inputs on these images differ between the networks.

    Not simply the new ones: then a sample unlike the training images would change even an uncut network. Nothing
    changes where there are too few values to tell.
    """
    source, norm, state = task.norm.node.args[0], task.norm, program.state
    assert isinstance(source, Node)
    before, after = _Spread(), _Spread()
    for original, pruned in runs.at(task.target, node):
        before.add(original.value(task.target)[:, task.channels])
        after.add(pruned.value(source))
    if after.count < MIN_NORM_SAMPLES:
        return set()
    change = after.mean - before.mean
    ratio = (after.variance + norm.epsilon) / (before.variance + norm.epsilon)
    if not (change.isfinite().all() and ratio.isfinite().all()):
        raise NotFinite(norm.mean.rpartition(".")[0])
    state[norm.mean] = state[norm.mean] + change.to(state[norm.mean].dtype)
    state[norm.variance] = state[norm.variance] * ratio.to(state[norm.variance].dtype)
    return {norm.mean, norm.variance}


class _Spread:
    """Mean and variance per channel (dimension 1) over batches."""

    def __init__(self) -> None:
        self.count = 0
        self.mean, self._squares = torch.zeros(()), torch.zeros(())

    def add(self, value: Tensor) -> None:
        flat = value.transpose(0, 1).flatten(1).double()
        count, mean = flat.shape[1], flat.mean(1)
        apart = mean - self.mean
        weight = count / (self.count + count)
        self._squares = self._squares + (flat - mean[:, None]).square().sum(1) + apart**2 * self.count * weight
        self.mean, self.count = self.mean + apart * weight, self.count + count

    @property
    def variance(self) -> Tensor:
        return self._squares / self.count
