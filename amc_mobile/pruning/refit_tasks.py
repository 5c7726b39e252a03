"""What refitting a pruned network consists of: an original and a cut graph side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from amc_mobile.channels.ids import Ids
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.pruning.gram import readable_layers
from amc_mobile.pruning.program import LayerStep, NormStep, Program


@dataclass(frozen=True, eq=False)
class LayerTask:
    """A layer of the pruned network that gets new weights."""

    step: LayerStep
    target: Node  # in the original network: the sum that the layer enters last, or its own output
    residual: bool  # whether `target` is the sum
    channels: Tensor  # the original output channels that the layer still makes


@dataclass(frozen=True, eq=False)
class NormTask:
    """A batch norm of the pruned network that gets new statistics."""

    norm: NormStep
    target: Node  # in the original network: what the batch norm reads
    channels: Tensor  # the original channels that it still reads


Tasks = dict[Node, LayerTask | NormTask]


def find_tasks(original: Program, pruned: Program, groups: ChannelGroups, kept: Mapping[str, Ids]) -> Tasks:
    """By node of the pruned network, in order of execution.

    Layers are refitted where their inputs differ from the original's, unless they are executed twice or have several
    groups. Batch norms behind other layers are refreshed where their inputs differ.
    """
    counterpart = _paired(original, pruned)
    affected = _affected(original, pruned, counterpart)
    place = {node: index for index, node in enumerate(pruned.nodes)}
    layers = readable_layers(groups)
    steps, original_steps = pruned.single_steps(), original.single_steps()
    tasks: Tasks = {}
    behind_layers: set[Node] = set()
    for node in pruned.nodes:
        step = steps.get(node)
        if step is not None and step.layer in layers and step.input in affected:
            if step.norm is not None and pruned.readers[step.norm.mean] > 1:
                continue
            residual = step.other is not None and place[step.other] < place[node]
            target = original_steps[counterpart[node]].total if residual else counterpart[node]
            assert target is not None
            channels = torch.from_numpy(groups.surviving(layers[step.layer].out_ids, kept))
            tasks[node] = LayerTask(step, target, residual, channels)
            behind_layers |= {step.norm.node} if step.norm is not None else set()
        elif node in affected and node not in behind_layers and (norm := pruned.norm_of(node)) is not None:
            dimensions = groups.parameters.get(norm.mean)
            if dimensions is not None and dimensions[0] is not None and pruned.readers[norm.mean] == 1:
                source = counterpart[node].args[0]
                assert isinstance(source, Node)
                tasks[node] = NormTask(norm, source, torch.from_numpy(groups.surviving(dimensions[0], kept)))
    return tasks


def _paired(original: Program, pruned: Program) -> dict[Node, Node]:
    """The original network's node for each of the pruned one's."""
    same = [(a.op, str(a.target)) for a in original.nodes] == [(b.op, str(b.target)) for b in pruned.nodes]
    if not same:
        raise UnsupportedLayer(
            "", "the pruned network executes other operators than the original", next_step="refit is not possible"
        )
    return dict(zip(pruned.nodes, original.nodes, strict=True))


def _affected(original: Program, pruned: Program, pairs: Mapping[Node, Node]) -> set[Node]:
    """Nodes of the pruned network whose values differ from the original's."""
    found: set[Node] = set()
    for node in pruned.nodes:
        name = pruned.names.get(node)
        if name is not None:
            differs = pruned.state[name].shape != original.state[original.names[pairs[node]]].shape
        else:
            differs = any(source in found for source in node.all_input_nodes)
        if differs:
            found.add(node)
    return found
