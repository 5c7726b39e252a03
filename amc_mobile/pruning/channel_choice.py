"""Which channels of each group to keep: a nested order, most important first.

Contributions: with Q_ij = tr(W_i' X_i'X_j W_j), summed over the readers of a group, the squared error of scaling
every channel's contribution by beta_i is a quadratic form in beta: no images are needed again.

Backward elimination: with P the inverse of the Gram matrix and W the weights refitted on the channels that are left,
dropping the block J raises the squared error by tr(W_J' P_JJ^-1 W_J); the downdates P -= P_J P_JJ^-1 P_J' and W -=
P_J P_JJ^-1 W_J keep both exact without another inverse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import lars_path_gram
from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.channels.plan import CHANNEL_CHOICES
from amc_mobile.channels.structure import ChannelGroups, DimensionIds, Ids
from amc_mobile.errors import InvalidConfig
from amc_mobile.pruning.gram import GramStatistics, LayerGram, as_columns, as_weight, group_channels
from amc_mobile.pruning.least_squares import DEFAULT_RIDGE, factorised, ridged

Floats = NDArray[np.float64]
Reader = tuple[str, LayerGram, Ids]  # a layer, its matrix, and the places of the group's channels along its inputs

# A layer with more columns takes over 10 CPU seconds and 0.5 GB: its groups are ordered by L1.
MAX_ELIMINATION_COLUMNS = 4608
COMPACT_BELOW = 0.75  # share of live columns under which the matrices are copied to their live part
TAYLOR_BATCH = 10  # images whose gradients are added up before they are squared
LASSO_RIDGE = 1e-6  # of the mean diagonal: channels whose contributions are equal must not make the path degenerate


def channel_order(
    groups: ChannelGroups,
    model: nn.Module,
    gram: GramStatistics,
    *,
    method: str = "backward",
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
    if method not in CHANNEL_CHOICES:
        raise InvalidConfig(f"method is {method!r}; allowed: {', '.join(CHANNEL_CHOICES)}")
    if method == "taylor":
        if labelled is None:
            raise InvalidConfig("the channel choice taylor needs labelled images")
        gates = taylor(groups, model, *labelled)
        return {name: _falling(gate) for name, gate in zip(groups.names, gates, strict=True)}
    solver = _Solver(groups)
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
            order[group.name] = _falling(geometric_median(groups, model, index))
        elif method == "l1-rms":
            order[group.name] = _falling(l1_rms(groups, model, gram, index))
        elif method in ("lasso", "thinet") and readers:
            found = contributions([(reader, places) for _, reader, places in readers])
            order[group.name] = lasso(found) if method == "lasso" else greedy_removal(found)
        elif method == "omp" and readers and solvable:
            order[group.name] = matching_pursuit(
                [(r, places, ridged(r.moment, DEFAULT_RIDGE)) for _, r, places in readers]
            )
        elif method == "backward" and readers and solvable:
            order[group.name] = solver.eliminated(index, readers)
        else:
            order[group.name] = _falling(l1(groups, model, index))
    return order


def l1_order(groups: ChannelGroups, model: nn.Module) -> dict[str, Ids]:
    """`channel_order` by "l1", which needs no images."""
    return {name: _falling(l1(groups, model, index)) for index, name in enumerate(groups.names)}


def kept_of(order: Mapping[str, Ids], widths: NDArray[np.int64]) -> dict[str, Ids]:
    """The channels that stay at `widths`, shape (groups,): the first of each group's order, sorted."""
    return {name: np.sort(ids[:width]) for (name, ids), width in zip(order.items(), widths, strict=True)}


@dataclass(frozen=True, eq=False)
class Contributions:
    """`products`: (channels, channels), Q; `with_target`: (channels,), tr(W_i' X_i' Y) for the readers' outputs Y."""

    products: Floats
    with_target: Floats


def contributions(readers: Sequence[tuple[LayerGram, Ids]]) -> Contributions:
    """`readers`: layers with the places of each channel along their inputs, (channels, times).

    Every reader counts relative to the variance of its output, behind its batch norm.
    """
    channels = len(readers[0][1])
    products, target = np.zeros((channels, channels)), np.zeros(channels)
    for gram, places in readers:
        columns = gram.columns(places.ravel())
        weight = gram.weight[columns] * gram.output_scale
        entries = (gram.moment[columns][:, columns] * (weight @ weight.T)).view(
            channels, -1, channels, len(columns) // channels
        )
        products += (entries.sum((1, 3)) / gram.output_variance).numpy()
        toward = (gram.projection[columns] * gram.output_scale * weight).sum(1).view(channels, -1).sum(1)
        target += (toward / gram.output_variance).numpy()
    return Contributions(products, target)


