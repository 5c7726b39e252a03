"""An exported graph as a program: its nodes and layers, run one by one on one or several batches."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from amc_mobile.channels.trace import exported, first_names, operator_name, tensor_inputs
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.models.task import LabelledImages

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

    def scale(self, state: Mapping[str, Tensor]) -> Tensor:
        """(channels,): gamma / sqrt(variance + epsilon). `state`: tensors by name."""
        deviation = torch.sqrt(state[self.variance] + self.epsilon)
        return (state[self.weight] if self.weight else torch.ones_like(deviation)) / deviation


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
        first_name = first_names(model)
        self.nodes: tuple[Node, ...] = tuple(program.graph.nodes)
        self.state: dict[str, Tensor] = {
            first_name.get(name, name): value.detach()
            for name, value in {**program.state_dict, **program.constants}.items()
            if isinstance(value, Tensor)
        }
        if any(node.op == "get_attr" for node in self.nodes):
            raise UnsupportedLayer("", "the exported graph holds a sub-graph")
        self.names = tensor_inputs(model, program)
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


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


class Execution:
    """Executes a program on one batch, node by node, and drops values after their last use.

    The values of the nodes in `held` stay until they are released, however far the run is ahead. `read` gives the
    images when the first node asks for them.
    """

    def __init__(self, program: Program, read: Callable[[], Tensor], held: Iterable[Node] = ()) -> None:
        self.program = program
        self._read = read
        self._values: dict[Node, Any] = {}
        self._held = set(held)
        self._next = 0
        self._place = {node: index for index, node in enumerate(program.nodes)}
        self._last_use = last_uses(program)
        self._finished: dict[int, list[Node]] = {}
        for node, index in self._last_use.items():
            self._finished.setdefault(index, []).append(node)

    def branch(self) -> Execution:
        """A second execution that continues from here with the same values; this one stays where it is."""
        other = copy.copy(self)
        other._values = dict(self._values)
        return other

    def value(self, node: Node) -> Any:
        name = self.program.names.get(node)
        return self.program.state[name] if name is not None else self._values[node]

    def release(self, node: Node) -> None:
        self._held.discard(node)
        if self._last_use[node] < self._next:
            self._values.pop(node, None)

    def pending(self) -> Node | None:
        """The node that `step` will execute; None at the end."""
        return self.program.nodes[self._next] if self._next < len(self.program.nodes) else None

    def step(self) -> None:
        """Executes the next node."""
        node = self.program.nodes[self._next]
        if node.op == "placeholder":
            if node not in self.program.names:
                self._values[node] = self._read()
        elif node.op == "call_function":
            assert callable(node.target)
            self._values[node] = node.target(*map_arg(node.args, self.value), **map_arg(node.kwargs, self.value))
        for done in self._finished.get(self._next, ()):
            if done not in self._held:
                self._values.pop(done, None)
        self._next += 1

    def run_to(self, node: Node) -> None:
        """Executes up to and including `node`; nothing if that has been done."""
        while self._next <= self._place[node]:
            self.step()

    def run_before(self, node: Node) -> None:
        """Executes everything before `node`."""
        while self._next < self._place[node]:
            self.step()

    def bytes_past(self, node: Node) -> int:
        """What the run would keep once it has executed `node`, or keeps now where it is further."""
        return self._bytes_before(max(self._next, self._place[node] + 1))

    def bytes_before(self, node: Node) -> int:
        """What the run would keep before it executes `node`."""
        return self._bytes_before(self._place[node])

    def _bytes_before(self, index: int) -> int:
        live = (n for n in self.program.nodes[:index] if self._last_use[n] >= index or n in self._held)
        return sum(value_bytes(self.program, node) for node in live)


class PairedExecutions:
    """Two programs side by side on all batches, at whatever memory there is.

    What the runs keep between two layers stays in memory as long as that is at most `memory_bytes` for all batches
    together; otherwise it is computed again from the last place where it was. The numbers are the same either way.
    """

    def __init__(
        self, original: Program, pruned: Program, batches: Batches, held: Iterable[Node], memory_bytes: int
    ) -> None:
        held = set(held)
        self._memory_bytes = memory_bytes
        self._stored = [
            (Execution(original, lambda i=i: batches[i], held), Execution(pruned, lambda i=i: batches[i]))  # type: ignore[misc]
            for i in range(len(batches))
        ]

    def at(self, target: Node, node: Node) -> Iterator[tuple[Execution, Execution]]:
        """For each batch a run of the original that has executed `target` and one of the pruned network before `node`.

        `target` must be held. To be asked for nodes in their order only.
        """
        first, second = self._stored[0]
        kept = first.bytes_past(target) + second.bytes_before(node)
        is_kept = kept * len(self._stored) <= self._memory_bytes
        for stored in self._stored:
            original, pruned = stored if is_kept else (run.branch() for run in stored)
            original.run_to(target)
            pruned.run_before(node)
            yield original, pruned

    def release(self, target: Node) -> None:
        for original, _ in self._stored:
            original.release(target)


BATCH_SIZE = 100
ACTIVATION_BYTES = 2**29  # of one batch's values: at 224 pixels, VGG-16's are 25 MB for each image


class Batches(Sequence[Tensor]):
    """(N, C, H, W) images in batches of one size, at most `batch_size`; up to (batches - 1) images are left over.

    `images`: normalised, or a set that is normalised batch by batch, whenever one is read.
    """

    def __init__(self, images: Tensor | LabelledImages, batch_size: int) -> None:
        self._images = images
        self._count = -(-len(images) // batch_size)
        self.size = len(images) // self._count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        chosen = slice(index * self.size, (index + 1) * self.size)
        batch = self._images[chosen] if isinstance(self._images, Tensor) else self._images.normalised(chosen)
        return batch.contiguous()

    def first(self, count: int) -> Batches:
        """The same batches without those after the first `count`."""
        fewer = copy.copy(self)
        fewer._count = min(self._count, max(count, 1))
        return fewer


def last_uses(program: Program) -> dict[Node, int]:
    """By node, the index of the last one that reads it; its own where none does."""
    place = {node: index for index, node in enumerate(program.nodes)}
    return {node: max(place[reader] for reader in (node, *node.users)) for node in program.nodes}


def value_bytes(program: Program, node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if node not in program.names and isinstance(value, Tensor) else 0


def peak_bytes(program: Program) -> int:
    """The most that values of one batch occupy at a time, as `Execution` keeps them."""
    last_use = last_uses(program)
    ending: dict[int, int] = {}
    live = peak = 0
    for index, node in enumerate(program.nodes):
        size = value_bytes(program, node)
        live += size
        peak = max(peak, live)
        ending[last_use[node]] = ending.get(last_use[node], 0) + size
        live -= ending.pop(index, 0)
    return peak


def batches_within(model: nn.Module, images: Tensor | LabelledImages) -> tuple[Batches, Program]:
    """Equal batches of at most BATCH_SIZE images, fewer where the values of one would occupy more than
    ACTIVATION_BYTES, and the program for their size. The batches depend on the network alone, not on the machine."""
    batches = Batches(images, BATCH_SIZE)
    program = Program(model, batches[0])
    if batches.size > 1 and (peak := peak_bytes(program)) > ACTIVATION_BYTES:
        batches = Batches(images, max(1, int(batches.size * ACTIVATION_BYTES / peak)))
        program = Program(model, batches[0])
    return batches, program
