"""Networks of several inputs or outputs as networks of one tensor in and one out.

Between a data set and an exported file everything handles one tensor of inputs and one of outputs per batch: (N, ...).
Where a network takes several inputs, they lie behind each other in a tensor (N, numbers, 1, 1), and so do several
outputs in one of (N, numbers). The exported file has the inputs and outputs of the network itself.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from amc_mobile.errors import InvalidInput

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Packing:
    """`input_shapes`, `output_shapes`: without the batch; no input shapes where there is one input, taken as it is.

    `structure`: of the outputs, as torch's pytree describes it.
    """

    input_shapes: Shapes
    output_shapes: Shapes
    structure: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Packing:
        """Itself: nothing in it changes."""
        return self

    def inputs(self, batch: Tensor) -> list[Tensor]:
        return split(batch, self.input_shapes) if self.input_shapes else [batch]

    def outputs(self, packed: Tensor) -> list[Tensor]:
        """(N, numbers) -> the network's outputs, flat."""
        return split(packed, self.output_shapes)

    def structured(self, packed: Tensor) -> Any:
        """(N, numbers) -> what the network itself returns."""
        return pytree.tree_unflatten(self.outputs(packed), self.structure)


class PackedModule(nn.Module):
    """Mixed into a network's own class by `pack`."""

    packing: Packing

    def forward(self, batch: Tensor) -> Tensor:
        given = super().forward(*self.packing.inputs(batch))
        return join(pytree.tree_leaves(given))


def pack(module: nn.Module, example: Tensor, input_shapes: Shapes) -> nn.Module:
    """`module` itself, changed in place where it has several inputs or outputs; the names of its weights stay.

    `example`: one image, or the packed inputs of one. Raises InvalidInput for outputs that are not tensors of a batch.
    """
    with torch.no_grad():
        given = module(*(split(example, input_shapes) if input_shapes else [example]))
    outputs, structure = pytree.tree_flatten(given)
    if isinstance(given, Tensor) and not input_shapes:
        return module
    if not outputs or not all(isinstance(output, Tensor) and output.shape[:1] == (1,) for output in outputs):
        raise InvalidInput(
            "the network must give tensors whose first dimension is the batch, in tuples, lists or dicts"
        )
    # The class changes, as in torch's own parametrisations: another module around it would rename every weight.
    own = type(module)
    module.__class__ = type(f"Packed{own.__name__}", (PackedModule, own), {"own_class": own})
    assert isinstance(module, PackedModule)
    module.packing = Packing(input_shapes, tuple(tuple(o.shape[1:]) for o in outputs), structure)
    return module


class _Flat(nn.Module):
    """Gives all outputs in a flat tuple."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(self.inner(*inputs)))


def unpacked(module: nn.Module, example: Tensor) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A copy on the CPU, in evaluation mode, with the network's own inputs and outputs, and its example inputs."""
    # Contiguous: litert-torch makes copies of other weights and tells weights apart by address, which a copy takes over
    # from one that is gone. Then layers of one shape get each other's weights.
    clone = copy.deepcopy(module).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    if not isinstance(clone, PackedModule):
        return clone, (example,)
    packing = clone.packing
    clone.__class__ = type(clone).own_class  # type: ignore[attr-defined]
    inputs = tuple(part.contiguous() for part in packing.inputs(example))
    return (_Flat(clone) if len(packing.output_shapes) > 1 else clone), inputs


def split(packed: Tensor, shapes: Shapes) -> list[Tensor]:
    """(N, numbers, ...) -> a tensor (N, *shape) for each shape."""
    flat = packed.flatten(1)
    parts = torch.split(flat, [math.prod(shape) for shape in shapes], 1)
    return [part.reshape(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]


def join(parts: list[Tensor]) -> Tensor:
    """(N, numbers) float of tensors (N, ...)."""
    return torch.cat([part.flatten(1).float() if part.ndim > 1 else part[:, None].float() for part in parts], 1)


NAME_SIGNS = re.compile(r"[^A-Za-z0-9_./-]+")  # others are replaced in names of inputs and outputs


def forward_names(module: nn.Module, content: str) -> tuple[list[str], list[str]]:
    """Names of a network's inputs and outputs: the arguments of its forward, and the keys of a dict that it returns.

    A single output is called by its `content`; others are numbered, output_0.
    """
    if not isinstance(module, PackedModule):
        return _distinct(_arguments(type(module).forward, 1)), [content if content != "values" else "output"]
    packing, own = module.packing, type(module).own_class  # type: ignore[attr-defined]
    count = len(packing.output_shapes)
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(count)), packing.structure))
    keys = ["_".join(str(k.key) for k in path if isinstance(k, pytree.MappingKey)) for path, _ in paths]
    outputs = [key or ("output" if count == 1 else f"output_{index}") for index, key in enumerate(keys)]
    return _distinct(_arguments(own.forward, max(1, len(packing.input_shapes)))), _distinct(outputs)


def _arguments(forward: Any, count: int) -> list[str]:
    parameters = list(signature(forward).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    return [*names, *(f"{rest}_{index}" if count > 1 else rest for index in range(len(names), count))]


def _distinct(names: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for name in names:
        plain = NAME_SIGNS.sub("_", name) or "tensor"
        chosen.append(plain if plain not in chosen else f"{plain}_{len(chosen)}")
    return chosen
