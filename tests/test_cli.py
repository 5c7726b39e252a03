"""The command line: help, exit codes, and errors a user can act on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from command_line import Command, CommandLine
from safetensors.torch import load_file
from stored_passes import stored_passes
from torch import nn

COMMANDS = (
    "check", "prune", "models", "devices", "doctor", "runtime add", "runtime list", "train", "profile", "search",
    "finetune", "export",
    "measure", "report", "compare", "sensitivity", "table show", "table export", "table import", "table merge",
    "table verify", "table adopt", "table plot", "config", "status",
)  # fmt: skip


def amc(*arguments: str, cwd: Path) -> Command:
    return CommandLine(cwd)(*arguments)


def assert_clear_error(done: Command | subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode in (1, 2), done.stderr  # 2: what was typed cannot be meant
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    for word in words:
        assert word in line + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_needs_nothing_heavy(command: str, tmp_path: Path) -> None:
    program = f"import sys; sys.argv=['amc-mobile', *{command.split()!r}, '--help']\nfrom amc_mobile.cli import main\n"
    names_registries = command in ("search", "compare", "sensitivity")  # which need NumPy
    heavy = {"torch", "adbutils"} | (set() if names_registries else {"numpy"})
    program += f"try: main()\nfinally: print({heavy!r} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "Example: amc-mobile" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_package_runs_as_the_command_does(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = [
        subprocess.run([sys.executable, "-m", "amc_mobile", *words], cwd=tmp_path, env=environment,
                       capture_output=True, text=True)
        for words in (("--help",), ("report",))
    ]  # fmt: skip
    assert done[0].returncode == 0, done[0].stderr
    assert "Usage: amc-mobile [OPTIONS] COMMAND" in done[0].stdout
    assert_clear_error(done[1], "no run yet in amc-workspace")


def test_models_prints_one_json_document(tmp_path: Path) -> None:
    done = amc("models", "--json", cwd=tmp_path)
    assert {"mobilenet_v1", "resnet56"} <= {entry["name"] for entry in json.loads(done.stdout)["models"]}


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    assert amc("purne", cwd=tmp_path).returncode == 2


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    done = amc("search", "--macs-ratio", "0.5", "--model", "resnet20", "--data", "digits", "--checkpoint", "no.pt",
               cwd=tmp_path)  # fmt: skip
    assert_clear_error(done, "no.pt", "--checkpoint")


def test_a_checkpoint_of_another_shape_is_named(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 1).state_dict(), tmp_path / "other.pt")
    done = amc("search", "--macs-ratio", "0.5", "--model", "resnet20", "--data", "digits", "--checkpoint", "other.pt",
               cwd=tmp_path)  # fmt: skip
    assert_clear_error(done, "other.pt")


def test_a_network_with_control_flow_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Gate(nn.Module):\n"
        "    def forward(self, x):\n        return x if x.mean() > 0 else -x\n"
        "def build(num_classes=10):\n"
        "    layers = [nn.Conv2d(3, 8, 3), Gate(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]\n"
        "    return nn.Sequential(*layers)\n"
    )
    done = amc("search", "--macs-ratio", "0.5", "--model", "net.py:build", "--input-size", "32", "--data", "digits",
               cwd=tmp_path)  # fmt: skip
    assert_clear_error(done, "1")


def test_a_budget_below_the_smallest_plan_says_what_can_be_reached(tmp_path: Path) -> None:
    done = amc("search", "--macs-ratio", "0.01", "--model", "resnet20", "--data", "digits", cwd=tmp_path)
    assert_clear_error(done, "smallest plan", "M MACs")


def test_a_corrupt_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "amc-workspace" / "table.sqlite"
    table.parent.mkdir()
    table.write_bytes(b"not a database" * 100)
    done = amc("table", "show", cwd=tmp_path)
    assert_clear_error(done, "table.sqlite")
    assert table.read_bytes() == b"not a database" * 100


def test_an_unknown_key_in_a_toml_file_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "amc.toml").write_text('modle = "resnet20"\n')
    done = amc("profile", "--config", "amc.toml", cwd=tmp_path)
    assert_clear_error(done, "modle", "known keys: ", "macs_ratio", "model", "width")


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    from amc_mobile.cli import main

    monkeypatch.setattr(sys, "argv", ["amc-mobile", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    return int(ended.value.code or 0), output.out, output.err


@pytest.mark.parametrize(
    ("words", "code", "kind", "message"),
    [
        (("search", "--latency-ms", "-3"), 2, "InvalidConfig", "a latency is above 0 ms"),
        (("search", "--episodes", "many"), 2, "UsageMistake", "--episodes"),
        (("measure", "none.onnx"), 1, "InvalidInput", "none.onnx"),
    ],
)
def test_errors_are_json_where_json_is_asked_for(
    words: tuple[str, ...], code: int, kind: str, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ended, out, err = said(capsys, monkeypatch, *words, "--json")
    error = json.loads(out)["error"]
    assert (ended, error["exit_code"], error["kind"]) == (code, code, kind)
    assert message in error["message"]
    assert error["next"]
    assert err
    assert said(capsys, monkeypatch, *words)[:2] == (code, "")


def test_version_short_help_and_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from amc_mobile import __version__

    assert said(capsys, monkeypatch, "--version") == (0, f"{__version__}\n", "")
    for words in ((), ("search",), ("table", "show")):
        code, out, _ = said(capsys, monkeypatch, *words, "-h")
        assert code == 0
        assert "Example: amc-mobile" in out
    assert "--install-completion" in said(capsys, monkeypatch, "-h")[1]


def test_help_has_panels_with_the_main_job_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, monkeypatch, "-h")[1].splitlines()
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        "Options:", "Main job:", "Devices:", "Tables:", "Research:",
    ]  # fmt: skip
    lines = said(capsys, monkeypatch, "search", "-h")[1].splitlines()
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        "Budget:", "Search:", "Network:", "Device:", "Output:", "Advanced:",
    ]  # fmt: skip


def test_every_option_is_in_a_panel_and_every_command_too() -> None:
    from typer.main import get_command

    from amc_mobile.cli import app
    from amc_mobile.cli_options import COMMAND_PANELS, OPTION_PANELS

    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        assert command.rich_help_panel in COMMAND_PANELS
        for flag in command.params:
            if flag.param_type_name == "option":
                assert getattr(flag, "rich_help_panel", None) in (None, *OPTION_PANELS)


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("search --policy dd", {"ddpg", "ddpg-sequential"}),
        ("search --reward fid", {"fidelity"}),
        ("search --channel-choice th", {"thinet"}),
        ("measure --runtime onnx", {"onnxruntime"}),
        ("profile --device hos", {"host"}),
    ],
)
def test_a_shell_completes_the_names_of_registries(typed: str, names: set[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    environment |= {"_AMC_MOBILE_COMPLETE": "complete_bash", "COMP_WORDS": f"amc-mobile {typed}", "COMP_CWORD": "3"}
    program = "from amc_mobile.cli import app; app(prog_name='amc-mobile')"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == names


def test_the_help_of_data_names_every_source() -> None:
    from amc_mobile.data.sources import SOURCES
    from amc_mobile.workflows.workspace import Settings

    (data,) = (each for each in fields(Settings) if each.name == "data")
    assert [name for name in SOURCES if name not in data.metadata["option"].help] == []


def test_waiting_is_told_at_longer_and_longer_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    from amc_mobile.cli_options import progress_bars

    with progress_bars(quiet=False) as progress:
        for second in range(61):
            progress("wait for other programs to end", second, 60, "cc1plus takes 1.0 cores")
    assert len(capsys.readouterr().err.splitlines()) <= 8


def test_status_tells_what_a_workspace_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from amc_mobile.store import write_json
    from amc_mobile.workflows.workspace import Settings, Workspace

    monkeypatch.chdir(tmp_path)
    code, out, _ = said(capsys, monkeypatch, "status")
    assert code == 0 and "next: amc-mobile train --model" in out
    assert not (tmp_path / "amc-workspace").exists()
    space = Workspace(tmp_path / "amc-workspace")
    for name, steps in (
        ("resnet20-macs-ratio-0.5", ("settings", "search")),
        ("mine", ("settings", "search", "export")),
    ):
        for step in steps:
            write_json(space.runs / name / f"{step}.json", {}, format_version=1)
    space.remember(Settings(model="resnet20", data="digits"), run="resnet20-macs-ratio-0.5")
    document = json.loads(said(capsys, monkeypatch, "status", "--json")[1])
    assert (document["model"], document["data"], document["device"]) == ("resnet20", "digits", "host")
    runs = {run["short"]: (run["stage"], run["is_last"]) for run in document["runs"]}
    assert runs == {"macs-ratio-0.5": ("searched", True), "mine": ("exported", False)}
    assert document["next"] == "amc-mobile finetune"
    assert space.run_folder("macs-ratio-0.5").name == "resnet20-macs-ratio-0.5"
    assert "macs-ratio-0.5  searched  last" in " ".join(said(capsys, monkeypatch, "status")[1].split("\n")).replace(
        "   ", "  "
    )


def test_a_configuration_has_the_keys_of_the_flags(tmp_path: Path) -> None:
    (tmp_path / "amc.toml").write_text(
        'model = "resnet20"\ndata = "digits"\nmacs_ratio = 0.5\npolicy = "uniform"\nepisodes = 1\nepochs = 3\n'
        "width = 0.5\ncalibration_images = 64\nreward_images = 32\nquiet = true\nseed = 4\nuntrained = true\n"
    )
    done = amc("search", "--config", "amc.toml", "--json", "--seed", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    asked = json.loads((tmp_path / "amc-workspace/runs" / found["run"] / "settings.json").read_text())
    wanted = {"macs_ratio": 0.5, "policy": "uniform", "episodes": 1, "calibration_images": 64, "reward_images": 32}
    assert {key: asked["search"][key] for key in wanted} == wanted
    assert (asked["settings"]["width_multiplier"], asked["settings"]["seed"]) == (0.5, 5)  # flags come first
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("macs_ratio = true", "macs_ratio = 'True' is not of type float"),
        ('episodes = "3"', "episodes = '3' is not of type int"),
        ("epochs = 0.5", "epochs = 0.5 is no number of epochs"),
        ("waive = [1]", "waive = [1] is no list of texts"),
        ("run = 'x'", "unknown key 'run'"),
        ("macs_ratio = 2", "--macs-ratio 2: a share"),
        ("a = [", "not TOML"),
    ],
)
def test_a_wrong_value_in_a_configuration_is_named(
    text: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from amc_mobile.cli import main

    (tmp_path / "amc.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["amc-mobile", "search", "--config", "amc.toml"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert error in said


def test_config_writes_a_file_that_config_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from amc_mobile.cli import main
    from amc_mobile.workflows.workspace import Settings, Workspace

    monkeypatch.chdir(tmp_path)
    Workspace(tmp_path / "amc-workspace").remember(Settings(model="resnet20", width_multiplier=0.5))

    def said(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["amc-mobile", *words])
        with pytest.raises(SystemExit):
            main()
        output = capsys.readouterr()
        return output.out + output.err

    assert "wrote amc.toml" in said("config")
    lines = (tmp_path / "amc.toml").read_text().splitlines()
    assert 'model = "resnet20"' in lines and "width = 0.5" in lines
    assert "# macs_ratio = 0.5" in lines
    said_of_epochs = lines[lines.index("# epochs = 10") - 1]
    assert said_of_epochs.endswith("Without this line: prune 10, train 30.")  # it holds for both
    values = [line.removeprefix("# ") for line in lines if re.fullmatch(r"#? ?[a-z0-9_]+ = .*", line)]
    (tmp_path / "all.toml").write_text("\n".join(values))
    assert "cannot be" in (answer := said("search", "--config", "all.toml")) or "error" in answer
    assert "all.toml" not in answer  # every line could be read
    assert "is there already" in said("config")


def test_two_limits_of_one_latency_are_refused(tmp_path: Path) -> None:
    done = amc("search", "--latency-ms", "5", "--latency-ratio", "0.5", "--model", "resnet20", cwd=tmp_path)
    assert_clear_error(done, "--latency-ms and --latency-ratio")


def test_a_missing_file_to_measure_is_named(tmp_path: Path) -> None:
    assert_clear_error(amc("measure", "none.onnx", cwd=tmp_path), "none.onnx")


SMALL_NET = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""
SMALL = ("--model", "net.py:build", "--input-size", "32", "--data", "digits", "--calibration-images", "64",
         "--reward-images", "32", "--quiet")  # fmt: skip
SEARCH = ("search", "--macs-ratio", "0.5", "--policy", "random", "--episodes", "60", *SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a small network."""
    (tmp_path / "net.py").write_text(SMALL_NET)
    return tmp_path


