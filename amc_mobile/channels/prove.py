"""The proof that channel groups are right: surgery must equal zeroing what the consumers read."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc_mobile.channels import surgery
from amc_mobile.channels.exported import where_it_failed
from amc_mobile.channels.ids import Ids
from amc_mobile.channels.plan import MIN_CHANNELS
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import InvalidInput, UnsupportedLayer


def random_kept(groups: ChannelGroups, rng: np.random.Generator, *, at_least: float = 0.25) -> dict[str, Ids]:
    """Random channels of a random width for every group; each group loses at least one channel."""
    kept = {}
    for group in groups.groups:
        lowest = max(MIN_CHANNELS, int(at_least * group.channels))
        count = int(rng.integers(min(lowest, group.channels - 1), group.channels))
        kept[group.name] = np.sort(rng.choice(group.channels, count, replace=False)).astype(np.int64)
    return kept


def later_half(groups: ChannelGroups) -> dict[str, Ids]:
    """The second half of every group's channels: every channel that stays moves to another position."""
    return {group.name: np.arange(group.channels // 2, group.channels, dtype=np.int64) for group in groups.groups}


def prove(
    model: nn.Module,
    groups: ChannelGroups,
    example: Tensor,
    *,
    kept: Mapping[str, Ids] | None = None,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> float:
    """The largest difference between the cut and the masked network, relative to the largest output.

    `example`: (N, C, H, W); `kept`: random channels from `seed` unless given. Raises UnsupportedLayer when the
    difference is above `tolerance`, in float64 as well, or the cut network does not run.
    """
    kept = random_kept(groups, np.random.default_rng(seed)) if kept is None else kept
    difference = _difference(model, groups, example, kept)
    if not difference <= tolerance:  # NaN included
        # Some networks amplify rounding errors, e.g. with random weights: more digits tell those from wrong groups.
        difference = _difference(copy.deepcopy(model).double(), groups, example.double(), kept)
    if math.isnan(difference):
        _require_finite(model, example)
    if not difference <= tolerance:
        raise UnsupportedLayer(
            "",
            f"the pruned network's output differs from the masked one's by {difference:.1e} of its largest value",
        )
    return difference


def _difference(model: nn.Module, groups: ChannelGroups, example: Tensor, kept: Mapping[str, Ids]) -> float:
    """Between the cut and the masked network, relative to the largest output. Raises UnsupportedLayer."""
    cut = surgery.apply(model, groups, kept).eval()
    masked = surgery.mask_consumers(model, groups, kept).eval()
    with torch.no_grad():
        expected = list(_tensors(masked(example)))
        try:
            outputs = list(_tensors(cut(example)))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            where, line = where_it_failed(cut, error)
            raise UnsupportedLayer(
                where,
                f"does not run with fewer channels{line}: {str(error).partition(chr(10))[0]}",
                next_step="take sizes from the input's shape instead of writing numbers of channels in the code",
            ) from error
    largest = max((float(y.abs().max()) for y in expected), default=0.0)
    worst = 0.0
    for y, target in zip(outputs, expected, strict=True):
        if y.shape != target.shape:
            raise UnsupportedLayer(
                "", f"pruning changes an output's shape from {tuple(target.shape)} to {tuple(y.shape)}"
            )
        difference = float((y - target).abs().max()) / max(largest, 1e-12)
        if math.isnan(difference):
            return difference
        worst = max(worst, difference)
    return worst


def _require_finite(model: nn.Module, example: Tensor) -> None:
    """Raises InvalidInput where the network itself gives NaN or infinity, naming the first module that does."""
    first: list[str] = []

    def look(name: str, output: Any) -> None:
        if not first and not all(bool(tensor.isfinite().all()) for tensor in _tensors(output)):
            first.append(name)

    looking = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in looking:
            handle.remove()
    if first:
        raise InvalidInput(
            f"{first[0] or 'the network'}: its output is not finite (NaN or infinite)",
            next_step="check the checkpoint: values that overflow, and negative variances of batch norms",
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a network's output, nested or not."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
