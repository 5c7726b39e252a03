"""Which channels of each group to keep: a nested order, most important first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.ids import DimensionIds, Ids
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import InvalidConfig
from amc_mobile.pruning.elimination import Fit, eliminate
from amc_mobile.pruning.gram import GramStatistics, LayerGram, group_channels
from amc_mobile.pruning.least_squares import factorised

METHODS = ("backward", "l1")
# A layer with more columns takes over 10 CPU seconds and 0.5 GB: its groups are ordered by L1.
MAX_ELIMINATION_COLUMNS = 4608


def channel_order(
    groups: ChannelGroups,
    model: nn.Module,
    gram: GramStatistics,
    *,
    method: str = "backward",
    ridge: float = 1e-4,
) -> dict[str, Ids]:
    """For each group its channels, most important first.

    "backward": backward elimination on the Gram matrices, the errors of all layers that read the group added up,
    each relative to the variance of its output. Groups that a layer of more than MAX_ELIMINATION_COLUMNS columns
    reads, or none with a Gram matrix, are ordered by "l1": the sum of the absolute weights that read the channel
    (He et al. 2018, AMC), each layer's scaled to a sum of one.
    """
    if method not in METHODS:
        raise InvalidConfig(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    order: dict[str, Ids] = {}
    inverses: dict[str, Tensor] = {}
    last_reader = {name: index for index, group in enumerate(groups.groups) for name in group.consumers}
    for index, group in enumerate(groups.groups):
        readers = {name: gram.layers[name] for name in group.consumers if name in gram.layers}
        fits = []
        if method == "backward" and all(len(r.weight) <= MAX_ELIMINATION_COLUMNS for r in readers.values()):
            for name, reader in readers.items():
                if name not in inverses:
                    inverses[name] = torch.cholesky_inverse(factorised(reader.moment, ridge))
                fit = _fit(reader, inverses[name], index, group.channels)
                fits += [fit] if fit is not None else []
        if fits:
            order[group.name] = eliminate(fits, group.channels)
        else:
            order[group.name] = np.argsort(-_l1(groups, model, index), kind="stable").astype(np.int64)
        inverses = {name: inverse for name, inverse in inverses.items() if last_reader[name] > index}
    return order


def _fit(reader: LayerGram, inverse: Tensor, group: int, channels: int) -> Fit | None:
    places = group_channels(reader.in_ids, group, channels)
    if places is None:
        return None
    columns = reader.columns(places.ravel())
    weight = reader.weight[columns] * reader.output_scale
    return Fit(inverse[columns][:, columns], weight, channels, reader.output_variance)


def _l1(groups: ChannelGroups, model: nn.Module, index: int) -> NDArray[np.float64]:
    """(channels,): from the layers that read the group, or from those that make it if none does."""
    group = groups.groups[index]
    layers = {layer.name: layer for layer in groups.layers}
    read = [(layers[n].in_ids, 0 if layers[n].kind == "transposed" else 1, n) for n in group.consumers]
    made = [(layers[n].out_ids, 1 if layers[n].kind == "transposed" else 0, n) for n in group.producers]
    scores = np.zeros(group.channels)
    for ids, axis, name in read or made:
        score = _absolute_sum(ids, index, group.channels, model.get_parameter(f"{name}.weight"), axis)
        scores += score / max(score.sum(), 1e-30)
    return scores


def _absolute_sum(ids: DimensionIds, group: int, channels: int, weight: Tensor, axis: int) -> NDArray[np.float64]:
    by_position = weight.detach().abs().double().movedim(axis, 0).flatten(1).sum(1).numpy()
    inside = ids.group == group
    sums = np.bincount(ids.position[inside], weights=by_position[inside], minlength=channels)
    return sums.astype(np.float64)


def kept_of(order: Mapping[str, Ids], widths: NDArray[np.int64]) -> dict[str, Ids]:
    """The channels that stay at `widths`, shape (groups,): the first of each group's order, sorted."""
    return {name: np.sort(ids[:width]) for (name, ids), width in zip(order.items(), widths, strict=True)}
