"""Gram matrices: all that channel choice and reconstruction need to know of a layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from amc_mobile.channels.ids import DimensionIds, Ids
from amc_mobile.channels.structure import ChannelGroups, Layer
from amc_mobile.models.labelled_images import LabelledImages
from amc_mobile.pruning.least_squares import check_finite
from amc_mobile.pruning.matrices import Matrices
from amc_mobile.pruning.program import LayerStep, Program
from amc_mobile.pruning.program_run import Run, batches_within
from amc_mobile.pruning.rows import as_columns, output_positions, read_at, sample_positions

# One matrix of this many columns takes 0.5 GB and one elimination about a minute.
MAX_COLUMNS = 8192
# With fewer rows per unknown the weights follow the sample instead of the layer.
ROWS_PER_COLUMN = 8
# What one batch's values may occupy: at 224 pixels, VGG-16's are 25 MB for each image.
ACTIVATION_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class LayerGram:
    """Moments of what a layer reads. A column is one input of one output position, as in `rows.as_columns`."""

    in_ids: DimensionIds  # of the input channels; each has `block` columns
    block: int  # kernel height x width
    weight: Tensor  # (columns, outputs), float64
    moment: Tensor  # (columns, columns): X'X / rows
    mean: Tensor  # (columns,)
    rows: int
    output_scale: Tensor  # (outputs,): the factor of the batch norm that follows, or 1
    transposed: bool = False  # a transposed convolution, whose weight has its inputs first

    @cached_property
    def projection(self) -> Tensor:
        """(columns, outputs): X'Y / rows for the layer's own outputs Y."""
        return self.moment @ self.weight

    @cached_property
    def output_variance(self) -> float:
        """Sum over outputs of their variance behind the batch norm."""
        second = (self.weight * self.projection).sum(0)
        centred = second - (self.mean @ self.weight) ** 2
        return float((centred * self.output_scale**2).sum().clamp_min(1e-30))

    def columns(self, channels: Ids) -> Tensor:
        """The columns of input channels (positions along the weight's second dimension), in that order."""
        return torch.from_numpy((channels[:, None] * self.block + np.arange(self.block)).ravel())


@dataclass(frozen=True, eq=False)
class GramStatistics:
    """By layer; layers that read no channel group, or that have more than MAX_COLUMNS columns, are not in it."""

    layers: Mapping[str, LayerGram]
    matrices: Matrices = field(default_factory=Matrices)  # where what is derived from them may be kept, too


def readable_layers(groups: ChannelGroups) -> dict[str, Layer]:
    """Convolutions of one group, transposed ones too, and linear layers whose inputs can be cut, by name."""
    kinds = ("conv", "linear", "transposed")
    return {la.name: la for la in groups.layers if la.kind in kinds and la.groups == 1 and not la.in_ids.is_fixed}


@torch.no_grad()
def collect_gram(
    model: nn.Module,
    groups: ChannelGroups,
    images: Tensor | LabelledImages,
    *,
    positions: int = 10,
    seed: int = 0,
    batch_size: int = 100,
    matrices: Matrices | None = None,
) -> GramStatistics:
    """Runs the original network on `images`: normalised (N, C, H, W), or a set that is normalised batch by batch.

    `positions`: output positions drawn per image and layer; more where a layer has so many columns that the rows
    would not reach ROWS_PER_COLUMN for each.

    Memory: 8 bytes x columns^2 for each layer, and as much again once it is factorised for the search (MobileNet-V1:
    0.05 GB in all; VGG-16 and ResNet-50: 2 to 3 GB, a 3 x 3 convolution of 512 channels alone 0.17 GB). All of them
    are kept in `matrices`, which spills to a file what is over its limit. In memory beside them: the activations of
    one batch, at most `batch_size` images and about ACTIVATION_BYTES, and up to four matrices of the largest layer
    while that layer is worked on.
    """
    batches, program = batches_within(model, images, batch_size, ACTIVATION_BYTES)
    matrices = matrices or Matrices()
    wanted = readable_layers(groups)
    steps = {
        step.node: step for step in program.steps if step.layer in wanted and columns_of(program, step) <= MAX_COLUMNS
    }
    sums = {step.layer: _Sums(program, step, matrices) for step in steps.values()}
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        run = Run(program, lambda batch=batch: batch)  # type: ignore[misc]
        while (node := run.pending()) is not None:
            if node in steps:
                columns = len(sums[steps[node].layer].weight)
                per_image = max(positions, -(-ROWS_PER_COLUMN * columns // len(images)))
                drawn = sample_positions(len(batch), output_positions(node), per_image, generator)
                sums[steps[node].layer].add(read_at(node, run.value(steps[node].input), drawn))
            run.step()
    return GramStatistics({name: total.result(wanted[name]) for name, total in sums.items()}, matrices)


class _Sums:
    """Running sums of one layer; float32 products of a batch, added up in float64."""

    def __init__(self, program: Program, step: LayerStep, matrices: Matrices) -> None:
        self.weight = as_columns(program.state[f"{step.layer}.weight"], transposed=step.is_transposed).double()
        self.transposed = step.is_transposed
        self.scale = output_scale(program, step).double()
        self.moment = matrices.zeros(len(self.weight), len(self.weight))
        self.total = torch.zeros(len(self.weight), dtype=torch.float64)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        self.moment += rows.T @ rows
        self.total += rows.sum(0)
        self.rows += len(rows)

    def result(self, layer: Layer) -> LayerGram:
        """Raises NotFinite."""
        check_finite(layer.name, self.moment, self.weight, self.scale)
        return LayerGram(
            layer.in_ids,
            len(self.weight) // len(layer.in_ids),
            self.weight.contiguous(),
            self.moment.div_(self.rows),  # in place: it is the largest thing there is
            self.total / self.rows,
            self.rows,
            self.scale,
            self.transposed,
        )


def columns_of(program: Program, step: LayerStep) -> int:
    """How many columns the rows of a layer have."""
    weight = program.state[f"{step.layer}.weight"]
    return weight.numel() // weight.shape[1 if step.is_transposed else 0]


def output_scale(program: Program, step: LayerStep) -> Tensor:
    """(outputs,): gamma / sqrt(variance + epsilon) of the batch norm that follows a layer, else ones."""
    outputs = program.state[f"{step.layer}.weight"].shape[1 if step.is_transposed else 0]
    if step.norm is None:
        return torch.ones(outputs)
    deviation = torch.sqrt(program.state[step.norm.variance] + step.norm.epsilon)
    return (program.state[step.norm.weight] if step.norm.weight else torch.ones(outputs)) / deviation


def group_channels(ids: DimensionIds, group: int, channels: int) -> Ids | None:
    """(channels, times): where each channel of a group stands along a dimension; None if not equally often."""
    inside = np.flatnonzero(ids.group == group)
    if len(inside) == 0 or len(inside) % channels:
        return None
    ordered = inside[np.argsort(ids.position[inside], kind="stable")].reshape(channels, -1)
    return ordered if (ids.position[ordered] == np.arange(channels)[:, None]).all() else None
