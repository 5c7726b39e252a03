from __future__ import annotations

import pytest
import torch
from networks import PRUNABLE
from torch import nn
from traced_networks import halves, subject

from amc_mobile.pruning.fold import Folding, find_folding, folded
from amc_mobile.pruning.importance import channel_order
from amc_mobile.pruning.reconstruction import Reconstructor


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_folded_network_computes_the_same(name: str) -> None:
    net = subject(name)
    folding = find_folding(net.model, net.images[:1])
    with torch.no_grad():
        wanted = net.model(net.images)
        assert torch.allclose(folded(net.model, folding)(net.images), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in PRUNABLE if name != "Flattened"])
def test_pairs_in_a_sequence_fold_without_tracing(name: str) -> None:
    net = subject(name)
    quick = folded(net.model)
    assert norms(quick) < norms(net.model) or not find_folding(net.model, net.images[:1]).pairs
    with torch.no_grad():
        assert torch.allclose(quick(net.images), net.model(net.images), rtol=1e-3, atol=1e-4)


def test_a_network_that_views_its_maps_keeps_their_layout() -> None:
    net = subject("Flattened")
    folding = find_folding(net.model, net.images[:1])
    assert not folding.channels_last
    assert norms(folded(net.model, folding)) == 0


def test_a_folding_holds_for_pruned_networks_too() -> None:
    net = subject("Bottleneck")
    folding = find_folding(net.model, net.images[:1])
    order = channel_order(net.groups, net.model, net.gram, method="l1")
    pruned = Reconstructor(net.model, net.groups, net.gram, order).build(halves(net.groups))
    quick = folded(pruned, folding)
    with torch.no_grad():
        assert torch.allclose(quick(net.images), pruned(net.images), rtol=1e-3, atol=1e-4)
    assert norms(pruned) == 5
    assert norms(quick) == 0
    assert quick.fc.weight.data_ptr() != pruned.fc.weight.data_ptr()


def test_batch_norms_that_follow_no_convolution_stay() -> None:
    net = subject("DenseLike")  # a batch norm before each convolution; the transition alone has one behind
    assert find_folding(net.model, net.images[:1]) == Folding((("transition.0.0", "transition.0.1"),))


def test_a_module_called_twice_is_not_folded() -> None:
    net = subject("CalledTwice")
    pairs = find_folding(net.model, net.images[:1]).pairs
    assert pairs == (("stem.0", "stem.1"),)
