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
from amc_mobile.channels.structure import FIXED, ChannelIds, CostModel, DimensionIds


def test_uniting_with_a_fixed_channel_fixes_the_whole_class() -> None:
    ids = ChannelIds()
    a, b = ids.fresh(3), ids.fresh(3)
    ids.unite(a, b)
    ids.unite(b[1], FIXED)
    assert ids.roots()[a].tolist() == ids.roots()[b].tolist() == [a[0], FIXED, a[2]]


@pytest.mark.parametrize("widths", [[4, 2], [2, 1], [3, 2]])
def test_surviving_positions_follow_every_occurrence_of_a_channel(widths: list[int]) -> None:
    """Channels 0..3 of group 0 twice, two positions that stay, and group 1."""
    ids = DimensionIds(np.array([0, 0, 0, 0, -1, -1, 1, 1, 0, 0, 0, 0]), np.array([0, 1, 2, 3, 0, 0, 0, 1, 0, 1, 2, 3]))
    assert ids.surviving([np.array([0, 3]), np.array([1])]).tolist() == [0, 3, 4, 5, 7, 8, 11]
    constant, factors = ids.expression(2)
    assert constant + np.array(widths) @ factors == len(ids.surviving([np.arange(width) for width in widths]))


def counted_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates per image of the executed layers, counted from the shapes that hooks see."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moved = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        # One weight matrix is applied at every position: all elements but the channels', per image.
        channels = moved.shape[-1] if isinstance(module, nn.Linear) else moved.shape[1]
        counts.append(module.weight.numel() * moved.numel() // channels // len(images))

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("name", PRUNABLE)
def test_costs_equal_those_counted_on_the_cut_network_for_many_plans_at_once(name: str, traced) -> None:
    net = traced(name)
    plans = [{}, *(random_kept(net.groups, np.random.default_rng(seed)) for seed in range(2))]
    cost = CostModel(net.model, net.groups)
    widths = np.array([[len(channels) for channels in net.groups.kept_lists(kept)] for kept in plans])
    networks = [surgery.apply(net.model, net.groups, kept) for kept in plans]
    assert cost.macs(widths).tolist() == [counted_macs(network, net.example) for network in networks]
    assert cost.parameters(widths).tolist() == [sum(p.numel() for p in network.parameters()) for network in networks]
    assert cost.macs(widths[None]).shape == (1, 3)


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
