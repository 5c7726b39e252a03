"""A quantised file that lost its network is named by `export`, in its document and in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

# Channels of magnitudes from 1 to 1e8 that the next layer scales back: equal in float32, and int8 has one step for
# all of them.
NET = """
import torch
from torch import nn


def build(num_classes=10):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
    scale = torch.logspace(0, SPREAD, 32)
    with torch.no_grad():
        net[0].weight *= scale[:, None, None, None]
        net[0].bias *= scale
        net[2].weight /= scale[:, None, None]
    return net
"""


@pytest.mark.parametrize(("spread", "is_lost"), [(0, False), (8, True)])
def test_a_file_that_int8_has_ruined_is_named(
    tmp_path: Path, command: Callable[..., str], spread: int, is_lost: bool
) -> None:
    (tmp_path / "net.py").write_text(NET.replace("SPREAD", str(spread)))
    command("search", "--params-ratio", "0.8", "--policy", "uniform", "--run", "one", "--model", "net.py:build",
            "--data", "digits", "--input-size", "16", "--calibration-images", "64",
            "--reward-images", "16")  # fmt: skip
    (file,) = json.loads(command("export", "--onnx", "--int8", "--offline", "--json"))["files"]
    assert (file["sqnr_db"] < 10) == is_lost
    assert ("below 10 dB" in file["problem"]) == is_lost
    text = command("export", "--onnx", "--int8", "--offline")
    assert ("    warning: " in text and "next: try the other format" in text) == is_lost
    report = json.loads(command("report"))
    assert report["files"][0]["problem"] == file["problem"]
    page = (tmp_path / "amc-workspace/runs/one/report.html").read_text()
    assert ("model_int8.onnx: " in page) == is_lost
