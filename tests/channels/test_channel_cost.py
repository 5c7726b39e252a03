from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import PRUNABLE, build, example
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups, random_kept
from amc_mobile.channels.structure import CostModel


def counted_macs(model: nn.Module, images: Tensor) -> list[int]:
    """Multiply-accumulates per image of each executed layer, counted from the shapes that hooks see."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moved = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        # One weight matrix is applied at every position: all elements but the channels', per image.
        channels = moved.shape[-1] if isinstance(module, nn.Linear) else moved.shape[1]
        counts.append(module.weight.numel() * moved.numel() // channels // len(images))

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("name", PRUNABLE)
@pytest.mark.parametrize("seed", range(2))
def test_costs_equal_those_counted_on_the_cut_network(name: str, seed: int, traced) -> None:
    net = traced(name)
    kept = random_kept(net.groups, np.random.default_rng(seed))
    pruned = surgery.apply(net.model, net.groups, kept)
    cost = CostModel(net.model, net.groups)
    widths = np.array([len(channels) for channels in kept.values()])
    assert cost.macs(widths) == sum(counted_macs(pruned, net.example))
    assert cost.parameters(widths) == sum(parameter.numel() for parameter in pruned.parameters())


def test_full_widths_cost_what_the_original_costs(traced) -> None:
    net = traced("DenseLike")
    cost = CostModel(net.model, net.groups)
    assert cost.macs(net.groups.sizes) == sum(counted_macs(net.model, net.example))
    assert cost.parameters(net.groups.sizes) == sum(parameter.numel() for parameter in net.model.parameters())


def test_many_plans_are_costed_at_once(traced) -> None:
    net = traced("InceptionLike")
    cost = CostModel(net.model, net.groups)
    rng = np.random.default_rng(0)
    widths = np.stack([rng.integers(2, net.groups.sizes + 1) for _ in range(5)])
    assert cost.macs(widths).tolist() == [float(cost.macs(row)) for row in widths]
    assert cost.parameters(widths).tolist() == [float(cost.parameters(row)) for row in widths]
    assert cost.macs(widths[None]).shape == (1, 5)


@pytest.mark.parametrize("name", ["FoldedSpace", "DepthwiseUpsampling"])
@pytest.mark.parametrize("images", [1, 2])
def test_space_folded_into_the_batch_attention_and_depthwise_transposed_convolutions_are_counted(
    name: str, images: int
) -> None:
    model, example_images = build(name), example(batch=images)
    groups = find_groups(model, example_images)
    assert groups.groups
    kept = random_kept(groups, np.random.default_rng(0))
    widths = np.array([len(channels) for channels in kept.values()])
    pruned = surgery.apply(model, groups, kept)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        pruned(example_images)
    assert CostModel(model, groups).macs(widths) == counter.get_total_flops() // 2 // images
