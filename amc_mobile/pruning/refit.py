"""The final network's weights: refitted layer by layer on what the pruned network itself computes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.plan import PruningPlan
from amc_mobile.channels.structure import ChannelGroups, Ids
from amc_mobile.channels.trace import operator_name
from amc_mobile.errors import InvalidInput, NotFinite, UnsupportedLayer
from amc_mobile.models.task import LabelledImages
from amc_mobile.pruning.channel_choice import kept_of, l1_order
from amc_mobile.pruning.gram import (
    ACTIVATION_BYTES,
    MAX_COLUMNS,
    ROWS_PER_COLUMN,
    as_columns,
    as_weight,
    output_positions,
    read_at,
    readable_layers,
    sample_positions,
    written_at,
)
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, SHARE, Moments, WideRows, available_bytes, best_fit
from amc_mobile.pruning.program import LayerStep, NormStep, Program, Run, Runs, batches_within, peak_bytes


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
    found: set[Node] = set()
    for node in pruned.nodes:
        name = pruned.names.get(node)
        if name is not None:
            differs = pruned.state[name].shape != original.state[original.names[pairs[node]]].shape
        else:
            differs = any(source in found for source in node.all_input_nodes)
        if differs:
            found.add(node)
    return found


# Images whose values occupy this much are refitted on, but LEAST_IMAGES where they are larger: more gain nothing.
# A constant, so that a network's weights do not depend on the machine.
VALUES_BYTES = 2 * 2**30
LEAST_IMAGES = 400
MIN_NORM_SAMPLES = 1000  # values per channel under which a batch norm keeps its statistics
HELD_OUT = 0.2  # of the images, to choose each layer's ridge
SMALLEST_SCALE = 1e-6  # a batch norm with a smaller factor hides its layer's output: nothing can be fitted through it
WIDE_ROWS = 4096  # of a layer with more than MAX_COLUMNS columns: VGG-16's widest then takes 0.4 GB


@torch.no_grad()
def refit(
    model: nn.Module,
    groups: ChannelGroups,
    kept: Mapping[str, Ids],
    images: Tensor | LabelledImages,
    *,
    start: nn.Module | None = None,
    positions: int = 20,
    ridge: float = DEFAULT_RIDGE,
    seed: int = 0,
    batch_size: int = 100,
    memory_bytes: int | None = None,
    on_images: Callable[[int], None] | None = None,
    on_layer: Callable[[str], None] | None = None,
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
    is given the number of images used, `on_layer` each layer's name before it is refitted.
    """
    pruned = copy.deepcopy(start).eval() if start is not None else surgery.apply(model, groups, kept).eval()
    batches, original_program = batches_within(model, images, batch_size, ACTIVATION_BYTES)
    program = Program(pruned, batches[0])
    most = max(-(-LEAST_IMAGES // batches.size), VALUES_BYTES // (2 * peak_bytes(original_program)))
    batches = batches.first(most)
    if on_images is not None:
        on_images(len(batches) * batches.size)
    tasks = find_tasks(original_program, program, groups, kept)
    waiting = Counter(task.target for task in tasks.values())
    memory_bytes = int(available_bytes() * SHARE) if memory_bytes is None else memory_bytes
    runs = Runs(original_program, program, batches, waiting, memory_bytes)
    fitter = _Fitter(runs, program, len(batches), positions, ridge, torch.Generator().manual_seed(seed))
    changed: set[str] = set()
    for node, task in tasks.items():
        if isinstance(task, LayerTask):
            if on_layer is not None:
                on_layer(task.step.layer)
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
        self, runs: Runs, program: Program, batches: int, positions: int, ridge: float, generator: torch.Generator
    ) -> None:
        self._runs, self._program, self._batches = runs, program, batches
        self._positions, self._ridge, self._generator = positions, ridge, generator

    def fit(self, task: LayerTask) -> set[str]:
        """Changes the weights in the pruned program's state; returns the names of what it changed."""
        step, state = task.step, self._program.state
        weight = state[f"{step.layer}.weight"]
        current = as_columns(weight, transposed=step.is_transposed)
        columns, outputs = current.shape
        visible = torch.ones(outputs, dtype=torch.bool)
        scale = torch.ones(outputs)
        if step.norm is not None:
            scale = _scale(state, step.norm)
            visible = (scale.abs() > SMALLEST_SCALE) if task.residual else visible
        kind = Moments if columns <= MAX_COLUMNS else WideRows
        parts: list[Moments] = [kind(columns, outputs) for _ in range(2)]
        for original, pruned in self._runs.at(task.target, step.node):
            rows, wanted, per_image = self._rows(task, original, pruned, columns)
            residuals = wanted - rows @ current
            split = max(1, round(len(rows) // per_image * (1 - HELD_OUT))) * per_image  # between images
            parts[0].add(rows[:split], residuals[:split])
            parts[1].add(rows[split:], residuals[split:])
        if not all(part.is_finite for part in parts):
            raise NotFinite(step.layer)
        change, intercept = best_fit(
            parts[0], parts[1], self._ridge,
            intercept=step.bias is not None or step.norm is not None, scale=scale.double() * visible,
        )  # fmt: skip
        wanted_columns = current + (change * visible).to(weight.dtype)
        state[f"{step.layer}.weight"] = as_weight(wanted_columns, weight.shape, transposed=step.is_transposed)
        intercept = intercept.to(weight.dtype) * visible
        if step.bias is not None:
            state[step.bias] = state[step.bias] + intercept
        elif step.norm is not None:
            state[step.norm.mean] = state[step.norm.mean] - intercept
        place = step.bias or (step.norm.mean if step.norm is not None else None)
        return {f"{step.layer}.weight"} | ({place} if place else set())

    def _rows(self, task: LayerTask, original: Run, pruned: Run, columns: int) -> tuple[Tensor, Tensor, int]:
        """(rows, columns) inputs of the layer, (rows, outputs) what it should give beyond its bias, rows per image."""
        step, state = task.step, self._program.state
        images = pruned.value(step.input)
        total = len(images) * self._batches
        per_image = max(self._positions, -(-ROWS_PER_COLUMN * columns // total))
        if columns > MAX_COLUMNS:
            per_image = max(1, WIDE_ROWS // total)
        drawn = sample_positions(len(images), output_positions(step.node), per_image, self._generator)
        linear = operator_name(step.node.target) == "linear"
        wanted = written_at(original.value(task.target), drawn, channels_last=linear)[:, task.channels]
        if task.residual:
            assert step.other is not None
            wanted = wanted - written_at(pruned.value(step.other), drawn, channels_last=linear)
            if step.norm is not None:
                scale = _scale(state, step.norm)
                shift = state[step.norm.bias] if step.norm.bias else torch.zeros_like(scale)
                scale = torch.where(scale.abs() > SMALLEST_SCALE, scale, 1.0)
                wanted = (wanted - shift) / scale + state[step.norm.mean]
        if step.bias is not None:
            wanted = wanted - state[step.bias]
        return read_at(step.node, images, drawn), wanted, drawn.shape[1]


def _scale(state: Mapping[str, Tensor], norm: NormStep) -> Tensor:
    deviation = torch.sqrt(state[norm.variance] + norm.epsilon)
    return (state[norm.weight] if norm.weight else torch.ones_like(deviation)) / deviation


def _refresh(runs: Runs, program: Program, node: Node, task: NormTask) -> set[str]:
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
