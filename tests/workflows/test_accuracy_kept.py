"""Searches for the cheapest plan: with a promise of accuracy, and with rewards that hold the cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_runs_kept_apart import IMAGES, NET, NETWORK, write_weights

from amc_mobile.user_file import load_function

Command = Callable[..., str]
SEARCH = ("search", *NETWORK, *IMAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    write_weights(tmp_path, seed=0)
    return tmp_path


def test_a_reward_that_holds_the_cost_cuts_without_a_budget(folder: Path, command: Command) -> None:
    found = json.loads(command(*SEARCH, "--reward", "error-log-macs", "--episodes", "8", "--json"))
    assert found["macs"] < 0.95 * found["original_macs"]
    log = (folder / "amc-workspace/runs" / found["run"] / "episodes.csv").read_text().splitlines()[1:]
    assert len({line.split(",")[-1] for line in log}) > 4


def test_a_budget_that_the_original_meets_is_refused(folder: Path, command: Command) -> None:
    refused = command(*SEARCH, "--macs-ratio", "1")
    assert refused.startswith("exit 1: ") and "original" in refused and "error-log-macs" in refused
    assert not [path for path in (folder / "amc-workspace/runs").iterdir() if path.is_dir()]


DATA = """
import numpy as np


def data():
    stored = np.load("taught.npz")
    pairs = [(stored["images"][part], stored["labels"][part]) for part in (slice(0, 300), slice(300, 400))]
    return tuple(pairs)
"""


def write_taught(folder: Path) -> None:
    """Images labelled by the network itself, which so makes no mistake on them: any cut of it can only lose."""
    (folder / "data.py").write_text(DATA)
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(400, 3, 3, 3), (16, 16), mode="bilinear")
    network = load_function(f"{folder / 'net.py'}:net")().eval()
    with torch.no_grad():
        network[-1].bias -= network(images).mean(dim=0)  # so that all classes come up
        labels = network(images).argmax(dim=1)
    torch.save(network.state_dict(), folder / "net.pt")
    np.savez(folder / "taught.npz", images=images.numpy(), labels=labels.numpy())


TAUGHT = ("search", "--model", "net.py:net", "--input-size", "16", "--data", "data.py:data", "--checkpoint", "net.pt",
          "--calibration-images", "60", "--reward-images", "90", "--policy", "random", "--run", "mine")  # fmt: skip


def test_a_promise_that_was_not_kept_is_said_everywhere(folder: Path, command: Command) -> None:
    write_taught(folder)
    words = (*TAUGHT, "--macs-ratio", "0.2", "--min-keep-ratio", "0.1", "--max-loss", "0", "--episodes", "25")
    said = command(*words)
    found = json.loads((folder / "amc-workspace/runs/mine/search.json").read_text())
    assert found["original_reward_top1"] == 1
    assert found["refitted_reward_top1"] < 1
    assert found["accuracy_kept"] is False
    assert found["episodes"] == 25
    assert said.startswith("exit 3: error: --max-loss 0 NOT KEPT") and "may have been trained on" in said
    report = json.loads(command("report"))
    assert report["verdict"]["status"] == "FAIL" and "--max-loss 0 NOT KEPT" in report["verdict"]["line"]
    exported = command("export", "--onnx", "--offline")
    assert exported.startswith("exit 3: error: the exported network loses more accuracy than --max-loss allows")
    command("finetune", "--epochs", "1")
    tuned = json.loads((folder / "amc-workspace/runs/mine/finetune.json").read_text())
    reached = tuned["epoch_reports"][0]["validation_top1"] if tuned["kept"] else 0
    passes = json.loads(command("report"))["verdict"]["status"] == "PASS"
    assert passes == (reached == 1)  # the original makes no mistake


def test_search_and_report_say_that_nothing_is_pruned(folder: Path, command: Command) -> None:
    write_taught(folder)
    said = command(*TAUGHT, "--reward", "error-log-macs", "--min-keep-ratio", "1", "--episodes", "2")
    found = json.loads((folder / "amc-workspace/runs/mine/search.json").read_text())
    assert found["macs"] == found["original_macs"]  # what the test is about
    assert "no cheaper plan scored better with this reward" in said and "--macs-ratio" in said
    command("report")
    page = (folder / "amc-workspace/runs/mine/report.html").read_text()
    assert "no cheaper plan scored better with this reward" in page


def test_a_promise_that_was_kept_is_checked_on_the_refitted_network(folder: Path, command: Command) -> None:
    write_taught(folder)
    said = command(*TAUGHT, "--macs-ratio", "0.9", "--max-loss", "0.9", "--episodes", "5")
    found = json.loads((folder / "amc-workspace/runs/mine/search.json").read_text())
    assert found["accuracy_kept"] is True
    assert 0.1 <= found["refitted_reward_top1"] <= 1
    assert "--max-loss 0.9 kept: on the reward images the refitted network has top-1" in said
    assert "may have been trained on" in said


def test_images_that_train_left_out_are_known_to_be_unseen(tmp_path: Path, command: Command) -> None:
    """Whatever the seeds, and unless more are asked for than `train` leaves out."""
    (tmp_path / "net.py").write_text(NET)
    network = ("--model", "net.py:net", "--input-size", "16", "--data", "digits")
    command("train", "--epochs", "1", "--seed", "3", *network)
    words = ("search", *network, "--macs-ratio", "0.5", "--policy", "uniform", "--calibration-images", "48", "--json")
    assert json.loads(command(*words, "--seed", "1"))["reward_images_may_be_seen"] is False
    assert json.loads(command(*words, "--reward-images", "200", "--run", "more"))["reward_images_may_be_seen"] is True
