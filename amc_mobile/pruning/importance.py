"""Which channels of each group to keep: a nested order, most important first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.ids import Ids
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import InvalidConfig
from amc_mobile.pruning import scores
from amc_mobile.pruning.choices import METHODS
from amc_mobile.pruning.contributions import contributions, greedy_removal, lasso, matching_pursuit
from amc_mobile.pruning.elimination import Fit, eliminate
from amc_mobile.pruning.gram import GramStatistics, LayerGram, group_channels
from amc_mobile.pruning.least_squares import factorised, ridged

# A layer with more columns takes over 10 CPU seconds and 0.5 GB: its groups are ordered by L1.
MAX_ELIMINATION_COLUMNS = 4608

Reader = tuple[str, LayerGram, Ids]  # a layer, its matrix, and where the group's channels stand along its inputs


def channel_order(
    groups: ChannelGroups,
    model: nn.Module,
    gram: GramStatistics,
    *,
    method: str = "backward",
    ridge: float = 1e-4,
    labelled: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Ids]:
    """For each group its channels, most important first.

    On the Gram matrices, the errors of all layers that read the group added up, each relative to the variance of its
    output: "backward", backward elimination with refitted weights; "omp", orthogonal matching pursuit; "lasso" (He et
    al. 2017); "thinet", greedy removal without refitting (Luo et al. 2017); "l1-rms", the absolute weights times the
    inputs they read. Without them: "l1", the absolute weights that read the channel (He et al. 2018, AMC); "fpgm", the
    distance to the geometric median of the filters (He et al. 2019); "taylor", the loss's derivative (Molchanov et al.
    2019) on `labelled`: normalised images (N, C, H, W) and their labels (N,).

    Groups without a Gram matrix where one is needed, or that a layer of more than MAX_ELIMINATION_COLUMNS columns
    reads ("backward", "omp"), are ordered by "l1".
    """
    if method not in METHODS:
        raise InvalidConfig(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    if method == "taylor":
        if labelled is None:
            raise InvalidConfig("the channel choice taylor needs labelled images")
        gates = scores.taylor(groups, model, *labelled)
        return {name: _falling(gate) for name, gate in zip(groups.names, gates, strict=True)}
    solver = _Solver(groups, gram, ridge)
    order: dict[str, Ids] = {}
    for index, group in enumerate(groups.groups):
        readers = [
            (name, gram.layers[name], places)
            for name in group.consumers
            if name in gram.layers
            and (places := group_channels(gram.layers[name].in_ids, index, group.channels)) is not None
        ]
        solvable = all(len(g.weight) <= MAX_ELIMINATION_COLUMNS for n in group.consumers if (g := gram.layers.get(n)))
        if method == "fpgm":
            order[group.name] = _falling(scores.geometric_median(groups, model, index))
        elif method == "l1-rms":
            order[group.name] = _falling(scores.l1_rms(groups, model, gram, index))
        elif method in ("lasso", "thinet") and readers:
            found = contributions([(reader, places) for _, reader, places in readers])
            order[group.name] = lasso(found) if method == "lasso" else greedy_removal(found)
        elif method == "omp" and readers and solvable:
            order[group.name] = matching_pursuit([(r, places, ridged(r.moment, ridge)) for _, r, places in readers])
        elif method == "backward" and readers and solvable:
            order[group.name] = solver.eliminated(index, readers)
        else:
            order[group.name] = _falling(scores.l1(groups, model, index))
    return order


class _Solver:
    """Backward elimination; the inverse of a matrix is kept while a later group reads the same layer."""

    def __init__(self, groups: ChannelGroups, gram: GramStatistics, ridge: float) -> None:
        self._ridge = ridge
        self._inverses: dict[str, Tensor] = {}
        self._last_reader = {name: index for index, group in enumerate(groups.groups) for name in group.consumers}

    def eliminated(self, group: int, readers: list[Reader]) -> Ids:
        fits = [self._fit(*reader) for reader in readers]
        self._inverses = {n: inverse for n, inverse in self._inverses.items() if self._last_reader[n] > group}
        return eliminate(fits, len(readers[0][2]))

    def _fit(self, name: str, reader: LayerGram, places: Ids) -> Fit:
        if name not in self._inverses:
            self._inverses[name] = torch.cholesky_inverse(factorised(reader.moment, self._ridge))
        columns = reader.columns(places.ravel())
        weight = reader.weight[columns] * reader.output_scale
        return Fit(self._inverses[name][columns][:, columns], weight, len(places), reader.output_variance)


def _falling(score: NDArray[np.float64]) -> Ids:
    return np.argsort(-score, kind="stable").astype(np.int64)


def kept_of(order: Mapping[str, Ids], widths: NDArray[np.int64]) -> dict[str, Ids]:
    """The channels that stay at `widths`, shape (groups,): the first of each group's order, sorted."""
    return {name: np.sort(ids[:width]) for (name, ids), width in zip(order.items(), widths, strict=True)}
