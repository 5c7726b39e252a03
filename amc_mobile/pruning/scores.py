"""Channel choices that score every channel by itself: by weights, by inputs, by gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.channels.ids import DimensionIds
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.pruning.gram import GramStatistics
from amc_mobile.pruning.rows import as_columns, as_weight

Scores = NDArray[np.float64]
TAYLOR_BATCH = 10  # images whose gradients are added up before they are squared
Of = Callable[[str], Tensor]  # a layer's weight, or another tensor of its shape, by the layer's name


def l1(groups: ChannelGroups, model: nn.Module, group: int) -> Scores:
    """(channels,): the absolute weights that read each channel (He et al. 2018, AMC), each layer's with sum one."""
    return _sum_over_readers(groups, group, lambda name: _weight(model, name).abs())


def l1_rms(groups: ChannelGroups, model: nn.Module, gram: GramStatistics, group: int) -> Scores:
    """(channels,): as `l1`, every weight times the root mean square of the input that it reads."""

    def scaled(name: str) -> Tensor:
        weight = _weight(model, name).abs().double()
        if name in gram.layers:
            known = gram.layers[name]
            columns = as_columns(weight, transposed=known.transposed)
            columns = columns * known.moment.diagonal().clamp_min(0).sqrt()[:, None]
            weight = as_weight(columns, weight.shape, transposed=known.transposed)
        return weight

    return _sum_over_readers(groups, group, scaled)


def geometric_median(groups: ChannelGroups, model: nn.Module, group: int) -> Scores:
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


def taylor(groups: ChannelGroups, model: nn.Module, images: Tensor, labels: Tensor) -> list[Scores]:
    """Per group (channels,): by how much the loss changes without a channel, to first order (Molchanov et al. 2019).

    The derivative of the cross-entropy by a gate on what reads the channel, squared, and averaged over batches of
    TAYLOR_BATCH images. Readers are linear in channel and weight alike, so the gate's derivative is the sum of weight
    times gradient over the weights that read the channel. `images`: normalised (N, C, H, W); `labels`: (N,).
    """
    net = copy.deepcopy(model).eval().requires_grad_(True)
    totals = [np.zeros(group.channels) for group in groups.groups]
    for batch, wanted in zip(torch.split(images, TAYLOR_BATCH), torch.split(labels, TAYLOR_BATCH), strict=True):
        net.zero_grad(set_to_none=True)
        with torch.enable_grad():
            functional.cross_entropy(net(batch), wanted).backward()  # type: ignore[no-untyped-call]
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


def _sum_over_readers(groups: ChannelGroups, group: int, value: Of) -> Scores:
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


def _sums(ids: DimensionIds, group: int, channels: int, values: Tensor, axis: int) -> Scores:
    """(channels,): `values` added up over all entries that belong to each channel along `axis`."""
    by_position = values.double().movedim(axis, 0).flatten(1).sum(1).numpy()
    inside = ids.group == group
    sums = np.bincount(ids.position[inside], weights=by_position[inside], minlength=channels)
    return sums.astype(np.float64)
