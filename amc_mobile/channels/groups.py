"""Channel groups: which channels of which parameters have to be cut together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.ids import FIXED, DimensionIds, Ids
from amc_mobile.channels.plan import MIN_CHANNELS
from amc_mobile.channels.trace import IdTrace, Parameter, TracedLayer, module_path
from amc_mobile.errors import UnsupportedLayer


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that layers share. `producers` make them, `consumers` read them; both are module paths."""

    name: str  # its first producer
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class KeptGroup:
    """Channels that cannot be cut, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer in the order of execution. Sizes are those of the unpruned network."""

    name: str
    kind: str  # "conv", "depthwise", "grouped", "transposed" or "linear"
    in_ids: DimensionIds
    out_ids: DimensionIds
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    in_size: tuple[int, int]  # height, width; (1, 1) for a linear layer
    out_size: tuple[int, int]
    has_bias: bool


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The groups in order of first use, and where their channels stand in every parameter."""

    groups: tuple[ChannelGroup, ...]
    kept_groups: tuple[KeptGroup, ...]
    parameters: Mapping[str, tuple[DimensionIds | None, ...]]
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def channels(self) -> dict[str, int]:
        return {group.name: group.channels for group in self.groups}

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.array([group.channels for group in self.groups], dtype=np.int64)

    def kept_lists(self, kept: Mapping[str, Ids]) -> list[Ids]:
        """`kept` in group order; groups that are not named keep everything."""
        return [np.asarray(kept.get(g.name, np.arange(g.channels)), dtype=np.int64) for g in self.groups]

    def surviving(self, ids: DimensionIds, kept: Mapping[str, Ids]) -> Ids:
        return ids.surviving(self.kept_lists(kept))


def find_groups(model: nn.Module, example: Tensor) -> ChannelGroups:
    """Finds the channel groups of `model`, which is left as it was.

    `example`: (N, C, H, W). Raises UnsupportedLayer naming the module and the operator that cannot be traced.
    """
    program = exported(model, example)
    signature = program.graph_signature
    trace = IdTrace(program.graph_module)
    arguments: list[Any] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        name = (
            signature.inputs_to_parameters.get(node.name)
            or signature.inputs_to_buffers.get(node.name)
            or signature.inputs_to_lifted_tensor_constants.get(node.name)
        )
        value = node.meta["val"]
        arguments.append(
            Parameter(name, tuple(value.shape)) if name else torch.full((), FIXED, dtype=torch.int64).expand(value.shape)
        )
    for output in trace.run(*arguments, enable_io_processing=False):
        if isinstance(output, Tensor) and not output.is_floating_point():
            trace.fixed.append((np.unique(output.numpy()), "network output"))
    return _group(trace, tuple(example.shape))


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The `torch.export` program of a copy of `model` in evaluation mode, with static shapes."""
    clone = copy.deepcopy(model).eval()
    called: list[str] = []
    names = {module: name for name, module in clone.named_modules()}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(names[module])) for module in names
    ]
    try:
        with torch.no_grad():
            clone(example)
    except Exception as error:
        raise UnsupportedLayer(
            called[-1] if called else "", f"does not run on an input of shape {tuple(example.shape)}: {error}",
            next_step="check the network and --input-size",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    try:
        with torch.no_grad():
            return torch.export.export(clone, (example,))
    except Exception as error:
        text = str(error).strip().splitlines()
        where, operator = _where_export_failed(clone, example, error)
        raise UnsupportedLayer(
            where,
            f"torch.export cannot trace {operator}: {text[0] if text else type(error).__name__}",
            next_step="replace control flow that depends on the data, or prune a part of the network without it",
        ) from error


def _where_export_failed(model: nn.Module, example: Tensor, error: Exception) -> tuple[str, str]:
    """(module path, operator): the innermost module that cannot be exported alone, and the line it stopped at."""
    import traceback

    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, args))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    where = ""
    for name, module in model.named_modules():
        inside = not where or name.startswith(where + ".")
        if not name or not inside or name not in inputs:
            continue
        try:
            with torch.no_grad():
                torch.export.export(module, inputs[name])
        except Exception:
            where = name
    source = model.get_submodule(where).__class__.__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "torch" not in f.filename]
    line = next((f.line for f in reversed(frames) if f.name == "forward" and f.line), "")
    return where, f"{source}.forward" + (f" at `{line}`" if line else "")


