"""Fine-tuning: when its weights are thrown away, what it sees, and what it leaves in the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import CommandLine
from PIL import Image
from safetensors.torch import load_file

import amc_mobile as amc
from amc_mobile.data.images import Dataset, ImageSet
from amc_mobile.data.split import held_out, split
from amc_mobile.workflows.training import clearly_worse


@pytest.mark.parametrize(
    ("won", "lost", "worse"),
    [(0, 0, False), (5, 2, False), (2, 3, False), (10, 14, False), (10, 16, True), (0, 2, True), (0, 1, False)],
)
def test_weights_are_thrown_away_only_when_clearly_worse(won: int, lost: int, worse: bool) -> None:
    before = torch.tensor([False] * won + [True] * lost + [True] * 40 + [False] * 9)
    after = torch.tensor([True] * won + [False] * lost + [True] * 40 + [False] * 9)
    assert clearly_worse(before, after) == worse


@pytest.mark.parametrize(("reward", "seed"), [(1, 0), (16, 1), (30, 4)])
def test_training_sees_no_image_that_scores_plans(reward: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(300) % 3
    every = ImageSet(images, labels, torch.zeros(1), torch.ones(1))
    data = Dataset(every, every, ("a", "b", "c"), "toy")
    trained = {image.numpy().tobytes() for image in held_out(data).train.images}
    scored = split(data, calibration=50, reward=reward, seed=seed).reward.images
    assert len(trained) == 270
    assert not trained & {image.numpy().tobytes() for image in scored}


NET = """
from torch import nn


def net(num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


def write_images(folder: Path) -> None:
    """Dark and bright noise, 18 training and 4 validation images of each."""
    random = np.random.default_rng(0)
    for part, count in (("train", 18), ("val", 4)):
        for name, low in (("dark", 0), ("bright", 120)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(low, low + 130, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")


def test_a_run_keeps_and_draws_the_held_out_accuracy_of_epochs(
    tmp_path: Path,
    command: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "net.py").write_text(NET)
    write_images(tmp_path / "photos")
    network = ("--model", "net.py:net", "--input-size", "16", "--data", "imagefolder:photos")
    searched = command("search", "--macs-ratio", "0.5", "--policy", "uniform", "--run", "half", "--workers", "2",
                   "--reward-images", "12", *network)  # fmt: skip
    assert "on 8 test images" in searched
    assert "refitted on 12 images" in searched
    line = CommandLine(tmp_path, monkeypatch, capsys)
    code, out, err = line("finetune", "--epochs", "3", "--batch-size", "8", "--ema", "0.9", "--workers", "3", "--json")
    assert code == 0
    tuned = json.loads(out)
    steps = [text for text in err.splitlines() if text.startswith("fine-tune ")]
    assert steps[0].startswith("fine-tune 0/9") and "24 images of 3 x 16 x 16" in steps[0]
    assert steps[-1].startswith("fine-tune 9/9") and "epoch 3/3: loss" in steps[-1] and "held-out" in steps[-1]
    assert len(steps) >= 9  # each step, not each epoch
    reports = tuned["epoch_reports"]
    assert [report["epoch"] for report in reports] == [1, 2, 3]
    assert all(0 <= report["validation_top1"] <= 1 for report in reports)
    assert (tuned["ema_decay"], tuned["held_out_images"]) == (0.9, 12)
    assert tuned["best_epoch"] == max(range(1, 4), key=lambda n: (reports[n - 1]["validation_top1"], n))
    shown = json.loads(command("report"))["finetuning"]
    assert [point["epoch"] for point in shown] == [0, 1, 2, 3]
    assert shown[0]["top1"] == tuned["held_out_top1_before"]
    assert [point["top1"] for point in shown[1:]] == [report["validation_top1"] for report in reports]
    page = (tmp_path / "amc-workspace/runs/half/report.html").read_text()
    assert "top-1 on 12 held-out images after each epoch" in page


def test_threads_to_decode_with_cannot_be_fewer_than_none(tmp_path: Path, command: Callable[..., str]) -> None:
    assert command("train", "--model", "resnet20", "--data", "digits", "--workers", "-1").startswith("exit 2: error: ")


def test_the_last_epochs_round_for_int8_and_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    write_images(tmp_path / "photos")
    weights, records = [], []
    for name in ("whole", "stopped"):
        space = amc.Workspace(tmp_path / name)
        network = space.network(f"{tmp_path}/net.py:net", input_size=16, data=f"imagefolder:{tmp_path}/photos")
        run = space.search(
            network, amc.Budget(macs_ratio=0.5), policy="uniform", reward_images=12, name="half", untrained=True
        )

        def stop(stage: str, done: int, total: int, note: str = "") -> None:
            if (stage, done) == ("fine-tune in int8", 4):  # in its second epoch
                raise KeyboardInterrupt

        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                run.finetune(epochs=8, batch_size=8, precision="int8", progress=stop)
        records.append(run.finetune(epochs=8, batch_size=8, precision="int8").result)
        weights.append(run.module("finetuned").state_dict())
        assert not list(run.folder.glob("finetune-state*"))
    whole, stopped = records
    assert [report.epoch for report in whole.epoch_reports] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (whole.int8_epochs, whole.best_epoch > 6) == (2, True)
    rates = [report.learning_rate for report in whole.epoch_reports]
    assert rates[6] < rates[0] / 5
    assert whole.int8_top1 == stopped.int8_top1 is not None
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    plain = run.finetune(epochs=2, batch_size=8).result  # searched in float32
    assert (plain.int8_epochs, plain.int8_top1) == (0, None)


def test_weights_that_are_pruned_stay_zero_when_they_round(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    write_images(tmp_path / "photos")
    space = amc.Workspace(tmp_path / "space")
    network = space.network(f"{tmp_path}/net.py:net", input_size=16, data=f"imagefolder:{tmp_path}/photos")
    run = space.search(
        network,
        amc.Budget(params_ratio=0.5),
        granularity="weight",
        policy="uniform",
        reward_images=12,
        name="sparse",
        untrained=True,
    )
    zeros = {name: int((value == 0).sum()) for name, value in run.module("pruned").named_parameters() if value.ndim > 1}
    assert sum(zeros.values()) > 1000
    run.finetune(epochs=2, batch_size=8, precision="int8")
    tuned = load_file(run.folder / "finetuned.safetensors")  # as saved: loading the run would cut them again
    assert {name: int((tuned[name] == 0).sum()) >= count for name, count in zeros.items()} == dict.fromkeys(zeros, True)
