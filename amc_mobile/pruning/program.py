"""An exported graph that can be run node by node, and where its layers stand in it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from amc_mobile.channels.exported import exported
from amc_mobile.channels.operators import operator_name
from amc_mobile.errors import UnsupportedLayer

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
        if node.op != "call_function" or operator_name(node.target) not in ("conv2d", "linear"):
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


class Run:
    """Executes a program on several batches at once, node by node, and drops values after their last use.

    The values of the nodes in `held` stay until they are released, however far the run is ahead.
    """

    def __init__(self, program: Program, batches: Sequence[Tensor], held: Iterable[Node] = ()) -> None:
        self.program = program
        self.count = len(batches)
        self._batches = batches
        self._values: dict[Node, list[Any]] = {}
        self._held = set(held)
        self._next = 0
        self._place = {node: index for index, node in enumerate(program.nodes)}
        self._last_use = {node: max([self._place[n] for n in (node, *node.users)]) for node in program.nodes}
        self._finished: dict[int, list[Node]] = {}
        for node, index in self._last_use.items():
            self._finished.setdefault(index, []).append(node)

    def value(self, node: Node, batch: int) -> Any:
        name = self.program.names.get(node)
        return self.program.state[name] if name is not None else self._values[node][batch]

    def release(self, node: Node) -> None:
        self._held.discard(node)
        if self._last_use[node] < self._next:
            self._values.pop(node, None)

    def pending(self) -> Node | None:
        """The node that `step` will execute; None at the end."""
        return self.program.nodes[self._next] if self._next < len(self.program.nodes) else None

    def step(self) -> None:
        """Executes the next node for every batch."""
        node = self.program.nodes[self._next]
        finished = [done for done in self._finished.get(self._next, ()) if done not in self._held]
        self._next += 1
        if node.op == "placeholder":
            if node not in self.program.names:
                self._values[node] = list(self._batches)
        elif node.op == "call_function":
            self._values[node] = []
            for batch in range(self.count):
                self._values[node].append(self._execute(node, batch))
                for done in finished:  # batch by batch, so that inputs and outputs are never all there at once
                    if done in self._values and done is not node:
                        self._values[done][batch] = None
        for done in finished:
            self._values.pop(done, None)

    def run_to(self, node: Node) -> None:
        """Executes up to and including `node`; nothing if that has been done."""
        while self._next <= self._place[node]:
            self.step()

    def _execute(self, node: Node, batch: int) -> Any:
        def value(argument: Node) -> Any:
            return self.value(argument, batch)

        assert callable(node.target)
        return node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))


def equal_batches(images: Tensor, batch_size: int) -> list[Tensor]:
    """(N, C, H, W) images in batches of one size, at most `batch_size`; up to (batches - 1) images are left over."""
    count = -(-len(images) // batch_size)
    size = len(images) // count
    return [images[i * size : (i + 1) * size].contiguous() for i in range(count)]


def peak_bytes(program: Program) -> int:
    """The most that values of one batch occupy at a time, as `Run` keeps them."""
    last_use = {source: index for index, node in enumerate(program.nodes) for source in node.all_input_nodes}
    size: dict[Node, int] = {}
    live = peak = 0
    for index, node in enumerate(program.nodes):
        value = node.meta.get("val")
        if node not in program.names and isinstance(value, Tensor):
            size[node] = value.numel() * value.element_size()
            live += size[node]
        peak = max(peak, live)
        live -= sum(
            size.pop(source, 0) for source in [*node.all_input_nodes, node] if last_use.get(source, index) == index
        )
    return peak


def batches_within(model: nn.Module, images: Tensor, batch_size: int, limit_bytes: int) -> tuple[list[Tensor], Program]:
    """Equal batches of at most `batch_size` images, fewer where the values of one would occupy more than
    `limit_bytes`, and the program for their size. The batches depend on the network alone, not on the machine."""
    batches = equal_batches(images, batch_size)
    program = Program(model, batches[0])
    if len(batches[0]) > 1 and (peak := peak_bytes(program)) > limit_bytes:
        batches = equal_batches(images, max(1, int(len(batches[0]) * limit_bytes / peak)))
        program = Program(model, batches[0])
    return batches, program


def _first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a tensor the first one: modules may share tensors."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
