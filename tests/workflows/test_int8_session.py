"""A whole session in int8 on digits, through the command line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, CommandLine

pytestmark = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")

NET = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes),
    )
"""


def amc(folder: Path, *arguments: str) -> Command:
    return CommandLine(folder)(*arguments)


def document(done: Command) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network, profiled and searched in int8."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "net.py").write_text(NET)
    words = ("--model", "net.py:build", "--data", "digits", "--input-size", "32", "--json", "--quiet")
    document(amc(folder, "train", *words, "--epochs", "4"))
    profiled = document(
        amc(
            folder,
            "profile",
            "--int8",
            "--device",
            "host",
            "--waive",
            "BUSY",
            "--runtime",
            "tflite",
            "--json",
            "--quiet",
        )
    )
    assert profiled["precision"] == "int8"
    # A budget that a busy machine meets as well, and a reward that looks for cheaper networks below it.
    found = document(amc(folder, "search", "--latency-ms", "100", "--reward", "error-log-macs", "--policy", "random",
                         "--reward-images", "64", "--calibration-images", "200", "--episodes", "3", "--measure-every",
                         "0", "--json", "--quiet"))  # fmt: skip
    assert found["run"].startswith("net.py-build-int8-latency-ms-100")
    assert 0 < found["predicted_cost"] < 100
    assert 0 < found["measured_ms"] < 100
    return folder


def test_the_table_holds_int8_kernels_alone(session: Path) -> None:
    shown = document(amc(session, "table", "show", "--json"))["conditions"]
    labels = [kernel["label"] for entry in shown for kernel in entry["kernels"]]
    assert labels
    assert all(label.endswith(" int8") for label in labels)


def test_export_quantises_the_final_network_anew_and_the_report_says_so(session: Path) -> None:
    exported = document(amc(session, "export", "--tflite", "--json", "--quiet"))
    (file,) = exported["files"]
    path, plain = session / file["path"], session / file["float32"]["path"]
    assert (exported["precision"], file["precision"], path.name) == ("int8", "int8", "model_int8.tflite")
    assert path.stat().st_size < plain.stat().st_size
    assert file["sqnr_db"] > 15  # a narrow network after four epochs
    assert abs(file["test_top1"] - file["float32"]["test_top1"]) < 0.05
    assert file["not_delegated"] == []
    assert file["pair"]["before"]["p50_ms"] > 0

    reported = document(amc(session, "report", "--json"))
    assert "int8" in reported["model"]
    assert [stage["name"] for stage in reported["stages"]][-2:] == ["tflite float32", "tflite int8"]
    assert reported["files"][0]["sqnr_db"] == pytest.approx(file["sqnr_db"])
    assert reported["pruned"]["accuracy"]["top1"] == pytest.approx(file["test_top1"])


def test_a_precision_that_a_format_does_not_have_is_refused_with_a_way_out(session: Path) -> None:
    done = amc(session, "export", "--onnx", "--fp16", "--quiet")
    assert done.returncode == 2
    assert "error: there is no float16 for .onnx files" in done.stderr
    assert "next: export with --tflite, or with --int8" in done.stderr


@pytest.mark.slow
def test_a_run_can_be_exported_in_another_precision(session: Path) -> None:
    (file,) = document(amc(session, "export", "--tflite", "--fp16", "--json", "--quiet"))["files"]
    assert (file["precision"], Path(file["path"]).name) == ("float16", "model_float16.tflite")
    assert file["sqnr_db"] > 50


def test_two_precisions_at_once_are_a_usage_error(tmp_path: Path) -> None:
    for command in (
        ("profile",),
        ("search", "--latency-ratio", "0.5"),
        ("export", "--tflite"),
        ("compare", "--macs-ratio", "0.5"),
    ):
        done = amc(tmp_path, *command, "--int8", "--fp16")
        assert done.returncode == 2
        assert "choose one of --int8, --fp16, --fp32" in done.stderr
