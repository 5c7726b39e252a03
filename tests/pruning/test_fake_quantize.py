"""Networks that round as int8 files do."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_mobile.export.converters import EXPORTERS, QUANTIZERS
from amc_mobile.export.parity import run_file, sqnr_db
from amc_mobile.pruning.fake_quantize import (
    RoundedActivation,
    RoundedConv2d,
    fake_quantized,
    find_rounding,
    put_back,
    rounded_weight,
)

NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
SHAPE = (1, 3, 12, 12)


class Net(nn.Module):
    """A residual sum, a depthwise layer, a bias before a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.norm_2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.last, self.norm_3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, affine=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        inner = self.norm_3(self.last(torch.relu(self.norm_2(self.depthwise(x)))))
        return self.head(torch.relu(x + inner).mean((2, 3)))  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
                module.running_var.uniform_(0.3, 2)  # type: ignore[union-attr]
                if module.affine:
                    module.weight.uniform_(0.5, 2)
                    module.bias.normal_(0, 0.3)
    return model.eval()


def images(count: int = 40) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["onnx", pytest.param("tflite", marks=NEEDS_TFLITE)])
def test_it_rounds_as_the_int8_file_does(form: str, tmp_path: Path) -> None:
    model, calibration = net(), images()
    path = tmp_path / f"model.{form}"
    EXPORTERS[form](model, SHAPE, path)
    path.write_bytes(QUANTIZERS[form](path.read_bytes(), "int8", calibration.numpy()))
    rounded = fake_quantized(model, find_rounding(model, calibration[:1]), calibration)
    seen = images(100)[40:]
    with torch.no_grad():
        found, expected = rounded(seen).numpy(), model(seen).numpy()
    file = run_file(path, seen.numpy()).reshape(found.shape)
    assert sqnr_db(file, expected) < 45  # it is the rounding that is looked at
    assert abs(sqnr_db(found, expected) - sqnr_db(file, expected)) < 4
    assert sqnr_db(found, file) > sqnr_db(file, expected)


def test_weights_take_255_values_per_channel_and_activations_256_over_a_range_with_0() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 1e-3, 50, 0]
    ).reshape(4, 1, 1, 1)
    steps = rounded_weight(weight).flatten(1) / (weight.flatten(1).abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps[:3].abs().amax(1).tolist() == pytest.approx([127, 127, 127])
    activation = RoundedActivation().eval()
    activation.is_calibrating = True
    activation(torch.tensor([0.5, 2.55]))
    activation.is_calibrating = False
    assert activation(torch.tensor([0.004, 1.234, 9.0, -3.0])).tolist() == pytest.approx([0.0, 1.23, 2.55, 0.0])


def test_training_reaches_every_weight_and_is_put_back_into_the_network() -> None:
    model, calibration = net(), images()
    rounding = find_rounding(model, calibration[:1])
    assert dict(rounding.layers) == {"first": False, "depthwise": False, "last": True, "head": True}
    rounded = fake_quantized(model, rounding, calibration)
    assert isinstance(rounded.get_submodule("first"), RoundedConv2d)
    before = {name: value.clone() for name, value in rounded.named_parameters()}
    optimizer = torch.optim.SGD(rounded.parameters(), lr=0.05)
    ranges = [module.high.clone() for module in rounded.modules() if isinstance(module, RoundedActivation)]
    rounded.train()
    for _ in range(3):
        optimizer.zero_grad()
        rounded(3 * calibration).square().mean().backward()
        optimizer.step()
    unmoved = [name for name, value in rounded.named_parameters() if torch.equal(value, before[name])]
    assert unmoved == []
    moved = [module.high for module in rounded.modules() if isinstance(module, RoundedActivation)]
    assert moved[0] > ranges[0]  # the images are larger than those that it was calibrated on
    twin = copy.deepcopy(model)
    put_back(rounded, twin, rounding.folding)
    assert torch.equal(twin.norm.weight, rounded.get_parameter("first.norm.weight"))
    assert torch.equal(twin.norm.running_var, model.norm.running_var)  # type: ignore[arg-type]
    again = fake_quantized(twin, rounding, calibration)
    for ours, theirs in zip(again.modules(), rounded.modules(), strict=True):
        if isinstance(ours, RoundedActivation) and isinstance(theirs, RoundedActivation):
            ours.low, ours.high = theirs.low, theirs.high
    with torch.no_grad():
        assert torch.equal(again(calibration), rounded.eval()(calibration))
        difference = np.abs(twin(calibration).numpy() - again(calibration).numpy()).max()
    assert 0 < difference < 0.2
