"""Networks with their templates and true exports, each built once per test process."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import networks
import numpy as np
import torch
from torch import nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups, random_kept
from amc_mobile.channels.structure import ChannelGroups, Ids
from amc_mobile.device.host import layout_here
from amc_mobile.export.converters import EXPORTERS
from amc_mobile.formats import BY_RUNTIME
from amc_mobile.kernels import template as templates
from amc_mobile.kernels.kernel import Graph
from amc_mobile.kernels.template import Template
from amc_mobile.models.zoo.registry import MODELS

# name -> (width multiplier, input size): small, since an export's time grows with neither.
ZOO = {
    "plain20": (1.0, 8), "resnet20": (1.0, 8), "resnet56": (1.0, 8), "mobilenet_v1": (0.25, 32),
    "mobilenet_v2": (0.5, 32), "vgg16": (0.125, 32), "resnet50": (0.125, 32),
    "ssdlite_mobilenet_v2": (0.125, 32),
}  # fmt: skip
SMALL = ("DenseLike", "InceptionLike", "ShuffleLike", "SqueezeExcite")
ALL = (*ZOO, *SMALL)

_exports = tempfile.TemporaryDirectory(prefix="amc-mobile-exports-")
FOLDER = Path(_exports.name)


@functools.cache
def network(name: str) -> tuple[nn.Module, ChannelGroups]:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of the biases
    if name not in ZOO:
        model, shape = networks.build(name), (1, *networks.example().shape[1:])
    else:
        width, size = ZOO[name]
        fresh = MODELS[name].factory(num_classes=10, width_multiplier=width, input_size=size)
        model, shape = networks.randomised(fresh), (1, 3, size, size)
    return model, find_groups(model, torch.zeros(shape))


@dataclass(frozen=True)
class Subject:
    """A network, its template, one random plan and the true export of the network pruned to that plan."""

    model: nn.Module
    groups: ChannelGroups
    template: Template
    kept: dict[str, Ids]
    true_file: bytes
    logits: np.ndarray  # of the pruned network in torch
    images: np.ndarray  # (2, C, H, W)

    @property
    def widths(self) -> np.ndarray:
        return np.array([len(self.kept[name]) for name in self.groups.names])


@functools.cache
def subject(name: str, runtime: str) -> Subject:
    model, groups = network(name)
    template = templates.load_or_build(model, groups, runtime, FOLDER, layout=layout_here(runtime))
    kept = random_kept(groups, np.random.default_rng(7))
    pruned = surgery.apply(model, groups, kept)
    form = BY_RUNTIME[runtime]
    path = FOLDER / f"{name}_pruned{form.suffix}"
    EXPORTERS[form.name](pruned, groups.input_shape, path)
    images = torch.randn(2, *groups.input_shape[1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = pruned(images).numpy()
    return Subject(model, groups, template, kept, path.read_bytes(), logits, images.numpy())


def graph_of(content: bytes, runtime: str) -> Graph:
    form = templates.file_format(runtime)
    graph = form.to_graph(form.parse(content))
    assert isinstance(graph, Graph)
    return graph


def differences(a: Graph, b: Graph) -> list[str]:
    """How two graphs differ besides their weights and names: operators, shapes, types, attributes, integers."""
    lines = []
    for index, (one, other) in enumerate(zip_longest(a.nodes, b.nodes)):
        if one is None or other is None:
            lines.append(f"{len(a.nodes)} operators against {len(b.nodes)}")
            break
        left, right = _facts(a, index), _facts(b, index)
        lines += [
            f"{a.describe(index)} {key}: {left[key]} against {right[key]}" for key in left if left[key] != right[key]
        ]
    return lines


def _facts(graph: Graph, index: int) -> dict[str, object]:
    node = graph.nodes[index]
    return {
        "operator": node.operator,
        "inputs": tuple(None if v is None else (graph.shapes[v], graph.types[v]) for v in node.inputs),
        "outputs": tuple((graph.shapes[v], graph.types[v]) for v in node.outputs),
        "attributes": dict(node.attributes),
        "integers": {s: c.ravel().tolist() for s, c in node.constants.items() if graph.is_small_integer(index, s)},
    }
