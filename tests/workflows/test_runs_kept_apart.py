"""What one run may take over from another command: nothing that was made of other weights, and never at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from amc_mobile.user_file import load_function
from amc_mobile.workflows.runs import ExportRecord, FinetuneRecord, Run

Command = Callable[..., str]

NET = """
from torch import nn


def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, num_classes),
    )
"""
NETWORK = ("--model", "net.py:net", "--input-size", "16", "--data", "digits", "--checkpoint", "net.pt")
IMAGES = ("--calibration-images", "48", "--reward-images", "32")
SEARCH = ("search", "--macs-ratio", "0.5", "--policy", "random", "--episodes", "6", *NETWORK, *IMAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    write_weights(tmp_path, seed=0)
    return tmp_path


def write_weights(folder: Path, *, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(load_function(f"{folder / 'net.py'}:net")().state_dict(), folder / "net.pt")


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "amc-workspace/runs").iterdir() if not path.name.startswith("."))


def last_run(folder: Path) -> str:
    return str(json.loads((folder / "amc-workspace/workspace.json").read_text())["last_run"])


def test_a_run_is_not_taken_over_with_other_weights(folder: Path, command: Command) -> None:
    assert "run net-" not in command(*SEARCH, "--run", "mine")
    command("compare", "--macs-ratio", "0.5", "--policies", "uniform", "--seeds", "0", *NETWORK, *IMAGES)
    before = json.loads(command("report"))
    write_weights(folder, seed=1)
    after = json.loads(command("report"))  # of the network that was searched
    assert after | {"created": ""} == before | {"created": ""}
    refused = command(*SEARCH, "--run", "mine")
    assert refused.startswith("exit 1: ") and "weights" in refused and "--run" in refused
    for words in (("finetune", "--run", "mine"), ("export", "--onnx", "--run", "mine")):
        refused = command(*words)
        assert refused.startswith("exit 1: ") and "weights" in refused and "--run" in refused
    refused = command("compare", "--macs-ratio", "0.5", "--policies", "uniform", "--seeds", "0", *NETWORK, *IMAGES)
    assert refused.startswith("exit 1: ") and "weights" in refused
    assert "run other:" in command(*SEARCH, "--run", "other")


def test_a_refused_search_leaves_no_run_and_does_not_become_the_last(folder: Path, command: Command) -> None:
    command(*SEARCH, "--run", "mine")
    settings = (folder / "amc-workspace/runs/mine/settings.json").read_bytes()
    assert command(*SEARCH, "--macs-ratio", "0.0001", "--run", "small").startswith("exit 1: ")
    assert command(*SEARCH, "--keep", "nothing", "--run", "wrong").startswith("exit 2: ")
    assert command(*SEARCH, "--reward", "top1", "--run", "mine").startswith("exit 1: ")
    assert runs(folder) == ["mine"]
    assert last_run(folder) == "mine"
    assert (folder / "amc-workspace/runs/mine/settings.json").read_bytes() == settings


def test_the_runs_of_a_comparison_do_not_become_the_last(folder: Path, command: Command) -> None:
    command(*SEARCH, "--run", "mine")
    compared = command("compare", "--macs-ratio", "0.5", "--policies", "uniform,random", "--seeds", "0",
                       "--episodes", "5", *NETWORK, *IMAGES)  # fmt: skip
    assert not compared.startswith("exit")
    assert len(runs(folder)) == 3
    assert last_run(folder) == "mine"
    assert "run mine:" in command("finetune", "--epochs", "1")


def test_a_finished_search_goes_on_with_more_episodes(folder: Path, command: Command) -> None:
    log = folder / "amc-workspace/runs/mine/episodes.csv"
    command(*SEARCH, "--run", "mine")
    first = log.read_text().splitlines()
    assert "9 episodes" in command(*SEARCH, "--run", "mine", "--episodes", "9")
    longer = log.read_text().splitlines()
    assert longer[: len(first)] == first and len(longer) == 10
    refused = command(*SEARCH, "--run", "mine", "--episodes", "4")
    assert refused.startswith("exit 1: ") and "9" in refused and "--run" in refused


def test_what_cannot_be_extended_says_so_and_names_the_run_flag(folder: Path, command: Command) -> None:
    command(*SEARCH, "--run", "mine", "--policy", "netadapt")
    refused = command(*SEARCH, "--run", "mine", "--policy", "netadapt", "--episodes", "9")
    assert refused.startswith("exit 1: ") and "netadapt" in refused and "--run" in refused
    refused = command(*SEARCH, "--run", "mine", "--policy", "netadapt", "--min-keep-ratio", "0.3")
    assert refused.startswith("exit 1: ") and "--run" in refused and "min_keep_ratio" in refused


def test_two_commands_cannot_work_on_one_run(folder: Path, command: Command) -> None:
    command(*SEARCH, "--run", "mine")
    program = (
        "import sys\nfrom pathlib import Path\nfrom amc_mobile.workflows.workspace import Workspace\n"
        "with Workspace(Path('amc-workspace')).working_on('mine'):\n print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for words in ((*SEARCH, "--run", "mine"), ("finetune", "--run", "mine"), ("export", "--onnx", "--run", "mine")):
            refused = command(*words)
            assert refused.startswith("exit 1: ") and f"process {holder.pid} " in refused and "mine" in refused
        assert "run other:" in command(*SEARCH, "--run", "other")
    finally:
        holder.kill()
        holder.wait()
        for pipe in (holder.stdin, holder.stdout):
            if pipe is not None:
                pipe.close()
    assert "run mine:" in command(*SEARCH, "--run", "mine")  # what a killed process held is free


@pytest.mark.parametrize("what", ["train", "sensitivity"])
def test_two_commands_cannot_write_the_same_files_of_a_workspace(what: str, folder: Path, command: Command) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom amc_mobile.workflows.workspace import Workspace\n"
        f"with Workspace(Path('amc-workspace')).writing('{what}'):\n print('held', flush=True); sys.stdin.read()"
    )
    flags = {"train": ("--epochs", "1"), "sensitivity": ("--ratios", "0.5", "--untrained", *IMAGES)}
    words = (what, *flags[what], *NETWORK)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = command(*words)
        assert refused.startswith("exit 1: ") and f"process {holder.pid} " in refused and "--workspace" in refused
        holder.kill()
    assert not command(*words).startswith("exit ")
    assert not list((folder / "amc-workspace").glob(".*.lock"))


def test_an_export_made_before_a_fine_tuning_is_named_as_outdated(folder: Path, command: Command) -> None:
    command(*SEARCH, "--run", "mine")
    assert "exported the pruned network" in command("export", "--onnx", "--offline")
    assert not any(file["is_outdated"] for file in json.loads(command("report"))["files"])
    tuned = json.loads(command("finetune", "--epochs", "2", "--json"))
    assert tuned["kept"]
    shown = json.loads(command("report"))
    assert [file["is_outdated"] for file in shown["files"]] == [True]
    assert {stage["name"]: stage["note"][:8] for stage in shown["stages"]}["onnx"] == "outdated"
    assert shown["pruned"]["accuracy"]["top1"] == tuned["test_top1"]
    page = (folder / "amc-workspace/runs/mine/report.html").read_text()
    assert "model.onnx (outdated)" in page and "written before the present weights" in page


def test_a_fine_tuning_belongs_to_the_weights_it_began_with(tmp_path: Path) -> None:
    run, golden = Run(tmp_path / "mine"), Run(Path(__file__).parent.parent / "golden" / "guards" / "run")
    run.save_weights("pruned", nn.Linear(2, 2))
    run.save(replace(golden.load(FinetuneRecord), pruned_sha256=run.stage_sha256("pruned")))
    run.save_weights("finetuned", nn.Linear(2, 2))
    exported = replace(golden.load(ExportRecord), weights_sha256=run.stage_sha256("finetuned"))
    assert (run.best_stage(), run.is_outdated(exported)) == ("finetuned", False)
    run.save_weights("pruned", nn.Linear(2, 2))  # as a longer search does that finds another plan
    assert (run.best_stage(), run.finetuned(), run.is_outdated(exported)) == ("pruned", None, True)


def test_what_kept_channels_are_multiples_of_is_said_group_by_group(folder: Path, command: Command) -> None:
    refused = command(*SEARCH, "--multiple", "1000")
    assert refused.startswith("exit 2: ") and "--multiple 1000" in refused and "has 16" in refused
    said = command(*SEARCH, "--multiple", "16", "--run", "mine")
    assert "multiples of 16 or all: --multiple; of 4 in 0, 3 (with fewer than 64 channels" in said
    found = json.loads((folder / "amc-workspace/runs/mine/search.json").read_text())
    assert found["multiple"] == {"used": 16, "why": "--multiple", "groups": {"0": 4, "3": 4}}
    assert all(kept % 4 == 0 for kept in found["plan"]["kept_channels"].values())
