"""Finds channel groups: which channels of which parameters have to be cut together; and proves them on an input."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc_mobile.channels import surgery
from amc_mobile.channels.plan import MIN_CHANNELS
from amc_mobile.channels.structure import FIXED, ChannelGroup, ChannelGroups, DimensionIds, Ids, KeptGroup, Layer
from amc_mobile.channels.trace import (
    IdTrace,
    Parameter,
    TracedLayer,
    TraceRecord,
    exported,
    tensor_inputs,
    where_it_failed,
)
from amc_mobile.errors import InvalidInput, UnsupportedLayer

LAYER_CLASSES = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def find_groups(module: nn.Module, example_input: Tensor) -> ChannelGroups:
    """Finds the channel groups of any network, which is left as it was.

    `example_input`: (N, C, H, W). What an operator without a rule reads is kept whole, with the operator in the reason.
    Raises UnsupportedLayer naming the module that does not run or that torch.export cannot trace.
    """
    program = exported(module, example_input)
    trace = _traced(module, program, rigid=False)
    groups = _grouped(trace, tuple(example_input.shape))
    if trace.has_sized_moves:
        try:
            prove(module, groups, example_input, kept=later_half(groups))
            prove(module, groups, example_input)
        except UnsupportedLayer:  # the sizes are numbers in the network's code: leave those channels alone
            return _grouped(_traced(module, program, rigid=True), tuple(example_input.shape))
    return groups


def _traced(model: nn.Module, program: torch.export.ExportedProgram, *, rigid: bool) -> TraceRecord:
    layers = frozenset(name for name, module in model.named_modules() if isinstance(module, LAYER_CLASSES))
    trace = IdTrace(program.graph_module, layers, rigid=rigid)
    names = tensor_inputs(model, program)
    arguments: list[Any] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        shape = tuple(node.meta["val"].shape)
        image = torch.full((), FIXED, dtype=torch.int64).expand(shape)
        arguments.append(Parameter(names[node], shape) if node in names else image)
    for output in trace.run(*arguments, enable_io_processing=False):
        if isinstance(output, Tensor):
            trace.record.fix(output, "network output")
    return trace.record


def _grouped(trace: TraceRecord, input_shape: tuple[int, ...]) -> ChannelGroups:
    united = trace.ids.roots()  # before anything is fixed: tells apart why
    reasons: dict[int, str] = {}
    for ids, why in trace.all_fixed():
        for root in np.unique(united[ids]):
            if root != FIXED:
                reasons.setdefault(int(root), why)
        trace.ids.unite(FIXED, ids)
    roots = trace.ids.roots()
    members = _members(trace, roots)
    group_of = np.full(len(roots), -1, dtype=np.int64)
    position_of = np.zeros(len(roots), dtype=np.int64)
    small: set[int] = set()
    roots_of_groups: list[list[int]] = []
    for of_group in members:
        if len(of_group) <= MIN_CHANNELS:
            small.update(of_group)
            continue
        group_of[of_group] = len(roots_of_groups)
        position_of[of_group] = np.arange(len(of_group))
        roots_of_groups.append(of_group)

    def dimension(ids: Ids) -> DimensionIds:
        return DimensionIds(group_of[roots[ids]], position_of[roots[ids]])

    layers = tuple(_layer(traced, dimension, input_shape[0]) for traced in trace.layers)
    groups: list[ChannelGroup] = []
    for index, of_group in enumerate(roots_of_groups):
        coupled = [layer for layer in layers if layer.kind != "depthwise"]
        makers = tuple(dict.fromkeys(la.name for la in coupled if (la.out_ids.group == index).any()))
        readers = tuple(dict.fromkeys(la.name for la in coupled if (la.in_ids.group == index).any()))
        taken = {group.name for group in groups}
        name = makers[0] if makers[0] not in taken else f"{makers[0]}#{index}"
        groups.append(ChannelGroup(name, len(of_group), makers, readers))
    kept: dict[str, KeptGroup] = {}
    for layer_as_it_is in trace.kept:
        kept.setdefault(layer_as_it_is.name, layer_as_it_is)
    for traced, layer in zip(trace.layers, layers, strict=True):
        if not layer.out_ids.is_fixed or layer.kind == "depthwise":
            continue
        if small.intersection(roots[traced.out_ids].tolist()):
            why = f"fewer than {MIN_CHANNELS + 1} channels that can be cut together"
        else:
            own = (reasons[root] for root in united[traced.out_ids].tolist() if root in reasons)
            why = next(own, "joined to channels that cannot be cut")
        kept.setdefault(layer.name, KeptGroup(layer.name, len(layer.out_ids), why))
    parameters = {
        name: tuple(None if ids is None else dimension(ids) for ids in dims) for name, dims in trace.parameters.items()
    }
    other_macs = trace.other_macs // input_shape[0]
    return ChannelGroups(tuple(groups), tuple(kept.values()), parameters, layers, input_shape, other_macs)


def _members(trace: TraceRecord, roots: Ids) -> list[list[int]]:
    """The roots of each group: those that occur equally often in exactly the same dimensions of parameters."""
    occurrences: dict[int, list[tuple[str, int, int]]] = {}
    for name, dims in trace.parameters.items():
        for axis, ids in enumerate(dims):
            for root, count in Counter(roots[ids].tolist() if ids is not None else []).items():
                occurrences.setdefault(root, []).append((name, axis, count))
    occurrences.pop(FIXED, None)
    members: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    for root in sorted(occurrences):
        members.setdefault(tuple(occurrences[root]), []).append(root)
    return list(members.values())


def _layer(traced: TracedLayer, dimension: Callable[[Ids], DimensionIds], images: int) -> Layer:
    linear = len(traced.weight_shape) == 2
    depthwise = traced.groups > 1 and traced.groups == len(traced.in_ids) == len(traced.out_ids)
    kind = "linear" if linear else "depthwise" if depthwise else "grouped" if traced.groups > 1 else "conv"
    if traced.transposed and traced.groups == 1:
        kind = "transposed"
    return Layer(
        name=traced.name,
        kind=kind,
        in_ids=dimension(traced.in_ids),
        out_ids=dimension(traced.out_ids),
        kernel_size=_pair(traced.weight_shape[2:]),
        stride=_pair(traced.stride),
        groups=traced.groups,
        out_size=_pair(traced.out_shape[1:-1] if linear else traced.out_shape[2:]),
        positions=math.prod(traced.in_shape if traced.transposed else traced.out_shape)
        // (len(traced.in_ids) if traced.transposed else len(traced.out_ids))
        // images,
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of two, one or no spatial dimensions; 1 for those there are not."""
    height, width = (1, 1, *values)[-2:]
    return int(height), int(width)


