from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from torch import nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import later_half, prove, random_kept
from amc_mobile.channels.structure import ChannelGroup, ChannelGroups, DimensionIds
from amc_mobile.errors import UnsupportedLayer


@pytest.mark.parametrize("name", PRUNABLE)
@pytest.mark.parametrize("seed", range(3))
def test_the_cut_network_equals_the_one_with_masked_consumers(name: str, seed: int, traced) -> None:
    net = traced(name)
    assert len(net.groups.groups) >= 1
    assert prove(net.model, net.groups, net.example, seed=seed) < 1e-5


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_cut_network_is_right_when_every_kept_channel_moves(name: str, traced) -> None:
    net = traced(name)
    assert prove(net.model, net.groups, net.example, kept=later_half(net.groups)) < 1e-5


@pytest.mark.parametrize("name", PRUNABLE)
def test_keeping_everything_changes_nothing(name: str, traced) -> None:
    net = traced(name)
    same = surgery.apply(net.model, net.groups, {})
    with torch.no_grad():
        assert torch.equal(same(net.example), net.model(net.example))


@pytest.mark.parametrize("name", PRUNABLE)
def test_modules_say_the_widths_of_their_weights(name: str, traced) -> None:
    net = traced(name)
    pruned = surgery.apply(net.model, net.groups, random_kept(net.groups, np.random.default_rng(1)))
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            expected = (module.out_channels, module.in_channels // module.groups)
            assert tuple(module.weight.shape[:2]) == expected
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean) == len(module.weight)


@pytest.mark.parametrize("name", ["BareParameter", "CalledTwice", "PaddedShortcut"])
def test_the_new_network_shares_no_memory_with_the_old(name: str, traced) -> None:
    net = traced(name)
    kept = random_kept(net.groups, np.random.default_rng(2))
    before = {key: tensor.clone() for key, tensor in net.model.state_dict().items()}
    with torch.no_grad():
        for parameter in surgery.apply(net.model, net.groups, kept).parameters():
            parameter.zero_()
        for parameter in surgery.mask_consumers(net.model, net.groups, kept).parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.model.state_dict().items())


def test_a_shared_weight_stays_shared(traced) -> None:
    net = traced("CalledTwice")
    pruned = surgery.apply(net.model, net.groups, {"one": np.arange(5)})
    assert pruned.one.weight is pruned.two.weight
    assert pruned.one.weight.shape[0] == 5


def test_frozen_parameters_stay_frozen_and_the_others_can_be_trained(traced) -> None:
    net = traced("Chain")
    net.model.stem.weight.requires_grad_(False)
    pruned = surgery.apply(net.model, net.groups, {"stem": np.arange(6)})
    net.model.stem.weight.requires_grad_(True)
    assert not pruned.stem.weight.requires_grad
    assert pruned.wide.weight.requires_grad
    assert pruned.wide.weight.is_leaf


def test_the_kept_channels_are_the_original_ones(traced) -> None:
    net = traced("Chain")
    pruned = surgery.apply(net.model, net.groups, {"stem": np.array([1, 4, 7])})
    assert torch.equal(pruned.stem.weight, net.model.stem.weight[[1, 4, 7]])
    assert torch.equal(pruned.wide.weight, net.model.wide.weight[:, [1, 4, 7]])


def test_random_plans_cut_every_group_and_repeat_with_the_seed(traced) -> None:
    groups = traced("DenseLike").groups
    kept = random_kept(groups, np.random.default_rng(3))
    assert all(2 <= len(kept[group.name]) < group.channels for group in groups.groups)
    again = random_kept(groups, np.random.default_rng(3))
    assert all(np.array_equal(kept[name], again[name]) for name in kept)


def with_parameter(groups: ChannelGroups, name: str, dims: tuple[DimensionIds | None, ...]) -> ChannelGroups:
    return dataclasses.replace(groups, parameters={**groups.parameters, name: dims})


def test_the_proof_refuses_groups_that_cut_the_wrong_channels(traced) -> None:
    net = traced("Chain")
    out, into, *rest = net.groups.parameters["wide.weight"]
    assert out is not None
    assert into is not None
    reversed_input = DimensionIds(into.group, into.position[::-1].copy())
    wrong = with_parameter(net.groups, "wide.weight", (out, reversed_input, *rest))
    with pytest.raises(UnsupportedLayer, match="differs from the masked one's"):
        prove(net.model, wrong, net.example)


def test_the_proof_names_the_module_that_does_not_run(traced) -> None:
    net = traced("Chain")
    out, into, *rest = net.groups.parameters["wide.weight"]
    assert into is not None
    fixed = DimensionIds(np.full(len(into), -1), np.zeros(len(into), dtype=np.int64))
    wrong = with_parameter(net.groups, "wide.weight", (out, fixed, *rest))
    with pytest.raises(UnsupportedLayer, match="does not run with fewer channels") as caught:
        prove(net.model, wrong, net.example)
    assert caught.value.module == "wide"


def test_the_proof_leaves_the_training_mode_alone(traced) -> None:
    net = traced("Grouped")
    net.model.train()
    net.model.stem.eval()
    prove(net.model, net.groups, net.example)
    modes = net.model.training, net.model.stem.training
    net.model.eval()
    assert modes == (True, False)


def test_groups_hold_at_least_three_channels(traced) -> None:
    assert all(isinstance(g, ChannelGroup) and g.channels > 2 for n in PRUNABLE for g in traced(n).groups.groups)
