"""Scores of single channels against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from traced_networks import subject

from amc_mobile.pruning import channel_choice


def test_the_geometric_median_score_is_the_sum_of_distances_to_the_other_filters() -> None:
    net = subject("PaddedShortcut")
    filters = net.model.a1[0].weight.detach().flatten(1)
    expected = [sum(float((filters[i] - other).norm()) for other in filters) for i in range(len(filters))]
    found = channel_choice.geometric_median(net.groups, net.model, net.groups.names.index("a1.0"))
    assert found == pytest.approx(np.array(expected) / sum(expected), rel=1e-5)


def test_rms_weights_a_channel_by_what_it_carries() -> None:
    net = subject("PaddedShortcut")
    group = net.groups.names.index("a1.0")
    read: list[torch.Tensor] = []
    handle = net.model.a2.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        net.model(net.images)
    handle.remove()
    # As the Gram matrix sees them: every tap of the kernel at every output position, padding included.
    rows = functional.unfold(read[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
    rms = rows.square().mean(0).sqrt().view(8, 9)
    expected = (net.model.a2.weight.detach().abs().sum(0).flatten(1) * rms).sum(1)
    found = channel_choice.l1_rms(net.groups, net.model, net.gram, group)
    assert found == pytest.approx((expected / expected.sum()).numpy(), rel=1e-4)


@pytest.mark.parametrize("name", ["PaddedShortcut", "Flattened"])
def test_taylor_is_the_squared_change_of_the_loss_under_a_gate(name: str) -> None:
    net = subject(name)
    labels = torch.arange(20) % 5
    images = net.images[:20]
    reader = {"PaddedShortcut": "a2", "Flattened": "classifier.0"}[name]
    group = {"PaddedShortcut": "a1.0", "Flattened": "features.2.0"}[name]
    index = net.groups.names.index(group)
    channels = net.groups.groups[index].channels
    expected = np.zeros(channels)
    for batch, wanted in ((images[:10], labels[:10]), (images[10:], labels[10:])):
        gate = torch.ones(channels, requires_grad=True)

        def scaled(module: torch.nn.Module, args: tuple[torch.Tensor], gate: torch.Tensor = gate) -> torch.Tensor:
            x = args[0]
            if x.ndim == 4:
                return x * gate[:, None, None]
            return x * gate.repeat_interleave(x.shape[1] // len(gate))

        handle = net.model.get_submodule(reader).register_forward_pre_hook(scaled)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net.model(batch), wanted), gate)
        handle.remove()
        expected += gradient.double().numpy() ** 2 / 2
    found = channel_choice.taylor(net.groups, net.model, images, labels)[index]
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(parameter.grad is None for parameter in net.model.parameters())