def greedy_removal(given: Contributions) -> Ids:
    """Most important first: next to last goes the channel whose loss, with those gone before, disturbs the readers'
    outputs least, their weights left as they are (Luo et al. 2017, ThiNet)."""
    cost = given.products.diagonal().copy()  # of losing a channel as well: Q_ii + 2 x the sum of Q_ij over those gone
    gone: list[int] = []
    for _ in range(len(cost)):
        channel = int(cost.argmin())
        gone.append(channel)
        cost += 2 * given.products[channel]
        cost[channel] = np.inf
    return np.array(gone[::-1], dtype=np.int64)


def lasso(given: Contributions) -> Ids:
    """Most important first: in the order in which channels enter as the penalty on sum |beta_i| falls (He et al. 2017).

    The published method searches the penalty that leaves n channels; along the exact path those are the first n to
    enter, unless one has left again. Channels that never enter come last, the smallest contribution at the very end.
    """
    size = len(given.with_target)
    ridge = LASSO_RIDGE * max(float(given.products.diagonal().mean()), 1e-30)
    _, _, path = lars_path_gram(
        given.with_target, given.products + ridge * np.eye(size), n_samples=1, method="lasso", max_iter=8 * size
    )
    entered = np.where((path != 0).any(axis=1), (path != 0).argmax(axis=1), path.shape[1])
    return np.lexsort((-given.products.diagonal(), entered)).astype(np.int64)


def matching_pursuit(problems: Sequence[tuple[LayerGram, Ids, torch.Tensor]]) -> Ids:
    """Most important first: orthogonal matching pursuit on blocks of columns, each channel one block.

    Next comes the channel that explains most of what the least squares on the chosen ones leave, taken alone; then
    all weights are solved again. `problems`: readers as in `contributions`, each with its ridged moment (columns,
    columns). Columns of other groups are chosen from the start.
    """
    pursuits = [_Pursuit(*problem) for problem in problems]
    left = list(range(len(problems[0][1])))
    order = []
    while left:
        channel = left[int(np.sum([p.explained(left) for p in pursuits], axis=0).argmax())]
        for pursuit in pursuits:
            pursuit.take(channel)
        order.append(channel)
        left.remove(channel)
    return np.array(order, dtype=np.int64)


class _Pursuit:
    """One reader: the residual's products with all columns, and the columns made orthogonal to the chosen ones."""

    def __init__(self, gram: LayerGram, places: Ids, moment: torch.Tensor) -> None:
        self._norm = gram.output_variance
        self._columns = gram.columns(places.ravel()).view(len(places), -1)
        blocks = torch.stack([moment[block][:, block] for block in self._columns])
        self._blocks = torch.linalg.cholesky(blocks)
        self._left = moment.clone()  # products of what the chosen columns cannot explain
        self._residual = moment @ (gram.weight * gram.output_scale)
        others = torch.ones(len(moment), dtype=torch.bool)
        others[self._columns.ravel()] = False
        if others.any():
            self._project(others.nonzero().flatten())

    def explained(self, channels: Sequence[int]) -> Floats:
        whitened = torch.linalg.solve_triangular(
            self._blocks[channels], self._residual[self._columns[channels]], upper=False
        )
        return np.asarray(whitened.square().sum((1, 2)).numpy() / self._norm)

    def take(self, channel: int) -> None:
        self._project(self._columns[channel])

    def _project(self, block: torch.Tensor) -> None:
        across = self._left[:, block].clone()
        factor = torch.linalg.solve(across[block], torch.cat([across.T, self._residual[block]], 1))
        self._left.addmm_(across, factor[:, : len(self._left)], alpha=-1)
        self._residual.addmm_(across, factor[:, len(self._left) :], alpha=-1)


