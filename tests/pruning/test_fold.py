from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import PRUNABLE
from torch import nn
from traced_networks import halves, subject

from amc_mobile.channels.surgery import copied
from amc_mobile.pruning.channel_choice import channel_order
from amc_mobile.pruning.reconstruction import Folding, Reconstructor, find_folding, folded


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_folded_network_computes_the_same(name: str) -> None:
    net = subject(name)
    folding = find_folding(net.model, net.images[:1])
    with torch.no_grad():
        wanted = net.model(net.images)
        assert torch.allclose(folded(net.model, folding)(net.images), wanted, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_copy_is_what_deepcopy_gives(name: str) -> None:
    model = subject(name).model
    memo: dict[int, Any] = {}
    twin, other = copied(model, memo), copy.deepcopy(model)
    assert str(twin) == str(other)
    assert list(twin.state_dict()) == list(other.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value)
        assert twin.state_dict()[key].data_ptr() != value.data_ptr()
    shared = {id(module) for module in model.modules()} & {id(module) for module in twin.modules()}
    assert not shared
    assert [n for n, _ in twin.named_modules()] == [n for n, _ in other.named_modules()]  # one module twice stays one
    for mine, theirs in zip(twin.modules(), model.modules(), strict=True):
        assert list(mine.__dict__) == list(theirs.__dict__)
        mutable = [k for k, v in theirs.__dict__.items() if isinstance(v, (dict, list, set))]
        assert not any(mine.__dict__[key] is theirs.__dict__[key] for key in mutable)
    twin.register_forward_hook(lambda *_: None)
    assert not model._forward_hooks


class Holder(nn.Module):
    """Holds a module in a plain list, which only deepcopy follows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.listed = [self.inner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.listed[0](x)  # type: ignore[no-any-return]


def test_a_copy_follows_modules_in_lists_and_takes_what_the_memo_gives() -> None:
    model = Holder()
    twin = copied(model, {})
    assert isinstance(twin, Holder)
    assert twin.listed[0] is twin.inner is not model.inner
    other = nn.Linear(3, 3)
    replaced = copied(model, {id(model.inner): other})
    assert isinstance(replaced, Holder)
    assert replaced.inner is replaced.listed[0] is other


def test_batch_norms_that_follow_no_convolution_stay() -> None:
    net = subject("DenseLike")  # a batch norm before each convolution; the transition alone has one behind
    assert find_folding(net.model, net.images[:1]) == Folding((("transition.0.0", "transition.0.1"),))


def test_a_module_called_twice_is_not_folded() -> None:
    net = subject("CalledTwice")
    pairs = find_folding(net.model, net.images[:1]).pairs
    assert pairs == (("stem.0", "stem.1"),)
