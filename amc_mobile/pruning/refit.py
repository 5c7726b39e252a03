"""The final network's weights: refitted layer by layer on what the pruned network itself computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from amc_mobile.channels import surgery
from amc_mobile.channels.ids import Ids
from amc_mobile.channels.operators import operator_name
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.pruning.gram import ACTIVATION_BYTES, ROWS_PER_COLUMN
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, Moments, check_finite
from amc_mobile.pruning.program import NormStep, Program
from amc_mobile.pruning.program_run import Run, batches_within, peak_bytes
from amc_mobile.pruning.refit_tasks import LayerTask, NormTask, find_tasks
from amc_mobile.pruning.rows import output_positions, read_at, sample_positions, written_at

MEMORY_BYTES = 2 * 2**30
MIN_NORM_SAMPLES = 1000  # values per channel under which a batch norm keeps its statistics
HELD_OUT = 0.2  # of the images, to choose each layer's ridge
RIDGE_FACTORS = (1.0, 10.0, 100.0, 1e3, 1e4)
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
    for what earlier layers got wrong. Intercepts go to the bias or the running mean behind the layer. The
    statistics of a batch norm behind another layer move as those of its inputs do between the two networks.

    `images`: normalised, (N, C, H, W). Both networks hold the activations of all images that are still needed; only
    as many images are used as `memory_bytes` allow. `on_layer` is told each layer's name before it is refitted.
    """
    pruned = surgery.apply(model, groups, kept).eval()
    batches, original_program = batches_within(model, images, batch_size, ACTIVATION_BYTES)
    program = Program(pruned, batches[0])
    batches = batches[: max(1, memory_bytes // (peak_bytes(original_program) + peak_bytes(program)))]
    tasks = find_tasks(original_program, program, groups, kept)
    waiting = Counter(task.target for task in tasks.values())
    original, current = Run(original_program, batches, held=waiting), Run(program, batches)
    fitter = _Fitter(original, current, positions, ridge, torch.Generator().manual_seed(seed))
    changed: set[str] = set()
    while (node := current.pending()) is not None:
        task = tasks.get(node)
        if task is not None:
            original.run_to(task.target)
            if isinstance(task, LayerTask):
                if on_layer is not None:
                    on_layer(task.step.layer)
                changed |= fitter.fit(task)
            else:
                changed |= _refresh(original, current, task)
            waiting[task.target] -= 1
            if waiting[task.target] == 0:
                original.release(task.target)
        current.step()
    for name in changed:
        path, _, attribute = name.rpartition(".")
        getattr(pruned.get_submodule(path), attribute).copy_(program.state[name])
    return pruned


class _Fitter:
    def __init__(self, original: Run, current: Run, positions: int, ridge: float, generator: torch.Generator) -> None:
        self._original, self._current = original, current
        self._positions, self._ridge, self._generator = positions, ridge, generator

    def fit(self, task: LayerTask) -> set[str]:
        """Changes the weights in the pruned program's state; returns the names of what it changed."""
        step, state = task.step, self._current.program.state
        weight = state[f"{step.layer}.weight"]
        visible = torch.ones(len(weight), dtype=torch.bool)
        scale = torch.ones(len(weight))
        if step.norm is not None:
            scale = _scale(state, step.norm)
            visible = (scale.abs() > SMALLEST_SCALE) if task.residual else visible
        columns = weight[0].numel()
        parts = [Moments(columns, len(weight)) for _ in range(2)]
        for batch in range(self._current.count):
            rows, wanted, per_image = self._rows(task, batch, columns)
            residuals = wanted - rows @ weight.flatten(1).T
            split = max(1, round(len(rows) // per_image * (1 - HELD_OUT))) * per_image  # between images
            parts[0].add(rows[:split], residuals[:split])
            parts[1].add(rows[split:], residuals[split:])
        for part in parts:
            check_finite(step.layer, part.square, part.product)
        change, intercept = self._fitted(
            parts, step.bias is not None or step.norm is not None, scale.double() * visible
        )
        state[f"{step.layer}.weight"] = weight + (change * visible).T.reshape(weight.shape).to(weight.dtype)
        intercept = intercept.to(weight.dtype)
        if step.bias is not None:
            state[step.bias] = torch.where(visible, intercept, state[step.bias])
        elif step.norm is not None:
            state[step.norm.mean] = state[step.norm.mean] - torch.where(visible, intercept, 0.0)
        place = step.bias or (step.norm.mean if step.norm is not None else None)
        return {f"{step.layer}.weight"} | ({place} if place else set())

    def _fitted(self, parts: list[Moments], takes_intercept: bool, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The fit on all rows, with the ridge that does best on images held out: few rows ask for a strong one."""
        ridges = [self._ridge * factor for factor in (RIDGE_FACTORS if parts[1].rows else (1.0,))]
        gains = [-np.inf]
        if len(ridges) > 1:
            trials = [parts[0].fit(ridge, intercept=takes_intercept) for ridge in ridges]
            gains = [float((parts[1].gain(*trial) * scale**2).sum()) for trial in trials]
        ridge = ridges[int(np.argmax(gains))]
        return (parts[0] + parts[1]).fit(ridge, intercept=takes_intercept)

    def _rows(self, task: LayerTask, batch: int, columns: int) -> tuple[Tensor, Tensor, int]:
        """(rows, columns) inputs of the layer, (rows, outputs) of what it should give, and rows per image."""
        step, state = task.step, self._current.program.state
        images = self._current.value(step.input, batch)
        total = len(images) * self._current.count
        per_image = max(self._positions, -(-ROWS_PER_COLUMN * columns // total))
        drawn = sample_positions(len(images), output_positions(step.node), per_image, self._generator)
        linear = operator_name(step.node.target) == "linear"
        target = self._original.value(task.target, batch)
        wanted = written_at(target, drawn, channels_last=linear)[:, task.channels]
        if task.residual:
            assert step.other is not None
            wanted = wanted - written_at(self._current.value(step.other, batch), drawn, channels_last=linear)
            if step.norm is not None:
                scale = _scale(state, step.norm)
                shift = state[step.norm.bias] if step.norm.bias else torch.zeros_like(scale)
                scale = torch.where(scale.abs() > SMALLEST_SCALE, scale, 1.0)
                wanted = (wanted - shift) / scale + state[step.norm.mean]
        return read_at(step.node, images, drawn), wanted, drawn.shape[1]


def _scale(state: Mapping[str, Tensor], norm: NormStep) -> Tensor:
    deviation = torch.sqrt(state[norm.variance] + norm.epsilon)
    return (state[norm.weight] if norm.weight else torch.ones_like(deviation)) / deviation


def _refresh(original: Run, current: Run, task: NormTask) -> set[str]:
    """Moves a batch norm's mean and variance as those of its inputs on these images differ between the networks.

    Not simply the new ones: then a sample unlike the training images would change even an uncut network. Nothing
    changes where there are too few values to tell.
    """
    source, norm, state = task.norm.node.args[0], task.norm, current.program.state
    assert isinstance(source, Node)
    values = [current.value(source, batch) for batch in range(current.count)]
    if values[0][:, 0].numel() * len(values) < MIN_NORM_SAMPLES:
        return set()
    mean, variance = _statistics(values)
    before = _statistics([original.value(task.target, b)[:, task.channels] for b in range(original.count)])
    state[norm.mean] = state[norm.mean] + (mean - before[0]).to(state[norm.mean].dtype)
    ratio = (variance + norm.epsilon) / (before[1] + norm.epsilon)
    state[norm.variance] = state[norm.variance] * ratio.to(state[norm.variance].dtype)
    return {norm.mean, norm.variance}


def _statistics(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel (dimension 1) over batches of one size."""
    flat = [value.transpose(0, 1).flatten(1).double() for value in values]
    mean = torch.stack([value.mean(1) for value in flat]).mean(0)
    variance = torch.stack([(value - mean[:, None]).square().mean(1) for value in flat]).mean(0)
    return mean, variance