class Fit:
    """One layer's least-squares fit while channels are removed.

    `inverse`: (n, n), the rows and columns of the inverse Gram matrix that belong to the group, channel by channel,
    the same number for each; other columns of the layer stay in the fit and need not be given. `weight`: (n,
    outputs). `norm`: errors are divided by it. Both tensors are changed in place.
    """

    def __init__(self, inverse: Tensor, weight: Tensor, channels: int, norm: float) -> None:
        self._inverse, self._weight, self._norm = inverse, weight, norm
        self._block = len(weight) // channels
        self._place = np.arange(channels)  # of each channel in the matrices; -1 once it is gone
        self._alive = torch.ones(channels, dtype=torch.bool)  # by place

    def increases(self) -> np.ndarray:
        """(channels,): the error that dropping each would add; infinite for those that are gone."""
        block, places = self._block, len(self._alive)
        weight = self._weight.view(places, block, -1)
        blocks = self._inverse.view(places, block, places, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        if block == 1:
            raised = weight.square().sum((1, 2)) / torch.where(self._alive, blocks[:, 0, 0], 1.0)
        else:
            blocks = torch.where(self._alive[:, None, None], blocks, torch.eye(block, dtype=blocks.dtype))
            raised = torch.linalg.solve(blocks, weight @ weight.mT).diagonal(dim1=1, dim2=2).sum(1)
        here = (raised / self._norm).numpy()
        return np.where(self._place >= 0, here[self._place], np.inf)

    def remove(self, channel: int) -> None:
        place, block = int(self._place[channel]), self._block
        rows = slice(place * block, (place + 1) * block)
        across = self._inverse[:, rows].clone()
        factor = torch.linalg.solve(across[rows], torch.cat([across.T, self._weight[rows]], 1))
        self._inverse.addmm_(across, factor[:, : len(self._inverse)], alpha=-1)
        self._weight.addmm_(across, factor[:, len(self._inverse) :], alpha=-1)
        self._weight[rows] = 0
        self._alive[place] = False
        self._place[channel] = -1
        if self._alive.float().mean() < COMPACT_BELOW:
            self._compact()

    def _compact(self) -> None:
        live = self._alive.repeat_interleave(self._block).nonzero().flatten()
        self._inverse = self._inverse[live][:, live].contiguous()
        self._weight = self._weight[live].contiguous()
        renumbered = np.cumsum(self._alive.numpy()) - 1
        self._place = np.where(self._place >= 0, renumbered[self._place], -1)
        self._alive = torch.ones(int(self._alive.sum()), dtype=torch.bool)


def eliminate(fits: Sequence[Fit], channels: int) -> Ids:
    """All channels, most important first: each next to last one adds least to the sum of the fits' errors."""
    gone: list[int] = []
    left = set(range(channels))
    while len(left) > 1:
        channel = int(np.sum([fit.increases() for fit in fits], axis=0).argmin())
        for fit in fits:
            fit.remove(channel)
        gone.append(channel)
        left.remove(channel)
    return np.array([*left, *reversed(gone)], dtype=np.int64)


def l1(groups: ChannelGroups, model: nn.Module, group: int) -> Floats:
    """(channels,): the absolute weights that read each channel (He et al. 2018, AMC), each layer's with sum one."""
    return _sum_over_readers(groups, group, lambda name: _weight(model, name).abs())


def l1_rms(groups: ChannelGroups, model: nn.Module, gram: GramStatistics, group: int) -> Floats:
    """(channels,): as `l1`, every weight times the root mean square of the input that it reads."""

    def scaled(name: str) -> Tensor:
        weight = _weight(model, name).abs().double()
        if name in gram.layers:
            layer = gram.layers[name]
            columns = as_columns(weight, transposed=layer.transposed)
            columns = columns * layer.moment.diagonal().clamp_min(0).sqrt()[:, None]
            weight = as_weight(columns, weight.shape, transposed=layer.transposed)
        return weight

    return _sum_over_readers(groups, group, scaled)


def geometric_median(groups: ChannelGroups, model: nn.Module, group: int) -> Floats:
    """(channels,): the distances of the filter that makes a channel to all others of its layer (He et al. 2019, FPGM).

    A filter near the geometric median of its layer can be replaced by the others. Each layer's scores have sum one.
    """
    total = np.zeros(groups.groups[group].channels)
    for ids, axis, name in _places(groups, group, read=False):
        filters = _weight(model, name).double().movedim(axis, 0).flatten(1)
        inside = ids.group == group
        here = filters[torch.from_numpy(np.flatnonzero(inside))]
        distances = torch.cdist(here, here, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()
        score = np.bincount(ids.position[inside], weights=distances, minlength=len(total))
        total += score / max(score.sum(), 1e-30)
    return total


def taylor(groups: ChannelGroups, model: nn.Module, images: Tensor, labels: Tensor) -> list[Floats]:
    """Per group (channels,): by how much the loss changes without a channel, to first order (Molchanov et al. 2019).

    The derivative of the cross-entropy by a gate on what reads the channel, squared, and averaged over batches of
    TAYLOR_BATCH images. Readers are linear in channel and weight alike, so the gate's derivative is the sum of weight
    times gradient over the weights that read the channel. `images`: normalised (N, C, H, W); `labels`: (N,).
    """
    net = copy.deepcopy(model).eval().requires_grad_(True)
    totals = [np.zeros(group.channels) for group in groups.groups]
    for batch, targets in zip(torch.split(images, TAYLOR_BATCH), torch.split(labels, TAYLOR_BATCH), strict=True):
        net.zero_grad(set_to_none=True)
        with torch.enable_grad():
            functional.cross_entropy(net(batch), targets).backward()  # type: ignore[no-untyped-call]
        for group, total in enumerate(totals):
            gate = np.zeros(len(total))
            for ids, axis, name in _places(groups, group, read=True):
                gate += _sums(ids, group, len(total), _sensitivity(net, name), axis)
            total += gate**2
    return [total * TAYLOR_BATCH / len(images) for total in totals]


def _sensitivity(net: nn.Module, name: str) -> Tensor:
    weight = net.get_parameter(f"{name}.weight")
    return weight.detach() * (weight.grad if weight.grad is not None else 0)


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").detach()


def _sum_over_readers(groups: ChannelGroups, group: int, value: Callable[[str], Tensor]) -> Floats:
    channels = groups.groups[group].channels
    total = np.zeros(channels)
    for ids, axis, name in _places(groups, group, read=True):
        score = _sums(ids, group, channels, value(name), axis)
        total += score / max(score.sum(), 1e-30)
    return total


def _places(groups: ChannelGroups, group: int, *, read: bool) -> Iterator[tuple[DimensionIds, int, str]]:
    """The channels along one axis of the weight of each layer that reads a group, or makes it; whichever there is."""
    layers = {layer.name: layer for layer in groups.layers}
    info = groups.groups[group]
    readers = [(layers[n].in_ids, 0 if layers[n].kind == "transposed" else 1, n) for n in info.consumers]
    makers = [(layers[n].out_ids, 1 if layers[n].kind == "transposed" else 0, n) for n in info.producers]
    yield from (readers or makers) if read else (makers or readers)


def _sums(ids: DimensionIds, group: int, channels: int, values: Tensor, axis: int) -> Floats:
    """(channels,): `values` added up over all entries that belong to each channel along `axis`."""
    by_position = values.double().movedim(axis, 0).flatten(1).sum(1).numpy()
    inside = ids.group == group
    sums = np.bincount(ids.position[inside], weights=by_position[inside], minlength=channels)
    return sums.astype(np.float64)


class _Solver:
    """Backward elimination; the inverse of a matrix is kept while a later group reads the same layer."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._inverses: dict[str, Tensor] = {}
        self._last_reader = {name: index for index, group in enumerate(groups.groups) for name in group.consumers}

    def eliminated(self, group: int, readers: list[Reader]) -> Ids:
        fits = [self._fit(*reader) for reader in readers]
        self._inverses = {n: inverse for n, inverse in self._inverses.items() if self._last_reader[n] > group}
        return eliminate(fits, len(readers[0][2]))

    def _fit(self, name: str, reader: LayerGram, places: Ids) -> Fit:
        if name not in self._inverses:
            self._inverses[name] = torch.cholesky_inverse(factorised(reader.moment, DEFAULT_RIDGE))
        columns = reader.columns(places.ravel())
        weight = reader.weight[columns] * reader.output_scale
        return Fit(self._inverses[name][columns][:, columns], weight, len(places), reader.output_variance)


def _falling(score: NDArray[np.float64]) -> Ids:
    return np.argsort(-score, kind="stable").astype(np.int64)
