"""Fine-grained pruning: what is masked, what stays, and that training keeps the masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from torch import nn
from traced_networks import subject

from amc_mobile.data.images import ImageSet
from amc_mobile.errors import InvalidInput
from amc_mobile.models.training import TrainConfig, train
from amc_mobile.pruning.magnitude import MagnitudePruner, hold_masks, reestimated


def pruner(name: str) -> MagnitudePruner:
    net = subject(name)
    return MagnitudePruner(net.model, net.groups)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_convolution_and_linear_layer_can_be_pruned(name: str) -> None:
    found = pruner(name)
    modules = dict(subject(name).model.named_modules())
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    weights = {id(module.weight) for module in modules.values() if isinstance(module, kinds)}  # some are tied
    assert sorted(id(modules[name].weight) for name in found.names) == sorted(weights)
    total = sum(parameter.numel() for parameter in subject(name).model.parameters())
    assert found.parameters(found.sizes) == total
    assert (
        found.parameters(np.stack([found.sizes, found.sizes // 2]))[1] == total - (found.sizes - found.sizes // 2).sum()
    )


def test_the_largest_magnitudes_of_each_layer_stay() -> None:
    found, model = pruner("PaddedShortcut"), subject("PaddedShortcut").model
    kept = np.maximum(found.sizes // 3, 1)
    built = found.build(kept)
    for name, count in zip(found.names, kept, strict=True):
        before, after = model.get_parameter(f"{name}.weight"), built.get_parameter(f"{name}.weight")
        stays = after != 0
        assert int(stays.sum()) == count
        assert torch.equal(after[stays], before[stays])
        assert before[stays].abs().min() >= before[~stays].abs().max()
    assert built.a1[1].weight is not model.a1[1].weight
    with torch.no_grad():
        whole = found.build(found.sizes)
        assert torch.equal(whole(subject("PaddedShortcut").images[:4]), model(subject("PaddedShortcut").images[:4]))


def test_lost_energy_is_the_squared_weights_that_go() -> None:
    found, model = pruner("PaddedShortcut"), subject("PaddedShortcut").model
    layer = found.names.index("a2")
    squares = np.sort(model.a2.weight.detach().double().square().flatten().numpy())[::-1]
    counts = np.array([0, 1, 100, squares.size])
    expected = [1 - squares[:n].sum() / squares.sum() for n in counts]
    assert found.lost_energy(layer, counts) == pytest.approx(expected, abs=1e-6)


def test_linear_layers_may_keep_fewer_than_convolutions() -> None:
    found = pruner("PaddedShortcut")
    grids = dict(zip(found.names, found.grids(0.2), strict=True))
    for name, size in zip(found.names, found.sizes, strict=True):
        grid = grids[name]
        assert grid[-1] == size
        assert np.all(np.diff(grid) > 0)
        assert grid[0] == int(np.ceil(size * (0.02 if name == "fc" else 0.2)))


def test_training_keeps_masked_weights_at_zero_and_changes_the_others() -> None:
    net = subject("PaddedShortcut")
    found = pruner("PaddedShortcut")
    masks = found.masks(found.sizes // 2)
    model = found.build(found.sizes // 2)
    hold_masks(model, masks)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    labels = torch.arange(len(net.images)) % 5
    images = ImageSet(net.images.contiguous(), labels, torch.zeros(3), torch.ones(3))
    train(model, images, TrainConfig(epochs=2, batch_size=20, learning_rate=0.1, augment=False))
    for name, mask in masks.items():
        after = model.get_parameter(name).detach()
        assert bool((after[~mask] == 0).all())
        assert not torch.equal(after[mask], before[name][mask])


def test_a_mask_of_another_shape_is_refused() -> None:
    model = pruner("PaddedShortcut").build(pruner("PaddedShortcut").sizes)
    with pytest.raises(InvalidInput, match="mask of fc"):
        hold_masks(model, {"fc.weight": torch.ones(3, 3, dtype=torch.bool)})


def test_batch_norms_take_the_statistics_of_the_pruned_network() -> None:
    found, images = pruner("PaddedShortcut"), subject("PaddedShortcut").images
    built = found.build(found.sizes // 2)
    tuned = reestimated(built, images)
    with torch.no_grad():
        first = built.stem[0](images)
    assert torch.allclose(tuned.stem[1].running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(built.stem[1].running_mean, tuned.stem[1].running_mean, atol=1e-3)
    assert not tuned.training
    assert not any(module.training for module in tuned.modules())
