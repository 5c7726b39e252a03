"""An exported graph as plain data, the same for both file formats."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from amc_mobile.kernels.operator import Attribute, Shape

Value = Hashable  # what a file calls a tensor: TFLite an index, ONNX a name
Array = NDArray[np.generic]
SMALL_CONSTANT = 64  # integer constants up to this many elements carry shapes, paddings, permutations


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. `inputs`: None where a slot is left out; `constants`: the values of constant slots."""

    operator: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[int, Array]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order of execution. `shapes` and `types` (NumPy names) cover every value that is read or made.

    `quantised`: values whose integers stand for real numbers by a scale.
    """

    nodes: tuple[Node, ...]
    shapes: Mapping[Value, Shape]
    types: Mapping[Value, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    quantised: frozenset[Value] = frozenset()

    def describe(self, index: int) -> str:
        return f"operator {index} ({self.nodes[index].operator})"

    def consumers(self) -> dict[Value, list[int]]:
        """The nodes that read each value, in order; a node that reads it twice stands twice."""
        found: dict[Value, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for value in node.inputs:
                if value is not None:
                    found.setdefault(value, []).append(index)
        return found

    def borders(self, nodes: Sequence[int]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """What `nodes` read from outside and what they make that none of them reads."""
        chosen = [self.nodes[index] for index in nodes]
        made = dict.fromkeys(value for node in chosen for value in node.outputs)
        read = dict.fromkeys(
            value
            for node in chosen
            for slot, value in enumerate(node.inputs)
            if value is not None and slot not in node.constants
        )
        return tuple(v for v in read if v not in made), tuple(v for v in made if v not in read)

    def is_small_integer(self, index: int, slot: int) -> bool:
        """Whether a constant carries sizes or positions rather than weights."""
        array = self.nodes[index].constants[slot]
        if self.nodes[index].inputs[slot] in self.quantised:  # e.g. a bias
            return False
        return array.dtype.kind == "i" and array.dtype.itemsize >= 4 and array.size <= SMALL_CONSTANT


def differences(a: Graph, b: Graph) -> list[str]:
    """What tells two graphs apart besides their weights and names: operators, shapes, types, attributes, integers."""
    found = []
    for index, (one, other) in enumerate(zip_longest(a.nodes, b.nodes)):
        if one is None or other is None:
            found.append(f"{len(a.nodes)} operators against {len(b.nodes)}")
            break
        left, right = _facts(a, index), _facts(b, index)
        found += [
            f"{a.describe(index)} {key}: {left[key]} against {right[key]}" for key in left if left[key] != right[key]
        ]
    return found


def _facts(graph: Graph, index: int) -> dict[str, object]:
    node = graph.nodes[index]
    return {
        "operator": node.operator,
        "inputs": tuple(None if v is None else (graph.shapes[v], graph.types[v]) for v in node.inputs),
        "outputs": tuple((graph.shapes[v], graph.types[v]) for v in node.outputs),
        "attributes": dict(node.attributes),
        "integers": {s: c.ravel().tolist() for s, c in node.constants.items() if graph.is_small_integer(index, s)},
    }
