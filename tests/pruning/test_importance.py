from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from traced_networks import first_order, halves, subject

from amc_mobile.channels.plan import CHANNEL_CHOICES
from amc_mobile.errors import InvalidConfig
from amc_mobile.pruning import channel_choice
from amc_mobile.pruning.channel_choice import channel_order, kept_of
from amc_mobile.pruning.gram import GramStatistics
from amc_mobile.pruning.reconstruction import Reconstructor


@pytest.mark.parametrize("method", CHANNEL_CHOICES)
@pytest.mark.parametrize("name", PRUNABLE)
def test_an_order_holds_every_channel_of_every_group_once(name: str, method: str) -> None:
    net = subject(name)
    labels = torch.arange(len(net.images)) % 5
    order = channel_order(net.groups, net.model, net.gram, method=method, labelled=(net.images, labels))
    assert list(order) == list(net.groups.names)
    for group in net.groups.groups:
        assert sorted(order[group.name]) == list(range(group.channels))


def test_l1_adds_the_absolute_weights_of_the_reader() -> None:
    net = subject("PaddedShortcut")
    order = channel_order(net.groups, net.model, net.gram, method="l1")
    scores = net.model.a2.weight.detach().abs().sum((0, 2, 3)).numpy()
    assert order["a1.0"].tolist() == np.argsort(-scores).tolist()


def test_l1_counts_all_features_of_a_flattened_channel() -> None:
    net = subject("Flattened")
    order = channel_order(net.groups, net.model, net.gram, method="l1")
    scores = net.model.classifier[0].weight.detach().abs().sum(0).reshape(12, 4).sum(1).numpy()
    assert order["features.2.0"].tolist() == np.argsort(-scores).tolist()


@pytest.mark.parametrize("name", ["PaddedShortcut", "DenseLike", "Flattened", "SqueezeExcite", "PaddedDepthwise"])
def test_backward_elimination_loses_less_than_the_first_channels(name: str) -> None:
    net = subject(name)
    chosen = Reconstructor(net.model, net.groups, net.gram, channel_order(net.groups, net.model, net.gram))
    first = Reconstructor(net.model, net.groups, net.gram, first_order(net.groups))
    widths = halves(net.groups)
    errors = [[float(r.group_errors(g, widths[g : g + 1])[0]) for g in range(len(widths))] for r in (chosen, first)]
    # Greedy in squared errors without a ridge's own error: allow rounding.
    assert all(a <= b * 1.02 + 1e-9 for a, b in zip(*errors, strict=True))
    assert sum(errors[0]) < 0.9 * sum(errors[1])


def test_groups_without_matrices_or_with_too_many_columns_are_ordered_by_l1(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("PaddedShortcut")
    by_l1 = channel_order(net.groups, net.model, net.gram, method="l1")
    without = channel_order(net.groups, net.model, GramStatistics({}))
    assert all(np.array_equal(without[name], by_l1[name]) for name in by_l1)
    monkeypatch.setattr(channel_choice, "MAX_ELIMINATION_COLUMNS", 9 * 8)  # a2 has as many, b2 twice as many
    mixed = channel_order(net.groups, net.model, net.gram)
    assert np.array_equal(mixed["b1.0"], by_l1["b1.0"])
    assert not np.array_equal(mixed["a1.0"], by_l1["a1.0"])


def test_an_unknown_method_is_refused() -> None:
    net = subject("PaddedShortcut")
    with pytest.raises(InvalidConfig, match="'l0'; allowed: backward, omp, lasso"):
        channel_order(net.groups, net.model, net.gram, method="l0")
    with pytest.raises(InvalidConfig, match="taylor needs labelled images"):
        channel_order(net.groups, net.model, net.gram, method="taylor")


def test_kept_channels_are_the_first_of_the_order_sorted() -> None:
    order = {"a": np.array([3, 0, 2, 1]), "b": np.array([1, 0])}
    kept = kept_of(order, np.array([2, 2]))
    assert {name: ids.tolist() for name, ids in kept.items()} == {"a": [0, 3], "b": [0, 1]}
    assert torch.equal(torch.from_numpy(kept["a"]), torch.tensor([0, 3]))
