"""The only code that cuts tensors: all groups at once, in original indices."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc_mobile.channels.groups import ChannelGroups
from amc_mobile.channels.ids import Ids


def sliced_state(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Ids]) -> dict[str, Tensor]:
    """The parameters and buffers that a plan changes, cut to size, by name. The tensors are copies."""
    lists = groups.kept_lists(kept)
    cut: dict[str, Tensor] = {}
    for name, dims in groups.parameters.items():
        tensor = _tensor(model, name)
        for axis, ids in enumerate(dims):
            if ids is not None and not ids.is_fixed:
                tensor = tensor.index_select(axis, torch.from_numpy(ids.surviving(lists)))
        cut[name] = tensor.clone() if tensor is _tensor(model, name) else tensor
    return cut


def apply(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Ids]) -> nn.Module:
    """A new, smaller network that keeps the channels `kept` of each group; `model` is left as it was."""
    state = sliced_state(model, groups, kept)
    # Parameters that are replaced are not copied first.
    memo = {id(_tensor(model, name)): _tensor(model, name) for name in state}
    pruned = copy.deepcopy(model, memo)
    for name, tensor in state.items():
        module = pruned.get_submodule(name.rpartition(".")[0])
        attribute = name.rpartition(".")[2]
        if attribute in module._parameters:
            trained = _parameter(model, name).requires_grad
            module._parameters[attribute] = nn.Parameter(tensor, requires_grad=trained)
        else:
            module._buffers[attribute] = tensor
        if attribute == "weight":
            _resize(module, tensor)
    return pruned


def mask_consumers(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Ids]) -> nn.Module:
    """The network at its original size with zero weights on the channels that `kept` leaves out."""
    masked = copy.deepcopy(model)
    lists = groups.kept_lists(kept)
    for layer in groups.layers:
        if layer.kind not in ("conv", "linear", "transposed"):
            continue
        weight = _tensor(masked, f"{layer.name}.weight")
        gone = torch.ones(len(layer.in_ids), dtype=torch.bool)
        gone[torch.from_numpy(layer.in_ids.surviving(lists))] = False
        weight.index_fill_(0 if layer.kind == "transposed" else 1, gone.nonzero().flatten(), 0.0)
    return masked


def _tensor(model: nn.Module, name: str) -> Tensor:
    module = model.get_submodule(name.rpartition(".")[0])
    value = getattr(module, name.rpartition(".")[2])
    assert isinstance(value, Tensor)
    return value.detach()


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(name)


def _resize(module: nn.Module, weight: Tensor) -> None:
    """Keeps the attributes that describe a module's width in line with its weight."""
    if isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        if module.groups > 1 and module.groups == module.in_channels:
            module.groups = module.in_channels = weight.shape[0]
        else:
            module.in_channels = weight.shape[1] * module.groups
        module.out_channels = weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape[0], weight.shape[1]
    elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
