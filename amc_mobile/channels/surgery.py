"""The only code that cuts tensors: all groups at once, in original indices."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc_mobile.channels.structure import ChannelGroups, Ids


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
    return with_tensors(model, [(_tensor(model, n), cut) for n, cut in sliced_state(model, groups, kept).items()])


def with_tensors(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy of `model` with new tensors; its modules have their widths. `pairs`: (tensor of `model`, its successor).

    A tensor that several modules share is replaced in all of them. The successors are not copied.
    """
    memo: dict[int, Any] = {}
    for original, tensor in pairs:
        if isinstance(original, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=original.requires_grad)
        memo[id(original)] = tensor
    built = copied(model, memo)
    for module in built.modules():
        resize(module)
    return built


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, some times as fast: most attributes of modules need no copy.

    `memo`: by id, what is put in place of a module or tensor.
    """
    if (replacement := memo.get(id(model))) is not None:
        return replacement  # type: ignore[no-any-return]
    kind = type(model)
    if hasattr(kind, "__deepcopy__") or any(getattr(kind, name) is not getattr(nn.Module, name) for name in _PICKLING):
        return copy.deepcopy(model, memo)
    twin = memo[id(model)] = kind.__new__(kind)
    for name, value in model.__dict__.items():
        if name == "_modules":
            value = {key: None if module is None else copied(module, memo) for key, module in value.items()}
        elif name in ("_parameters", "_buffers"):
            value = {key: copy.deepcopy(tensor, memo) for key, tensor in value.items()}
        elif isinstance(value, (dict, list, set)) and not value:
            value = type(value)()
        elif not _is_constant(value):
            value = copy.deepcopy(value, memo)
        twin.__dict__[name] = value
    return twin


_PICKLING = [name for name in ("__reduce_ex__", "__reduce__", "__getstate__") if hasattr(nn.Module, name)]


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_constant(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


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
