"""Networks that round as their int8 files do, in float arithmetic and with gradients: to train and to score them.

As the exporters quantise: batch norms folded; weights in 255 symmetric steps, each output channel its own; activations
in 256 steps over one range per tensor. Rounded are the input of every convolution and linear layer, the results that go
into a sum, and the network's own results. Gradients pass the rounding unchanged, and stop where a value is out of range
(Jacob et al. 2018). Other operators, transposed convolutions and subclasses of layers are computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.channels.surgery import copied
from amc_mobile.models.task import LabelledImages
from amc_mobile.pruning.program import Program
from amc_mobile.pruning.reconstruction import Folding, find_folding

STEPS = 255  # between the smallest and the largest value of an activation
LARGEST_WEIGHT = 127
FOLLOWS = 0.05  # how far a range moves to that of each training batch
SMALLEST_SCALE = 1e-12
BATCH_SIZE = 32


@dataclass(frozen=True)
class Rounding:
    """Which layers, by module path, round their weights and inputs, and whether their results; alike for every plan."""

    folding: Folding
    layers: tuple[tuple[str, bool], ...]


def find_rounding(model: nn.Module, example: Tensor) -> Rounding:
    """`example`: (N, C, H, W). Traces the network, which takes seconds: once for all plans."""
    example = example.contiguous()
    folding = find_folding(model, example)
    norms, modules = dict(folding.pairs), dict(model.named_modules())
    layers = []
    for step in Program(model, example).single_steps().values():
        if type(modules.get(step.layer)) not in (nn.Conv2d, nn.Linear):
            continue
        end = step.norm.output if step.norm is not None and step.layer in norms else step.node
        is_result = any(reader.op == "output" for reader in end.users)
        layers.append((step.layer, is_result or (step.total is not None and end in step.total.args)))
    return Rounding(folding, tuple(layers))


class RoundedActivation(nn.Module):
    """Rounds to the steps of its range, which holds 0. In training mode the range follows the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.low: Tensor
        self.high: Tensor
        self.is_calibrating = False

    def forward(self, values: Tensor) -> Tensor:
        if self.is_calibrating or self.training:
            self._observe(values.detach())
        if self.is_calibrating:
            return values
        scale = ((self.high - self.low) / STEPS).clamp_min(SMALLEST_SCALE)
        zero_point = (-self.low / scale).round().clamp(0, STEPS).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, STEPS)

    def _observe(self, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        low, high = low.clamp_max(0), high.clamp_min(0)
        if self.is_calibrating:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        else:
            self.low, self.high = torch.lerp(self.low, low, FOLLOWS), torch.lerp(self.high, high, FOLLOWS)


def rounded_weight(weight: Tensor) -> Tensor:
    """(out, ...): each output channel in its own steps."""
    largest = weight.detach().abs().flatten(1).amax(dim=1)
    scale = (largest / LARGEST_WEIGHT).clamp_min(SMALLEST_SCALE)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)


class RoundedConv2d(nn.Conv2d):
    """Holds the batch norm that is folded into it, whose statistics stay as they are."""

    rounded_input: nn.Module
    rounded_result: nn.Module
    norm: nn.Module | None

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if isinstance(self.norm, nn.BatchNorm2d):
            weight, bias = folded_weights(weight, bias, self.norm)
        return self.rounded_result(self._conv_forward(self.rounded_input(input), rounded_weight(weight), bias))  # type: ignore[no-any-return]


class RoundedLinear(nn.Linear):
    rounded_input: nn.Module
    rounded_result: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        result = functional.linear(self.rounded_input(input), rounded_weight(self.weight), self.bias)
        return self.rounded_result(result)  # type: ignore[no-any-return]


def folded_weights(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does the work of `norm`, too, with gradients to all of them."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift = ((0 if bias is None else bias) - norm.running_mean) * scale + (0 if norm.bias is None else norm.bias)
    return weight * scale[:, None, None, None], shift


@torch.no_grad()
def fake_quantized(model: nn.Module, rounding: Rounding, images: Tensor | LabelledImages) -> nn.Module:
    """A copy in evaluation mode that rounds. Ranges are the extremes over all `images`.

    `rounding`: of this network or of the one it was cut from. `images`: normalised (N, C, H, W), or a set.
    """
    modules, norms = dict(model.named_modules()), dict(rounding.folding.pairs)
    memo: dict[int, Any] = {}
    for name, is_result in rounding.layers:
        norm = modules[norms[name]] if name in norms else None
        memo[id(modules[name])] = _rounded(modules[name], norm, is_result)
        if norm is not None:
            memo[id(norm)] = nn.Identity()
    layout = torch.channels_last if rounding.folding.channels_last else torch.contiguous_format
    clone = copied(model, memo).eval().to(memory_format=layout)  # type: ignore[call-overload]
    activations = [module for module in clone.modules() if isinstance(module, RoundedActivation)]
    for activation in activations:
        activation.is_calibrating = True
    for start in range(0, len(images), BATCH_SIZE):
        chosen = slice(start, start + BATCH_SIZE)
        batch = images[chosen] if isinstance(images, Tensor) else images.normalised(chosen)
        clone(batch.contiguous(memory_format=layout))
    for activation in activations:
        activation.is_calibrating = False
    return clone  # type: ignore[no-any-return]


def _rounded(layer: nn.Module, norm: nn.Module | None, is_result: bool) -> nn.Module:
    rounded = copied(layer, {})
    rounded.__class__ = RoundedConv2d if isinstance(layer, nn.Conv2d) else RoundedLinear
    rounded.rounded_input = RoundedActivation()
    rounded.rounded_result = RoundedActivation() if is_result else nn.Identity()
    if isinstance(rounded, RoundedConv2d):
        rounded.norm = None if norm is None else copied(norm, {})
    return rounded


@torch.no_grad()
def put_back(trained: nn.Module, model: nn.Module, folding: Folding) -> None:
    """Gives `model` the weights of `trained`, its copy that was rounded and then trained."""
    state = trained.state_dict()
    inside = {f"{norm}.": f"{layer}.norm." for layer, norm in folding.pairs}
    for name, value in model.state_dict().items():
        module, _, own = name.rpartition(".")
        value.copy_(state[inside.get(f"{module}.", f"{module}.") + own])
