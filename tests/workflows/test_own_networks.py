"""Networks and data of the user's own: other sizes, channels, inputs and outputs than a classifier of square photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
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


SEVERAL = """
import numpy as np
import torch
from torch import nn


class TwoHeads(nn.Module):
    '''A map of classes and a table of boxes, of two images of different sizes.'''

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.side = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 12, 2, 2)
        self.map = nn.Conv2d(12, 3, 1)
        self.boxes = nn.Conv2d(16, 7, 1)

    def forward(self, image, depth):
        x = self.body(self.stem(image) + self.side(depth))
        return {"map": self.map(self.up(x).relu()), "heads": [self.boxes(x), x.mean((2, 3))[:, :2]]}


def net():
    return TwoHeads()


def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (60, 8, 12))
    images = rng.normal(0, 0.1, (60, 3, 8, 12)).astype(np.float32)
    images += (np.arange(3)[None, :, None, None] == labels[:, None]).astype(np.float32)
    depth = rng.normal(0, 1, (60, 1, 4, 6)).astype(np.float32)
    return ((images[:45], depth[:45]), labels[:45]), ((images[45:], depth[45:]), labels[45:])


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
        self.fc = nn.Linear(16, 3)

    def forward(self, image, depth):
        return self.fc(self.image(image).relu().mean((2, 3)) + self.depth(depth).relu().mean((2, 3)))


def classifier(num_classes):
    assert num_classes == 3
    return Classifier()


def classes():
    return tuple((inputs, labels[:, 0, 0]) for inputs, labels in data())


def pixels(outputs, labels):
    assert outputs["heads"][0].shape[1:] == (7, 4, 6)
    return (outputs["map"].argmax(1) == labels).float().mean()


def loss(outputs, labels):
    return nn.functional.cross_entropy(outputs["map"], labels) + 0.01 * outputs["heads"][0].square().mean()
"""


@pytest.fixture
def own(tmp_path: Path, command: Callable[..., str]) -> Callable[..., str]:
    (tmp_path / "own.py").write_text(NETWORKS)
    (tmp_path / "several.py").write_text(SEVERAL)
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


def test_a_network_of_several_inputs_and_outputs_goes_through_every_command(
    own: Callable[..., str], tmp_path: Path
) -> None:
    own_task = ("--accuracy", "several.py:pixels", "--loss", "several.py:loss")
    trained = own("train", "--model", "several.py:net", "--data", "several.py:data", *own_task, "--epochs", "20",
                  "--batch-size", "15", "--learning-rate", "0.1")  # fmt: skip
    assert "accuracy " in trained
    found = json.loads(own("search", "--macs-ratio", "0.7", "--policy", "uniform", "--reward", "top1",
                           "--min-keep-ratio", "0.5", "--run", "cut", "--json"))  # fmt: skip
    assert found["metric"] == "accuracy"
    assert found["macs"] <= 0.7 * found["original_macs"]
    # The first two channels of the body are an output: only the others can be cut.
    assert found["plan"]["channels"] == {"stem.0": 16, "body.0": 14, "up": 12}
    tuned = json.loads(own("finetune", "--epochs", "2", "--batch-size", "15", "--json"))
    assert tuned["test_top1"] > 0.4  # guessing is right for a third of the pixels
    exported = json.loads(own("export", "--onnx", "--tflite", "--offline", "--json"))
    for file in exported["files"]:
        assert [part["shape"] for part in file["output_parity"]] == [[3, 8, 12], [7, 4, 6], [2]]
        assert all(part["max_abs"] < 1e-4 * max(part["largest"], 1) for part in file["output_parity"])
        assert file["test_top1"] == pytest.approx(exported["test_top1"], abs=0.01)
    session = onnxruntime.InferenceSession(tmp_path / "amc-workspace/runs/cut/model.onnx")
    assert [tuple(one.shape) for one in session.get_inputs()] == [(1, 3, 8, 12), (1, 1, 4, 6)]
    assert len(session.get_outputs()) == 3
    report = json.loads(own("report"))
    assert report["pruned"]["accuracy"]["metric"] == "accuracy"


def test_several_outputs_without_a_function_that_reads_them_are_refused(own: Callable[..., str]) -> None:
    refused = own("search", "--macs-ratio", "0.7", "--model", "several.py:net", "--data", "several.py:data")
    assert "--accuracy file.py:function" in refused


def test_a_classifier_of_two_inputs_needs_no_function(own: Callable[..., str]) -> None:
    trained = own("train", "--model", "several.py:classifier", "--data", "several.py:classes", "--epochs", "1")
    assert "top-1" in trained
    found = json.loads(own("search", "--macs-ratio", "0.7", "--policy", "uniform", "--json"))
    assert found["original_macs"] == 8 * 12 * 16 * 27 + 4 * 6 * 16 * 9 + 16 * 3


def test_an_accuracy_function_that_fails_is_named(own: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("def accuracy(outputs, labels):\n    return outputs['nothing']\n")
    refused = own("search", "--macs-ratio", "0.7", "--model", "several.py:net", "--data", "several.py:data",
                  "--accuracy", "wrong.py:accuracy")  # fmt: skip
    assert "the accuracy function failed for outputs of" in refused
    assert "KeyError: 'nothing'" in refused


def test_random_weights_are_not_searched_unless_that_is_asked_for(
    own: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMC_MOBILE_UNTRAINED")
    network = ("--model", "own.py:build", "--data", "own.py:stripes")
    for command in (("search", "--macs-ratio", "0.6", "--policy", "uniform"), ("sensitivity", "--ratios", "0.5")):
        refused = own(*command, *network)
        assert refused.startswith("exit 1: error: own.py:build reaches top-1")
        assert "no better than guessing" in refused
        assert "--checkpoint" in refused
    assert not list((tmp_path / "amc-workspace/runs").glob("*/settings.json"))
    assert "MACs" in own("search", "--macs-ratio", "0.6", "--policy", "uniform", *network, "--untrained")
