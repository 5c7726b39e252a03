"""Channel ids through layers with weights. What each function returns are the ids of the layer's output.

Raises NoRuleError where a layer's weight is computed in the forward pass or is no layer's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amc_mobile.channels.ids import Ids
from amc_mobile.channels.trace_record import NoRuleError, TraceRecord
from amc_mobile.channels.traced import Parameter, TracedLayer, spread


def convolution(
    record: TraceRecord, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]
) -> Tensor:
    """A convolution of any kind, transposed or depthwise too. `shape`: of its output."""
    transposed = "transpose" in name
    names = ["input", "weight", "bias", "stride", "padding"]
    names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, groups, count = given["input"], _weight(record, given["weight"]), int(given.get("groups", 1)), shape[1]
    ids_in = record.vector(x)
    dims: list[Ids | None] = [None] * len(weight.shape)
    if groups == 1:
        ids_out = record.outputs_of(weight, 1 if transposed else 0, count)
        dims[0], dims[1] = (ids_in, ids_out) if transposed else (ids_out, ids_in)
    elif groups == len(ids_in) == count and not transposed:
        dims[0] = ids_out = ids_in
    else:
        record.fixed.append((ids_in, "read by a grouped convolution"))
        dims[1 if transposed else 0] = ids_out = record.ids.fresh(count)
        if transposed:  # its second dimension holds one share of the outputs
            dims[1] = None
        record.fixed.append((ids_out, "grouped convolution"))
    spatial = len(shape) - 2
    padding = given.get("padding", 0)
    _add_layer(
        record, weight, given.get("bias"), tuple(dims), transposed, ids_in, ids_out, tuple(x.shape), shape, groups,
        stride=_per_dimension(given.get("stride", 1), spatial),
        padding=padding if isinstance(padding, str) else _per_dimension(padding, spatial),
        dilation=_per_dimension(given.get("dilation", 1), spatial),
    )  # fmt: skip
    return spread(ids_out, shape)


def linear(record: TraceRecord, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Tensor:
    """A linear layer. `shape`: of its output."""
    x, weight, bias = args[0], _weight(record, args[1]), args[2] if len(args) > 2 else kwargs.get("bias")
    ids_in = record.vector(x.movedim(-1, 1)) if x.ndim > 1 else x.numpy().copy()
    ids_out = record.outputs_of(weight, 0, shape[-1])
    _add_layer(record, weight, bias, (ids_out, ids_in), False, ids_in, ids_out, tuple(x.shape), shape, 1)
    return torch.from_numpy(ids_out).expand(shape)


def per_channel(record: TraceRecord, args: tuple[Any, ...]) -> Tensor:
    """A normalisation, which follows its input."""
    vector = record.vector(args[0])
    for value in args[1:5]:
        if isinstance(value, Parameter) and value.shape == (len(vector),):
            record.note(value, (vector,))
    return args[0]  # type: ignore[no-any-return]


def _add_layer(
    record: TraceRecord,
    weight: Parameter,
    bias: Any,
    dims: tuple[Ids | None, ...],
    transposed: bool,
    in_ids: Ids,
    out_ids: Ids,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    groups: int,
    stride: tuple[int, ...] = (),
    padding: tuple[int, ...] | str = (),
    dilation: tuple[int, ...] = (),
) -> None:
    if any(ids is not None for ids in dims):
        record.note(weight, dims)
    if isinstance(bias, Parameter):
        record.note(bias, (out_ids,))
    record.layers.append(
        TracedLayer(
            weight.name.rpartition(".")[0], transposed, in_ids, out_ids, weight.shape, groups, stride, padding,
            dilation, in_shape, out_shape, has_bias=isinstance(bias, Parameter),
        )
    )  # fmt: skip


def _weight(record: TraceRecord, weight: Any) -> Parameter:
    if not isinstance(weight, Parameter):
        raise NoRuleError("whose weight is computed in the forward pass")
    module, _, attribute = weight.name.rpartition(".")
    if attribute != "weight" or module not in record.layer_modules:
        raise NoRuleError(f"whose weight is the parameter {weight.name}, not that of a layer")
    return weight


def _per_dimension(value: Any, length: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * length
    values = tuple(int(v) for v in value)
    return values * length if len(values) == 1 else values
