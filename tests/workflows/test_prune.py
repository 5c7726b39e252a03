"""`check` and `prune`: what a network offers, and all steps in one, on a tiny network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import CommandLine
from torch import nn

import amc_mobile as amc
from amc_mobile.formats import ONNX
from amc_mobile.workflows import prune
from amc_mobile.workflows.prune import WholeJob
from amc_mobile.workflows.workspace import WHOLE_JOB

NETWORK = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""
WORDS = ("net.py:build", "--input-size", "32", "--data", "digits")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Runs commands in a folder with a network whose weights are random; only .onnx files are exported."""
    monkeypatch.delenv("AMC_MOBILE_UNTRAINED", raising=False)
    monkeypatch.setattr(prune, "FORMATS", {ONNX.name: ONNX})
    (tmp_path / "net.py").write_text(NETWORK)
    return CommandLine(tmp_path, monkeypatch, capsys)


def test_a_check_says_what_can_be_pruned_and_what_speaks_against_it(command: CommandLine) -> None:
    code, out, _ = command("check", *WORDS, "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert found["input_shape"] == [1, 3, 32, 32]
    assert [(group["name"], group["channels"]) for group in found["groups"]] == [("0", 32), ("2", 32)]
    assert found["kept_groups"] == [{"name": "6", "channels": 10, "reason": "network output"}]
    assert (found["normalisation"], len(found["mean"])) == ("from the data set", 3)
    assert found["images"] == found["test_images"] == 359
    assert "no better than guessing" in found["warnings"][-1]
    assert found["exporters"][0]["is_installed"]
    assert found["devices"]["devices"][0]["runtime"]
    assert found["next"] == "amc-mobile prune net.py:build --data digits --input-size 32 --latency-ratio 0.5"
    assert list(command.folder.iterdir()) == [command.folder / "net.py"]  # nothing is written
    code, out, err = command("check", *WORDS)
    assert (code, err) == (1, "")
    for part in ("64 channels in 2 groups: 0 32, 2 32", "6 (10): network output", ".onnx: ready", "next: amc-mobile"):
        assert part in out


def test_the_whole_job_ends_with_a_verdict_and_files_to_ship_and_is_not_done_twice(command: CommandLine) -> None:
    words = ("prune", *WORDS, "--macs-ratio", "0.5", "--episodes", "4", "--epochs", "1", "--output", "ship")
    refused = command(*words, "--waive", "BUSY")
    assert refused[0] == 1 and "no better than guessing" in refused[2]
    code, out, err = command(*words, "--waive", "BUSY", "--untrained")
    assert code == 0, err
    assert out.splitlines()[-1].startswith("PASS: p50 ")
    assert "M MACs of" in out
    assert "prune 0%  1/4 search" in err
    assert {path.name for path in (command.folder / "ship").iterdir()} == {
        "model.onnx", "model.json", "labels.txt", "Classify.kt", "report.html",
    }  # fmt: skip
    run = amc.Workspace(command.folder / "amc-workspace").run()
    kept = [*run.folder.glob("*.safetensors"), run.folder / "model.onnx", run.folder / "export.json"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    code, out, _ = command(*words, "--waive", "BUSY", "--untrained", "--json", "--quiet")
    document = json.loads(out)
    assert (code, document["passed"], document["run"]) == (0, True, run.folder.name)
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_a_latency_budget_is_profiled_searched_and_judged_by_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "FORMATS", {ONNX.name: ONNX})
    module = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (300, 1, 16, 16), np.uint8)
    part = (images, np.arange(300) % 10)
    space = amc.Workspace(tmp_path / "space")
    network = space.network(module, example_input=torch.zeros(1, 1, 16, 16), data=(part, part))
    device = amc.open_device("host", runtime="onnxruntime", waive=["BUSY", "WIDE_BAND"])
    told: list[tuple[str, str]] = []

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        assert 0 <= done <= total
        told.append((stage, note))

    result = space.prune(
        network, amc.Budget(latency_ratio=0.8), device, epochs=0, episodes=4, quick=True, output=tmp_path / "ship",
        untrained=True, min_keep_ratio=0.1, measure_every=0, progress=progress,
    )  # fmt: skip
    assert result.passed in (True, False)
    assert {stage for stage, _ in told} == {WHOLE_JOB}
    steps = [note.split()[0] for _, note in told]
    assert list(dict.fromkeys(steps)) == ["1/4", "2/4", "3/4", "4/4"]
    assert (tmp_path / "ship" / "model.onnx").read_bytes() == Path(result.export["onnx"].path).read_bytes()
    if not result.passed:
        with pytest.raises(amc.BudgetNotMet):
            result.raise_if_not_passed()


def test_a_job_without_exporters_or_images_is_refused_at_once(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no --data was given" in command("prune", "net.py:build", "--macs-ratio", "0.5")[2]
    assert "--latency-ms -3: a latency is above 0 ms" in command("prune", "net.py:build", "--latency-ms", "-3")[2]
    monkeypatch.setattr(prune, "FORMATS", {})
    code, _, err = command("prune", *WORDS, "--macs-ratio", "0.5")
    assert code == 1 and "not installed" in err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_what_is_left_is_guessed_from_what_took_how_long(clock: Callable[[float], None]) -> None:
    told: list[tuple[int, int, str]] = []
    job = WholeJob(
        lambda stage, done, total, note="": told.append((done, total, note)),
        {"profile": 10, "search": 10, "export": 10},
    )
    report = job.begin("profile")
    assert told == [(0, 30, "1/3 profile")]
    clock(10)
    report("measure kernels", 7, 9, "quiet")  # half of the step, in twice the time
    assert told[-1] == (10, 60, "1/3 profile: measure kernels 7/9, quiet")
    report("wait for the phone", 3, 9)  # no part of the work
    assert told[-1][:2] == (10, 60)
    clock(20)
    report = job.begin("search")
    assert told[-1] == (20, 60, "2/3 search")
    clock(30)
    report("search", 7, 16)
    assert told[-1] == (30, 60, "2/3 search 7/16")
