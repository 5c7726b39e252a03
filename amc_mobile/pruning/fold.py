"""Inference copies of a network: batch norms folded into the convolutions before them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from amc_mobile.channels.surgery import copied
from amc_mobile.models.evaluation import runs_channels_last
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
