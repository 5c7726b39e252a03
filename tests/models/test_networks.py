from __future__ import annotations

import pytest
import torch
from torch import nn

from amc_mobile.models.loading import load_model
from amc_mobile.models.zoo.blocks import conv_norm, rounded_width
from amc_mobile.models.zoo.registry import MODELS


def counted_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight[0].numel() * output[0].numel()  # type: ignore[index, operator, union-attr]

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(shape))
    return total


@pytest.mark.parametrize(
    ("name", "million_macs", "parameters"),
    [
        ("mobilenet_v1", 568.7, 4_231_976),
        ("mobilenet_v2", 300.8, 3_504_872),
        ("plain20", 40.55, None),
        ("resnet20", 40.55, 269_722),
        ("resnet56", 125.5, None),
        ("resnet50", 4089.2, 25_557_032),
        ("ssdlite_mobilenet_v2", 783.9, 3_971_768),
    ],
)
def test_macs_and_parameters_are_those_of_the_published_network(
    name: str, million_macs: float, parameters: int | None
) -> None:
    loaded = load_model(name)
    assert counted_macs(loaded.module, loaded.input_shape) / 1e6 == pytest.approx(million_macs, rel=1e-3)
    assert parameters in (None, sum(value.numel() for value in loaded.module.parameters()))


@pytest.mark.parametrize(
    ("name", "input_size"), [*((name, 32) for name in MODELS), ("mobilenet_v1", 64), ("mobilenet_v2", 48)]
)
def test_every_network_can_be_exported_for_small_inputs(name: str, input_size: int) -> None:
    loaded = load_model(name, num_classes=7, width_multiplier=0.125, input_size=input_size)
    images = torch.randn(loaded.input_shape, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(loaded.module, (images,)).module()
    torch.testing.assert_close(exported(images), loaded.module(images))
    assert loaded.task.num_classes(exported(images)) == loaded.num_classes == 7


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize(("input_size", "side"), [(32, 2), (64, 4), (96, 3), (160, 5)])
def test_small_inputs_are_reduced_less(name: str, input_size: int, side: int) -> None:
    loaded = load_model(name, width_multiplier=0.25, input_size=input_size)
    with torch.no_grad():
        features = loaded.module.features(torch.zeros(loaded.input_shape))  # type: ignore[operator]
    assert features.shape[2:] == (side, side)


@pytest.mark.parametrize(("size", "first_rows"), [(6, (0, 2, 4)), (5, (-1, 1, 3))])
def test_strided_convolutions_pad_as_tensorflow_s_same_does(size: int, first_rows: tuple[int, ...]) -> None:
    block = conv_norm(1, 1, 3, stride=2, activation=False, input_size=size).eval()
    for layer in block:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    ramp = torch.arange(size, dtype=torch.float32)[None, None, :, None].expand(1, 1, size, size)
    middle_column = block(ramp)[0, 0, :, 1]
    inside = [[row for row in range(first, first + 3) if 0 <= row < size] for first in first_rows]
    expected = torch.tensor([3.0 * sum(rows) for rows in inside])
    torch.testing.assert_close(middle_column, expected, rtol=1e-3, atol=1e-3)


def test_widths_are_multiples_of_eight_never_much_below_what_was_asked() -> None:
    assert [rounded_width(32 * w) for w in (0.1, 0.25, 0.35, 0.5, 0.75, 1.0)] == [8, 8, 16, 16, 24, 32]
    assert all(rounded_width(c) >= 0.9 * c and rounded_width(c) % 8 == 0 for c in range(1, 2000))