LEAST_RANDOM_SHARE = 0.25  # of a group's channels that `random_kept` keeps
TOLERANCE = 1e-4  # of the largest output: what rounding may make of the same sums in another order


def random_kept(groups: ChannelGroups, rng: np.random.Generator) -> dict[str, Ids]:
    """Random channels of a random width for every group; each group loses at least one channel."""
    kept = {}
    for group in groups.groups:
        lowest = max(MIN_CHANNELS, int(LEAST_RANDOM_SHARE * group.channels))
        count = int(rng.integers(min(lowest, group.channels - 1), group.channels))
        kept[group.name] = np.sort(rng.choice(group.channels, count, replace=False)).astype(np.int64)
    return kept


def later_half(groups: ChannelGroups) -> dict[str, Ids]:
    """The second half of every group's channels: every channel that stays moves to another position."""
    return {group.name: np.arange(group.channels // 2, group.channels, dtype=np.int64) for group in groups.groups}


def prove(
    model: nn.Module,
    groups: ChannelGroups,
    example: Tensor,
    *,
    kept: Mapping[str, Ids] | None = None,
    seed: int = 0,
) -> float:
    """The largest difference between the cut and the masked network, relative to the largest output.

    `example`: (N, C, H, W); `kept`: random channels from `seed` unless given. Raises UnsupportedLayer when the
    difference is above TOLERANCE, in float64 as well, or the cut network does not run.
    """
    kept = random_kept(groups, np.random.default_rng(seed)) if kept is None else kept
    difference = _difference(model, groups, example, kept)
    if not difference <= TOLERANCE:  # NaN included
        # Some networks amplify rounding errors, e.g. with random weights: more digits tell those from wrong groups.
        difference = _difference(copy.deepcopy(model).double(), groups, example.double(), kept)
    if math.isnan(difference):
        _require_finite(model, example)
    if not difference <= TOLERANCE:
        raise UnsupportedLayer(
            "",
            f"the pruned network's output differs from the masked one's by {difference:.1e} of its largest value",
        )
    return difference


def _difference(model: nn.Module, groups: ChannelGroups, example: Tensor, kept: Mapping[str, Ids]) -> float:
    """Between the cut and the masked network, relative to the largest output. Raises UnsupportedLayer."""
    cut = surgery.apply(model, groups, kept).eval()
    masked = surgery.mask_consumers(model, groups, kept).eval()
    with torch.no_grad():
        expected = list(_tensors(masked(example)))
        try:
            outputs = list(_tensors(cut(example)))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            where, line = where_it_failed(cut, error)
            raise UnsupportedLayer(
                where,
                f"does not run with fewer channels{line}: {str(error).partition(chr(10))[0]}",
                next_step="take sizes from the input's shape instead of writing numbers of channels in the code",
            ) from error
    largest = max((float(y.abs().max()) for y in expected), default=0.0)
    worst = 0.0
    for y, target in zip(outputs, expected, strict=True):
        if y.shape != target.shape:
            raise UnsupportedLayer(
                "", f"pruning changes an output's shape from {tuple(target.shape)} to {tuple(y.shape)}"
            )
        difference = float((y - target).abs().max()) / max(largest, 1e-12)
        if math.isnan(difference):
            return difference
        worst = max(worst, difference)
    return worst


def _require_finite(model: nn.Module, example: Tensor) -> None:
    """Raises InvalidInput where the network itself gives NaN or infinity, naming the first module that does."""
    first: list[str] = []

    def look(name: str, output: Any) -> None:
        if not first and not all(bool(tensor.isfinite().all()) for tensor in _tensors(output)):
            first.append(name)

    looking = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in looking:
            handle.remove()
    if first:
        raise InvalidInput(
            f"{first[0] or 'the network'}: its output is not finite (NaN or infinite)",
            next_step="check the checkpoint: values that overflow, and negative variances of batch norms",
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a network's output, nested or not."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
