"""Runs a program node by node on one batch, and remembers where a run stands on each of several batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from amc_mobile.models.labelled_images import LabelledImages
from amc_mobile.pruning.program import Program


class Run:
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

    def branch(self) -> Run:
        """Another run that stands where this one does, with the same values; this one stays where it is."""
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
        """Executes all that stands before `node`."""
        while self._next < self._place[node]:
            self.step()

    def bytes_past(self, node: Node) -> int:
        """What the run would keep once it has executed `node`, or keeps now where it is further."""
        index = max(self._next, self._place[node] + 1)
        return self._bytes_before(index)

    def bytes_before(self, node: Node) -> int:
        """What the run would keep before it executes `node`."""
        return self._bytes_before(self._place[node])

    def _bytes_before(self, index: int) -> int:
        live = (n for n in self.program.nodes[:index] if self._last_use[n] >= index or n in self._held)
        return sum(value_bytes(self.program, node) for node in live)


class Runs:
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
            (Run(original, lambda i=i: batches[i], held), Run(pruned, lambda i=i: batches[i]))  # type: ignore[misc]
            for i in range(len(batches))
        ]

    def at(self, target: Node, node: Node) -> Iterator[tuple[Run, Run]]:
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
    """The most that values of one batch occupy at a time, as `Run` keeps them."""
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


def batches_within(
    model: nn.Module, images: Tensor | LabelledImages, batch_size: int, limit_bytes: int
) -> tuple[Batches, Program]:
    """Equal batches of at most `batch_size` images, fewer where the values of one would occupy more than
    `limit_bytes`, and the program for their size. The batches depend on the network alone, not on the machine."""
    batches = Batches(images, batch_size)
    program = Program(model, batches[0])
    if batches.size > 1 and (peak := peak_bytes(program)) > limit_bytes:
        batches = Batches(images, max(1, int(batches.size * limit_bytes / peak)))
        program = Program(model, batches[0])
    return batches, program
