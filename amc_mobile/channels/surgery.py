"""The only code that cuts tensors: all groups at once, in original indices."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc_mobile.channels.ids import Ids
from amc_mobile.channels.structure import ChannelGroups


def sliced_state(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Ids]) -> dict[str, Tensor]:
    """The parameters and buffers that hold channels, cut to size, by name. The tensors are copies."""
    lists = groups.kept_lists(kept)
    cut: dict[str, Tensor] = {}
    for name, dims in groups.parameters.items():
        original = tensor = _tensor(model, name).detach()
        for axis, ids in enumerate(dims):
            if ids is not None and not ids.is_fixed:
                surviving = torch.from_numpy(ids.surviving(lists)).to(tensor.device)
                tensor = tensor.index_select(axis, surviving)
        cut[name] = tensor.clone() if tensor is original else tensor
    return cut


def apply(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Ids]) -> nn.Module:
    """A new, smaller network that keeps the channels `kept` of each group; `model` is left as it was."""
    state = sliced_state(model, groups, kept)
    # Copying the network puts the cut tensors in place of the originals, in every module that shares one.
    memo: dict[int, Tensor] = {}
    for name, tensor in state.items():
        original = _tensor(model, name)
        if isinstance(original, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=original.requires_grad)
        memo[id(original)] = tensor
    pruned = copy.deepcopy(model, memo)
    for module in pruned.modules():
        resize(module)
    return pruned


def mask_consumers(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Ids]) -> nn.Module:
    """The network at its original size with zero weights on the channels that `kept` leaves out."""
    masked = copy.deepcopy(model)
    lists = groups.kept_lists(kept)
    for layer in groups.layers:
        if layer.kind not in ("conv", "linear", "transposed"):
            continue
        weight = _tensor(masked, f"{layer.name}.weight").detach()
        gone = torch.ones(len(layer.in_ids), dtype=torch.bool)
        gone[torch.from_numpy(layer.in_ids.surviving(lists))] = False
        weight.index_fill_(0 if layer.kind == "transposed" else 1, gone.nonzero().flatten().to(weight.device), 0.0)
    return masked


def _tensor(model: nn.Module, name: str) -> Tensor:
    module, _, attribute = name.rpartition(".")
    value = getattr(model.get_submodule(module), attribute)
    assert isinstance(value, Tensor)
    return value


def resize(module: nn.Module) -> None:
    """Brings the attributes that describe a module's width in line with its weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            module.groups = weight.shape[0]
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape[0], weight.shape[1]
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
