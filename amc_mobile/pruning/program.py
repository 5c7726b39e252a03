"""An exported graph: its nodes, the values that they read, and where its layers stand in it."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from amc_mobile.channels.exported import exported
from amc_mobile.channels.operators import operator_name
from amc_mobile.errors import UnsupportedLayer

LAYERS = ("conv2d", "linear", "conv_transpose2d")
BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}


@dataclass(frozen=True, eq=False)
class NormStep:
    """A batch norm that directly follows a convolution. `output` is the node that holds its result."""

    node: Node
    output: Node
    weight: str | None  # parameter and buffer names
    bias: str | None
    mean: str
    variance: str
    epsilon: float


@dataclass(frozen=True, eq=False)
class LayerStep:
    """One execution of a convolution or linear layer.

    `norm` is set where a batch norm is the only reader; `total` and `other` where the layer, through its norm if it
    has one, ends a branch that is only read by a sum with the tensor `other`.
    """

    layer: str  # module path
    node: Node
    input: Node
    bias: str | None  # parameter name
    norm: NormStep | None
    total: Node | None
    other: Node | None

    @property
    def is_transposed(self) -> bool:
        return operator_name(self.node.target) == "conv_transpose2d"


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operator by name, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip([argument.name for argument in schema], node.args, strict=False))
    return {a.name: node.kwargs.get(a.name, given.get(a.name, a.default_value)) for a in schema}


class Program:
    """The graph of `model` in evaluation mode for batches of the size of `example`; the model is not changed.

    `state`: the values of parameters, buffers and constants by name; a run reads them at every node. `readers`: how
    many nodes read each.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        program = exported(model, example)
        if any(getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in program.graph.nodes):
            # A value that is kept for later must not be overwritten by an in-place operator.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own tree specs
                program = program.run_decompositions({})
        signature = program.graph_signature
        first_name = _first_names(model)
        self.nodes: tuple[Node, ...] = tuple(program.graph.nodes)
        self.state: dict[str, Tensor] = {
            first_name.get(name, name): value.detach()
            for name, value in {**program.state_dict, **program.constants}.items()
            if isinstance(value, Tensor)
        }
        self.names: dict[Node, str] = {}
        for node in self.nodes:
            if node.op == "get_attr":
                raise UnsupportedLayer("", f"the exported graph holds the sub-graph {node.target}")
            name = (
                signature.inputs_to_parameters.get(node.name)
                or signature.inputs_to_buffers.get(node.name)
                or signature.inputs_to_lifted_tensor_constants.get(node.name)
            )
            if node.op == "placeholder" and name:
                self.names[node] = first_name.get(name, name)
        self.readers = Counter(name for node, name in self.names.items() for _ in node.users)
        self.steps = tuple(step for node in self.nodes if (step := self._layer_step(node)) is not None)

    def name_of(self, node: Any) -> str | None:
        return self.names.get(node) if isinstance(node, Node) else None

    def single_steps(self) -> dict[Node, LayerStep]:
        """The steps, by node, of layers whose weight nothing else in the network reads."""
        return {step.node: step for step in self.steps if self.readers[f"{step.layer}.weight"] == 1}

    def norm_of(self, node: Node) -> NormStep | None:
        """The batch norm that `node` is, if it is one with running statistics."""
        if node.op != "call_function" or operator_name(node.target) not in BATCH_NORMS:
            return None
        given = arguments(node)
        mean, variance = self.name_of(given["running_mean"]), self.name_of(given["running_var"])
        if mean is None or variance is None:
            return None
        output = node
        if operator_name(node.target) != "batch_norm":  # gives a tuple, whose first entry is the result
            readers = list(node.users)
            if len(readers) != 1 or readers[0].args[1] != 0:
                return None
            output = readers[0]
        return NormStep(
            node, output, self.name_of(given["weight"]), self.name_of(given["bias"]), mean, variance, given["eps"]
        )

    def _layer_step(self, node: Node) -> LayerStep | None:
        if node.op != "call_function" or operator_name(node.target) not in LAYERS:
            return None
        given = arguments(node)
        weight = self.name_of(given["weight"])
        if weight is None or not weight.endswith(".weight"):
            return None
        norm, end = None, node
        reader = _only_reader(end)
        if reader is not None and (norm := self.norm_of(reader)) is not None and norm.node.args[0] is node:
            end = norm.output
            reader = _only_reader(end)
        total, other = None, None
        if reader is not None and operator_name(reader.target) == "add" and len(reader.args) == 2:
            sides = [side for side in reader.args if side is not end]
            same = len(sides) == 1 and isinstance(sides[0], Node)
            if same and not reader.kwargs and sides[0].meta["val"].shape == end.meta["val"].shape:  # type: ignore[union-attr]
                total, other = reader, sides[0]
        return LayerStep(
            layer=weight.removesuffix(".weight"),
            node=node,
            input=given["input"],
            bias=self.name_of(given["bias"]),
            norm=norm,
            total=total,
            other=other,  # type: ignore[arg-type]
        )


def _first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a tensor the first one: modules may share tensors."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