def _group(trace: IdTrace, input_shape: tuple[int, ...]) -> ChannelGroups:
    before = trace.ids.roots()
    reasons: dict[int, str] = {}
    for ids, why in trace.fixed:
        for root in np.unique(before[ids]):
            reasons.setdefault(int(root), why)
        trace.ids.unite(FIXED, ids)
    roots = trace.ids.roots()
    # A group is the ids that occur in exactly the same dimensions of the same parameters.
    occurrences: dict[int, set[tuple[str, int]]] = {}
    for name, dims in trace.parameters.items():
        for axis, ids in enumerate(dims):
            if ids is not None:
                for root in np.unique(roots[ids]):
                    if root != FIXED:
                        occurrences.setdefault(int(root), set()).add((name, axis))
    members: dict[frozenset[tuple[str, int]], list[int]] = {}
    for root in sorted(occurrences):
        members.setdefault(frozenset(occurrences[root]), []).append(root)
    group_of = np.full(len(roots), -1, dtype=np.int64)
    position_of = np.zeros(len(roots), dtype=np.int64)
    kept: list[KeptGroup] = []
    found: list[list[int]] = []
    for roots_of_group in members.values():
        if len(roots_of_group) <= MIN_CHANNELS:
            why = f"has only {len(roots_of_group)} channels"
            kept.append(KeptGroup(_producer(trace, roots, roots_of_group), len(roots_of_group), why))
            continue
        group_of[roots_of_group] = len(found)
        position_of[roots_of_group] = np.arange(len(roots_of_group))
        found.append(roots_of_group)

    def dimension(ids: Ids) -> DimensionIds:
        return DimensionIds(group_of[roots[ids]], position_of[roots[ids]])

    layers = tuple(_layer(traced, dimension) for traced in trace.layers)
    groups = []
    for index in range(len(found)):
        makers = [la.name for la in layers if la.kind != "depthwise" and (la.out_ids.group == index).any()]
        readers = [la.name for la in layers if la.kind != "depthwise" and (la.in_ids.group == index).any()]
        producers, consumers = tuple(dict.fromkeys(makers)), tuple(dict.fromkeys(readers))
        taken = {g.name for g in groups}
        name = producers[0] if producers[0] not in taken else f"{producers[0]}#{index}"
        groups.append(ChannelGroup(name, len(found[index]), producers, consumers))
    for traced, layer in zip(trace.layers, layers, strict=True):
        if layer.out_ids.is_fixed and layer.kind != "depthwise" and layer.name not in {k.name for k in kept}:
            why = next((reasons[int(r)] for r in before[traced.out_ids] if int(r) in reasons), "joined to fixed channels")
            kept.append(KeptGroup(layer.name, len(layer.out_ids), why))
    parameters = {
        name: tuple(None if ids is None else dimension(ids) for ids in dims) for name, dims in trace.parameters.items()
    }
    return ChannelGroups(tuple(groups), tuple(kept), parameters, layers, input_shape)


def _producer(trace: IdTrace, roots: Ids, members: list[int]) -> str:
    return next((la.name for la in trace.layers if np.isin(roots[la.out_ids], members).any()), "")


def _layer(traced: TracedLayer, dimension: Any) -> Layer:
    linear = len(traced.weight_shape) == 2
    depthwise = traced.groups > 1 and traced.groups == len(traced.in_ids) == len(traced.out_ids)
    kind = "linear" if linear else "transposed" if traced.transposed else "depthwise" if depthwise else "conv"
    if kind == "conv" and traced.groups > 1:
        kind = "grouped"

    def pair(values: tuple[int, ...]) -> tuple[int, int]:
        return (1, 1) if not values else (int(values[0]), int(values[-1]))

    kernel = pair(traced.weight_shape[2:])
    padding = traced.padding
    if isinstance(padding, str):
        padding = (0, 0) if padding == "valid" else tuple((k - 1) // 2 * d for k, d in zip(kernel, pair(traced.dilation), strict=True))
    return Layer(
        name=traced.name,
        kind=kind,
        in_ids=dimension(traced.in_ids),
        out_ids=dimension(traced.out_ids),
        kernel_size=kernel,
        stride=pair(traced.stride),
        padding=(0, 0) if linear else pair(padding),
        dilation=pair(traced.dilation),
        groups=traced.groups,
        in_size=(1, 1) if linear else pair(traced.in_shape[2:]),
        out_size=(1, 1) if linear else pair(traced.out_shape[2:]),
        has_bias=traced.has_bias,
    )


__all__ = ["ChannelGroup", "ChannelGroups", "KeptGroup", "Layer", "exported", "find_groups", "module_path"]
