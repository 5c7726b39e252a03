from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from torch import nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import later_half, prove, random_kept
from amc_mobile.channels.structure import ChannelGroups, DimensionIds
from amc_mobile.errors import UnsupportedLayer


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_cut_network_equals_the_one_with_masked_consumers(name: str, traced) -> None:
    net = traced(name)
    assert net.groups.groups and all(group.channels > 2 for group in net.groups.groups)
    for seed in range(3):
        assert prove(net.model, net.groups, net.example, seed=seed) < 1e-5
    assert prove(net.model, net.groups, net.example, kept=later_half(net.groups)) < 1e-5
    with torch.no_grad():
        assert torch.equal(surgery.apply(net.model, net.groups, {})(net.example), net.model(net.example))


@pytest.mark.parametrize("name", PRUNABLE)
def test_modules_have_the_widths_of_their_weights_and_share_no_memory_with_the_original(name: str, traced) -> None:
    net = traced(name)
    kept = random_kept(net.groups, np.random.default_rng(1))
    pruned = surgery.apply(net.model, net.groups, kept)
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean) == len(module.weight)
    before = {key: tensor.clone() for key, tensor in net.model.state_dict().items()}
    for changed in (pruned, surgery.mask_consumers(net.model, net.groups, kept)):
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.model.state_dict().items())


def test_a_shared_weight_stays_shared(traced) -> None:
    net = traced("CalledTwice")
    pruned = surgery.apply(net.model, net.groups, {"one": np.arange(5)})
    assert pruned.one.weight is pruned.two.weight
    assert pruned.one.weight.shape[0] == 5


def test_the_original_channels_are_kept_frozen_or_trainable_as_they_were(traced) -> None:
    net = traced("Chain")
    net.model.stem.weight.requires_grad_(False)
    pruned = surgery.apply(net.model, net.groups, {"stem": np.array([1, 4, 7])})
    net.model.stem.weight.requires_grad_(True)
    assert torch.equal(pruned.stem.weight, net.model.stem.weight[[1, 4, 7]])
    assert torch.equal(pruned.wide.weight, net.model.wide.weight[:, [1, 4, 7]])
    assert not pruned.stem.weight.requires_grad
    assert pruned.wide.weight.requires_grad and pruned.wide.weight.is_leaf


def test_random_plans_cut_every_group_and_repeat_with_the_seed(traced) -> None:
    groups = traced("DenseLike").groups
    kept, again = (random_kept(groups, np.random.default_rng(3)) for _ in range(2))
    assert all(2 <= len(kept[group.name]) < group.channels for group in groups.groups)
    assert all(np.array_equal(kept[name], again[name]) for name in kept)


def with_inputs(groups: ChannelGroups, inputs: DimensionIds) -> ChannelGroups:
    """Chain's groups with other channels along the inputs of its layer `wide`."""
    out, _, *rest = groups.parameters["wide.weight"]
    return dataclasses.replace(groups, parameters={**groups.parameters, "wide.weight": (out, inputs, *rest)})


def test_the_proof_refuses_wrong_groups_and_names_the_module_that_does_not_run(traced) -> None:
    net = traced("Chain")
    inputs = net.groups.parameters["wide.weight"][1]
    reversed_inputs = DimensionIds(inputs.group, inputs.position[::-1].copy())
    with pytest.raises(UnsupportedLayer, match="differs from the masked one's"):
        prove(net.model, with_inputs(net.groups, reversed_inputs), net.example)
    fixed = DimensionIds(np.full(len(inputs), -1), np.zeros(len(inputs), dtype=np.int64))
    with pytest.raises(UnsupportedLayer, match="does not run with fewer channels") as caught:
        prove(net.model, with_inputs(net.groups, fixed), net.example)
    assert caught.value.module == "wide"


def test_the_proof_leaves_the_training_mode_alone(traced) -> None:
    net = traced("Grouped")
    net.model.train()
    net.model.stem.eval()
    prove(net.model, net.groups, net.example)
    modes = net.model.training, net.model.stem.training
    net.model.eval()
    assert modes == (True, False)
