"""Networks and data of the user's own: other sizes, channels, inputs and outputs than a classifier of square photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

NETWORKS = """
import numpy as np
import torch
from torch import nn


def build(num_classes=3, in_channels=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )


class Gate(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


def gated():
    return nn.Sequential(nn.Conv2d(1, 8, 3), Gate(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def stripes():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 60, (120, 12, 20), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[4 * label : 4 * label + 4] += 150
    return (images[:90], labels[:90]), (images[90:], labels[90:])


def colourful():
    (train, labels), (test, test_labels) = stripes()
    return (train[..., None].repeat(3, 3), labels), (test[..., None].repeat(3, 3), test_labels)
"""


@pytest.fixture
def own(tmp_path: Path, command: Callable[..., str]) -> Callable[..., str]:
    (tmp_path / "own.py").write_text(NETWORKS)
    return command


def test_a_network_of_one_channel_that_is_not_square_goes_through_every_command(own: Callable[..., str]) -> None:
    trained = own("train", "--model", "own.py:build", "--data", "own.py:stripes", "--epochs", "8", "--batch-size", "30",
                  "--learning-rate", "0.2")  # fmt: skip
    assert "on 30 test images" in trained
    found = json.loads(own("search", "--macs-ratio", "0.6", "--policy", "uniform", "--json"))
    # One multiply-accumulate for each weight at each place: the images were left as they are.
    assert found["original_macs"] == 12 * 20 * 16 * 9 + 6 * 10 * 16 * 16 * 9 + 16 * 3
    exported = json.loads(own("export", "--onnx", "--offline", "--json"))
    assert exported["files"][0]["parity"]["max_abs"] < 1e-4


def test_a_built_in_network_takes_images_of_one_channel(own: Callable[..., str]) -> None:
    trained = own("train", "--model", "resnet20", "--width", "0.25", "--data", "own.py:stripes", "--epochs", "1",
                  "--input-size", "12")  # fmt: skip
    assert "on 30 test images" in trained


def test_what_cannot_be_traced_is_refused_before_it_is_trained(own: Callable[..., str], tmp_path: Path) -> None:
    refused = own("train", "--model", "own.py:gated", "--data", "own.py:stripes", "--epochs", "1")
    assert refused.startswith("exit 1: error: 1: torch.export cannot trace it at `return x if x.mean() > 0 else -x`")
    assert "(own.py, line 16)" in refused
    assert not (tmp_path / "amc-workspace/trained.safetensors").exists()


def test_channels_that_come_last_are_recognised(own: Callable[..., str]) -> None:
    trained = own("train", "--model", "own.py:build", "--data", "own.py:colourful", "--epochs", "1")
    assert "on 30 test images" in trained  # the network says by its default that it takes one channel


def test_enlarged_images_are_said(own: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    own("train", "--model", "resnet20", "--width", "0.25", "--data", "own.py:colourful", "--epochs", "1")
    assert "images of 12x20 pixels are enlarged to 32x32, the input size of resnet20; --input-size 12" in caplog.text
