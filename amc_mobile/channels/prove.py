"""The proof that channel groups are right: surgery must equal zeroing what the consumers read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.channels.ids import Ids
from amc_mobile.channels.plan import MIN_CHANNELS
from amc_mobile.errors import UnsupportedLayer


def random_kept(groups: ChannelGroups, rng: np.random.Generator, *, at_least: float = 0.25) -> dict[str, Ids]:
    """Random channels of a random width for every group."""
    kept = {}
    for group in groups.groups:
        lowest = min(max(MIN_CHANNELS, int(at_least * group.channels)), group.channels)
        count = int(rng.integers(lowest, group.channels + 1))
        kept[group.name] = np.sort(rng.choice(group.channels, count, replace=False)).astype(np.int64)
    return kept


def prove(
    model: nn.Module, groups: ChannelGroups, example: Tensor, *, seed: int = 0, tolerance: float = 1e-4
) -> float:
    """The largest difference between the cut and the masked network, relative to the largest output.

    `example`: (N, C, H, W). Raises UnsupportedLayer when it is above `tolerance` or the cut network does not run.
    """
    kept = random_kept(groups, np.random.default_rng(seed))
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            cut = surgery.apply(model, groups, kept)(example)
            masked = surgery.mask_consumers(model, groups, kept)(example)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedLayer("", f"the pruned network does not run: {error}") from error
    finally:
        model.train(mode)
    difference = float((cut - masked).abs().max() / masked.abs().max().clamp_min(1e-12))
    if not difference <= tolerance:
        raise UnsupportedLayer("", f"pruning changes its outputs by {difference:.1e} where masking does not")
    return difference