def test_a_killed_search_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for side in (whole, killed):
        side.mkdir()
        (side / "net.py").write_text(SMALL_NET)
    assert amc(*SEARCH, cwd=whole).returncode == 0
    log = killed / "amc-workspace/runs/net.py-build-macs-ratio-0.5-random-s0/episodes.csv"
    process = CommandLine(killed).start(*SEARCH)
    deadline = time.monotonic() + 240
    while (not log.exists() or len(log.read_text().splitlines()) < 4) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the search ended before it could be killed"
    rows = log.read_text().splitlines()
    assert len(rows) >= 4
    assert amc(*SEARCH, cwd=killed).returncode == 0
    files = [
        # A kill amid an atomic write leaves its hidden temporary file.
        sorted(p.name for p in (side / "amc-workspace/runs").rglob("[!.]*") if p.is_file())
        for side in (whole, killed)
    ]
    assert files[0] == files[1]
    assert log.read_text().splitlines()[: len(rows) - 1] == rows[:-1]
    plans = [json.loads((side / "amc-workspace/runs" / log.parent.name / "search.json").read_text())["plan"]
             for side in (whole, killed)]  # fmt: skip
    assert plans[0] == plans[1]


SHARED = (*SMALL, "--json")


def test_compare_takes_every_number_from_a_run_folder_and_runs_nothing_twice(folder: Path) -> None:
    words = (
        "compare",
        "--macs-ratio",
        "0.5",
        "--policies",
        "uniform,random",
        "--seeds",
        "0",
        "--episodes",
        "5",
        *SHARED,
    )
    first = amc(*words, cwd=folder)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert [row["policy"] for row in document["policies"]] == ["uniform", "random"]
    runs = folder / "amc-workspace/runs"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("search.json")}
    assert len(before) == 2
    for run in document["runs"]:
        search = json.loads((runs / run["run"] / "search.json").read_text())
        assert (run["reward"], run["macs"]) == (search["reward"], search["macs"])
        assert run["refitted_top1"] == search["test_top1"]["refitted"]
    page = (folder / "amc-workspace/compare.html").read_text()
    for run in document["runs"]:
        assert f'href="runs/{run["run"]}/search.json"' in page
    assert page.count('class="chart"') == 3
    assert json.loads(amc(*words, cwd=folder).stdout) == document
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("search.json")} == before


