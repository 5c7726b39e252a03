"""Runs a program node by node, on several batches at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from amc_mobile.pruning.program import Program


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
