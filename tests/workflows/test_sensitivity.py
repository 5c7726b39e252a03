"""Sensitivity of channel groups through the command line: what is cut, on which images, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from amc_mobile.data.sources import load_dataset
from amc_mobile.workflows import sensitivity

NET = """
import torch
from torch import nn
from amc_mobile.data.images import Dataset, ImageSet


def net(num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes),
    )


def seen(image_size=32):
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    every = ImageSet(images, torch.arange(60) % 2, torch.full((3,), 0.5), torch.full((3,), 0.5))
    return Dataset(every, every.subset(range(10)), ("a", "b"), "", accuracy_on="training images")
"""


SHARED = ("--model", "net.py:net", "--input-size", "32", "--data", "net.py:seen", "--reward-images", "15")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def test_each_group_is_cut_alone_and_nothing_is_scored_twice(
    folder: Path, command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    score = sensitivity.PlanScorer.__call__

    def counted(self: sensitivity.PlanScorer, widths: object) -> object:
        scored.append(tuple(widths))  # type: ignore[call-overload]
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, widths)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity.PlanScorer, "__call__", counted)
    assert command("sensitivity", *SHARED, "--ratios", "0.25,0.5").startswith("exit 130")
    known = json.loads((folder / "amc-workspace/sensitivity.json").read_text())["points"]
    assert [(point["group"], point["kept"]) for point in known] == [("0", 4), ("0", 8)]
    document = json.loads(command("sensitivity", *SHARED, "--ratios", "0.25,0.5", "--json"))
    assert scored == [(4, 24), (8, 24), (16, 6), (16, 6), (16, 12)]  # the interrupted one again, no other
    assert [point["kept"] for point in document["points"]] == [4, 8, 6, 12]
    first = document["points"][0]
    assert first == {**known[0], "channels": 16, "ratio": 0.25}
    assert document["accuracy_on"] == "training images"
    assert document["images"] == 15
    # A further ratio adds its own points only, and two that come to the same channels are scored once.
    command("sensitivity", *SHARED, "--ratios", "0.5,0.74,0.75")
    assert scored[5:] == [(12, 24), (16, 18)]


def test_the_table_and_the_pages_say_what_the_accuracy_is_on(folder: Path, command: Callable[..., str]) -> None:
    printed = command("sensitivity", *SHARED, "--ratios", "0.5")
    assert "on 15 training images" in printed
    assert "depthwise" in printed
    root = ElementTree.parse(folder / "amc-workspace/sensitivity.svg").getroot()
    said = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"keep 0.5", "top-1 on 15 training images, %", "dw", "0", "5"} <= said
    assert "on 15 training images" in (folder / "amc-workspace/sensitivity.html").read_text()


def test_points_of_other_images_are_refused(folder: Path, command: Callable[..., str]) -> None:
    command("sensitivity", *SHARED, "--ratios", "0.5")
    done = command("sensitivity", *SHARED, "--ratios", "0.5", "--calibration-images", "7")
    assert done.startswith("exit 1: error:")
    assert "calibration_images" in done or "sizes" in done


def test_a_ratio_that_cuts_nothing_is_refused(folder: Path, command: Callable[..., str]) -> None:
    assert "--ratios" in command("sensitivity", *SHARED, "--ratios", "0.5,1")


def test_a_data_set_says_what_its_accuracies_are_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    data = load_dataset("net.py:seen", image_size=32)
    assert (data.accuracy_on, data.spec) == ("training images", "net.py:seen")
    assert load_dataset("digits").accuracy_on == "test images"
