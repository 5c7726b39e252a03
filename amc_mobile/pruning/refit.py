"""The final network's weights: refitted layer by layer on what the pruned network itself computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from amc_mobile.channels import surgery
from amc_mobile.channels.ids import Ids
from amc_mobile.channels.operators import operator_name
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.pruning.gram import MAX_COLUMNS, ROWS_PER_COLUMN
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, corrected
from amc_mobile.pruning.program import LayerStep, NormStep, Program, Run, equal_batches
from amc_mobile.pruning.rows import output_positions, read_at, sample_positions, written_at

MEMORY_BYTES = 2 * 2**30
MIN_NORM_SAMPLES = 1000  # values per channel under which a batch norm keeps its statistics
SMALLEST_SCALE = 1e-6  # a batch norm with a smaller factor hides its layer's output: nothing can be fitted through it


@torch.no_grad()
def refit(
    model: nn.Module,
    groups: ChannelGroups,
    kept: Mapping[str, Ids],
    images: Tensor,
    *,
    positions: int = 20,
    ridge: float = DEFAULT_RIDGE,
    seed: int = 0,
    batch_size: int = 100,
    memory_bytes: int = MEMORY_BYTES,
    on_layer: Callable[[str], None] | None = None,
) -> nn.Module:
    """A new network cut to `kept`, every layer behind a cut refitted in order of execution.

    A layer's inputs are those of the pruned network so far. Its target is the original layer's output, or, where it
    is the last to enter a sum with a shortcut, the original sum less the pruned network's own shortcut: it makes up
    for what earlier layers got wrong. Intercepts go to the bias or the running mean behind the layer. A batch norm
    behind a layer that is not refitted gets new statistics.

    `images`: normalised, (N, C, H, W). Both networks hold the activations of all images that are still needed; only
    as many images are used as `memory_bytes` allow. `on_layer` is told each layer's name before it is refitted.
    """
    pruned = surgery.apply(model, groups, kept).eval()
    batches = equal_batches(images, batch_size)
    original_program, program = Program(model, batches[0]), Program(pruned, batches[0])
    pairs = _paired(original_program, program)
    batches = batches[: max(1, memory_bytes // (_peak_bytes(original_program) + _peak_bytes(program)))]
    tasks = _tasks(original_program, program, pairs, groups, kept)
    target_of = {node: task.target for node, task in tasks.items()}
    original = Run(original_program, batches, held=set(target_of.values()))
    current = Run(program, batches)
    affected = _affected(original_program, program, pairs)
    norms_done = {task.step.norm.node for task in tasks.values() if task.step.norm}
    fitter = _Fitter(original, current, positions, ridge, torch.Generator().manual_seed(seed))
    waiting = list(target_of.values())
    changed: set[str] = set()
    while (node := current.pending()) is not None:
        if node in tasks:
            if on_layer is not None:
                on_layer(tasks[node].step.layer)
            original.run_to(target_of[node])
            changed |= fitter.fit(tasks[node])
            waiting.remove(target_of[node])
            if target_of[node] not in waiting:
                original.release(target_of[node])
        elif node in affected and node not in norms_done and (norm := program.norm_of(node)) is not None:
            changed |= _refresh(current, norm)
        current.step()
    for name in changed:
        path, _, attribute = name.rpartition(".")
        getattr(pruned.get_submodule(path), attribute).copy_(program.state[name])
    return pruned


@dataclass(frozen=True, eq=False)
class _Task:
    step: LayerStep  # in the pruned network
    target: Node  # in the original network: the sum, or the layer's own output
    residual: bool  # whether `target` is the sum
    outputs: Tensor  # the original network's channels that the layer still makes


class _Fitter:
    def __init__(self, original: Run, current: Run, positions: int, ridge: float, generator: torch.Generator) -> None:
        self._original, self._current = original, current
        self._positions, self._ridge, self._generator = positions, ridge, generator

    def fit(self, task: _Task) -> set[str]:
        """Changes the weights in the pruned program's state; returns the names of what it changed."""
        step, state = task.step, self._current.program.state
        weight = state[f"{step.layer}.weight"]
        columns = weight[0].numel()
        moment = torch.zeros(columns, columns, dtype=torch.float64)
        product = torch.zeros(columns, len(weight), dtype=torch.float64)
        mean, target_mean = torch.zeros(columns, dtype=torch.float64), torch.zeros(len(weight), dtype=torch.float64)
        count = 0
        for batch in range(self._current.count):
            read, wanted = self._rows(task, batch, columns)
            moment += read.T @ read
            product += read.T @ wanted
            mean += read.sum(0)
            target_mean += wanted.sum(0)
            count += len(read)
        moment, product, mean, target_mean = moment / count, product / count, mean / count, target_mean / count
        takes_intercept = step.bias is not None or step.norm is not None
        if takes_intercept:
            moment -= torch.outer(mean, mean)
            product -= torch.outer(mean, target_mean)
        before = weight.flatten(1).T.double()
        change = corrected(moment, product - moment @ before, self._ridge)
        visible = torch.ones(len(weight), dtype=torch.bool)
        if task.residual and step.norm is not None:
            visible = _scale(state, step.norm).abs() > SMALLEST_SCALE
        after = before + change * visible
        state[f"{step.layer}.weight"] = after.T.reshape(weight.shape).to(weight.dtype)
        changed = {f"{step.layer}.weight"}
        intercept = torch.where(visible, target_mean - mean @ after, 0.0).to(weight.dtype)
        if step.bias is not None:
            state[step.bias] = torch.where(visible, intercept, state[step.bias])
            changed.add(step.bias)
        elif step.norm is not None:
            state[step.norm.mean] = state[step.norm.mean] - intercept
            changed.add(step.norm.mean)
        return changed

    def _rows(self, task: _Task, batch: int, columns: int) -> tuple[Tensor, Tensor]:
        """(rows, columns) inputs of the layer and (rows, outputs) of what it should give, before its batch norm."""
        step, state = task.step, self._current.program.state
        images = self._current.value(step.input, batch)
        total = len(images) * self._current.count
        per_image = max(self._positions, -(-ROWS_PER_COLUMN * columns // total))
        drawn = sample_positions(len(images), output_positions(step.node), per_image, self._generator)
        linear = operator_name(step.node.target) == "linear"
        target = self._original.value(task.target, batch)
        wanted = written_at(target, drawn, channels_last=linear)[:, task.outputs]
        if task.residual:
            assert step.other is not None
            wanted = wanted - written_at(self._current.value(step.other, batch), drawn, channels_last=linear)
            if step.norm is not None:
                scale = _scale(state, step.norm)
                shift = state[step.norm.bias] if step.norm.bias else torch.zeros_like(scale)
                scale = torch.where(scale.abs() > SMALLEST_SCALE, scale, 1.0)
                wanted = (wanted - shift) / scale + state[step.norm.mean]
        return read_at(step.node, images, drawn), wanted


def _scale(state: Mapping[str, Tensor], norm: NormStep) -> Tensor:
    deviation = torch.sqrt(state[norm.variance] + norm.epsilon)
    return (state[norm.weight] if norm.weight else torch.ones_like(deviation)) / deviation


def _refresh(run: Run, norm: NormStep) -> set[str]:
    """Mean and variance of what a batch norm now reads; none where there are too few values to tell."""
    values = [run.value(norm.node.args[0], batch).transpose(0, 1).flatten(1) for batch in range(run.count)]  # type: ignore[arg-type]
    count = sum(value.shape[1] for value in values)
    if count < MIN_NORM_SAMPLES:
        return set()
    mean = torch.stack([value.double().sum(1) for value in values]).sum(0) / count
    square = torch.stack([(value.double() - mean[:, None]).square().sum(1) for value in values]).sum(0) / count
    state = run.program.state
    state[norm.mean] = mean.to(state[norm.mean].dtype)
    state[norm.variance] = square.to(state[norm.variance].dtype)
    return {norm.mean, norm.variance}


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


def _tasks(
    original: Program, pruned: Program, pairs: Mapping[Node, Node], groups: ChannelGroups, kept: Mapping[str, Ids]
) -> dict[Node, _Task]:
    """What to refit, by node of the pruned network: layers executed once whose inputs differ."""
    affected = _affected(original, pruned, pairs)
    place = {node: index for index, node in enumerate(pruned.nodes)}
    layers = {layer.name: layer for layer in groups.layers if layer.kind in ("conv", "linear")}
    original_steps = original.single_steps()
    tasks = {}
    for node, step in pruned.single_steps().items():
        layer = layers.get(step.layer)
        columns = pruned.state[f"{step.layer}.weight"][0].numel()
        if layer is None or step.input not in affected or columns > MAX_COLUMNS:
            continue
        counterpart = original_steps[pairs[node]]
        residual = step.other is not None and place[step.other] < place[node]
        target = counterpart.total if residual else counterpart.node
        assert target is not None
        outputs = torch.from_numpy(groups.surviving(layer.out_ids, kept))
        tasks[node] = _Task(step, target, residual, outputs)
    return tasks


def _peak_bytes(program: Program) -> int:
    """The most that values of one batch occupy at a time, as `Run` keeps them."""
    last_use = {source: index for index, node in enumerate(program.nodes) for source in node.all_input_nodes}
    size: dict[Node, int] = {}
    live = peak = 0
    for index, node in enumerate(program.nodes):
        value = node.meta.get("val")
        if node not in program.names and isinstance(value, Tensor):
            size[node] = value.numel() * value.element_size()
            live += size[node]
        peak = max(peak, live)
        live -= sum(
            size.pop(source, 0) for source in [*node.all_input_nodes, node] if last_use.get(source, index) == index
        )
    return peak