def test_a_search_that_must_keep_the_accuracy_says_whether_it_did(folder: Path) -> None:
    done = amc("search", "--macs-ratio", "0.9", "--max-loss", "0.9", "--reward", "error-log-macs", "--policy", "random",
               "--episodes", "6", *SHARED, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy_kept"] is True  # untrained: its accuracy is below 0.9, so nothing can be lost
    assert found["macs"] < 0.9 * found["original_macs"]


@pytest.mark.parametrize("choice", ["taylor", "lasso"])
def test_a_search_takes_a_channel_choice_and_a_memory_limit(choice: str, folder: Path) -> None:
    done = amc("search", "--macs-ratio", "0.5", "--policy", "uniform", "--channel-choice", choice, "--memory-mb", "1",
               *SHARED, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    run = folder / "amc-workspace/runs" / found["run"]
    wanted = json.loads((run / "settings.json").read_text())
    assert wanted["search"]["channel_choice"] == choice
    assert wanted["settings"]["memory_mb"] == 1
    assert sum(len(kept) for kept in found["plan"]["kept_indices"].values()) < sum(found["plan"]["channels"].values())


@pytest.mark.parametrize(
    ("words", "error", "step"),
    [
        ("search --latency-ms -3", "--latency-ms -3: a latency is above 0 ms", "--latency-ms 5"),
        ("search --latency-ratio 0", "--latency-ratio 0: a share of the original is above 0 and at most 1", "0.5"),
        ("search --macs-ratio 1.5", "--macs-ratio 1.5: a share of the original is above", "--macs-ratio 0.5"),
        ("search --macs-ratio .5 --policy foo", "--policy 'foo' is unknown", "one of: ddpg, ddpg-sequential, critic"),
        ("search --macs-ratio .5 --policy from-file", "'from-file' does not say which plan", "from-file:PATH"),
        ("search --macs-ratio .5 --reward speed", "--reward 'speed' is unknown", "one of: fidelity, top1, macs"),
        ("search --macs-ratio .5 --channel-choice l0", "--channel-choice 'l0' is unknown", "one of: backward, omp"),
        ("search --macs-ratio .5 --granularity bit", "--granularity 'bit' is unknown", "one of: channel, weight"),
        ("search --macs-ratio .5 --episodes 0", "--episodes 0 is not allowed", "1 or more"),
        ("search --macs-ratio .5 --min-keep-ratio 2", "--min-keep-ratio 2: a share of a group's channels", "0.2"),
        ("search", "no budget was given", "--latency-ms"),
        ("compare --macs-ratio .5 --policies uniform,foo", "--policy 'foo' is unknown", "one of: ddpg"),
        ("compare --macs-ratio .5 --reward speed", "--reward 'speed' is unknown", "one of: fidelity"),
        ("sensitivity --channel-choice l0", "--channel-choice 'l0' is unknown", "one of: backward, omp"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_loaded(
    words: str, error: str, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The modules that load torch are taken away: whoever needed one of them before the check would fail."""
    from amc_mobile.cli import main

    heavy = ("torch", "amc_mobile.workflows.search", "amc_mobile.workflows.compare", "amc_mobile.workflows.sensitivity")
    for name in heavy:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["amc-mobile", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert error in said[0]
    assert step in said[1]


def test_the_checks_of_flags_load_no_torch() -> None:
    program = "import sys, amc_mobile.workflows.search_config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_channel_choice_lists_the_known_ones(folder: Path) -> None:
    done = amc("search", "--macs-ratio", "0.5", "--channel-choice", "l0", *SHARED, cwd=folder)
    assert_clear_error(done, "'l0'", "backward, omp, lasso, thinet, taylor, fpgm, l1-rms, l1")


def test_single_weights_are_pruned_fine_tuned_and_exported(folder: Path) -> None:
    done = amc("search", "--granularity", "weight", "--params-ratio", "0.4", "--policy", "random", "--episodes", "6",
               *SHARED, cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0.3 < found["parameters"] / found["original_parameters"] <= 0.4
    assert found["macs"] == found["original_macs"]
    run = folder / "amc-workspace/runs" / found["run"]
    masks, pruned = load_file(run / "masks.safetensors"), load_file(run / "pruned.safetensors")
    kept = found["plan"]["kept_weights"]
    assert kept == {name.removesuffix(".weight"): int(mask.sum()) for name, mask in masks.items()}
    assert list(kept) == ["0", "2", "6"]
    tuned = amc("finetune", "--epochs", "1", "--json", "--quiet", cwd=folder)
    assert tuned.returncode == 0, tuned.stderr
    after = load_file(run / "finetuned.safetensors")
    for name, mask in masks.items():
        assert not after[name][mask == 0].any()
        assert not torch.equal(after[name], pruned[name])
    exported = amc("export", "--onnx", "--quiet", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert "latency do not follow the density" in exported.stdout
    assert "PASS" in exported.stdout
    assert amc("report", cwd=folder).returncode == 0
    again = amc("search", "--granularity", "weight", "--params-ratio", "0.4", "--policy",
                f"from-file:{run / 'search.json'}", *SHARED, cwd=folder)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["plan"] == found["plan"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--granularity", "weight", "--macs-ratio", "0.5"), "--params-ratio"),
        (("--granularity", "filter", "--params-ratio", "0.5"), "channel, weight"),
    ],
)
def test_a_granularity_that_cannot_be_is_refused(words: tuple[str, ...], said: str, folder: Path) -> None:
    assert_clear_error(amc("search", *words, *SHARED, cwd=folder), said)


PROFILE = ("profile", "--device", "host", "--waive", "BUSY", "--runtime", "onnxruntime", "--model", "net.py:build",
           "--input-size", "32", "--data", "digits", "--quiet")  # fmt: skip


def test_a_killed_profile_goes_on_and_measures_nothing_twice(folder: Path) -> None:
    table = folder / "amc-workspace/table.sqlite"
    process = CommandLine(folder).start(*PROFILE)
    deadline = time.monotonic() + 240
    while not (before := stored_passes(table)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the profile ended before it could be killed"
    before = stored_passes(table)
    assert before
    assert amc(*PROFILE, cwd=folder).returncode == 0
    after = stored_passes(table)
    assert after[: len(before)] == before
    assert len(after) > len(before)
    # A finished kernel is not measured again, neither by the second call nor by a third.
    assert amc(*PROFILE, cwd=folder).returncode == 0
    assert stored_passes(table) == after
    passes = Counter(subject for _, subject, _ in after)
    assert max(passes.values()) <= 10  # the protocol's most passes, over both calls together
    shown = json.loads(amc("table", "show", "--json", cwd=folder).stdout)["conditions"]
    assert sum(len(entry["kernels"]) + entry["model_measurements"] for entry in shown) == len(passes)
