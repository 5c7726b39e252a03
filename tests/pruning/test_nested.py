from __future__ import annotations

import numpy as np
import pytest
import torch
from traced_networks import subject

from amc_mobile.pruning.gram import group_channels
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, Matrices, corrected
from amc_mobile.pruning.reconstruction import NestedSolver


@pytest.mark.parametrize(("name", "layer"), [("Flattened", "classifier.0"), ("Flattened", "features.2.0")])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_prefix_is_solved_as_the_columns_alone_would_be(name: str, layer: str, share: float) -> None:
    net = subject(name)
    gram = net.gram.layers[layer]
    group = int(gram.in_ids.group[0])
    places = group_channels(gram.in_ids, group, net.groups.groups[group].channels)
    assert places is not None
    order = places[np.random.default_rng(0).permutation(len(places))]
    kept = order[: int(len(order) * share)]
    ridge = DEFAULT_RIDGE * float(gram.moment.diagonal().mean())  # of all columns, whatever the prefix
    columns = gram.columns(np.sort(kept.ravel()))
    moment, weight = gram.moment[columns][:, columns], gram.weight[columns]
    wanted = weight + corrected(
        moment, gram.projection[columns] - moment @ weight, ridge / float(moment.diagonal().mean())
    )
    solved = NestedSolver(gram, order, Matrices()).solve(kept.size)
    assert solved.shape == wanted.shape
    torch.testing.assert_close(solved.double(), wanted, rtol=1e-4, atol=1e-5)
    if share == 1.0:
        torch.testing.assert_close(solved.double(), gram.weight, rtol=1e-4, atol=1e-5)
