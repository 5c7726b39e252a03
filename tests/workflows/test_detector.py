"""A detector through every command, in mAP where a classifier has top-1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_device import Bench

LOADER = """
from amc_mobile.data.sources import load_dataset


def few(image_size=32):
    shapes = load_dataset("shapes", image_size=image_size)
    train, test = shapes.train, shapes.test
    return (train.images[:120].numpy(), train.labels[:120].numpy()), (test.images[:20], test.labels[:20])
"""
NETWORK = ("--model", "ssdlite_mobilenet_v2", "--width", "0.125", "--input-size", "32")


def test_a_detector_goes_through_every_command(tmp_path: Path, command: Callable[..., str]) -> None:
    (tmp_path / "boxes.py").write_text(LOADER)
    trained = command("train", *NETWORK, "--data", "boxes.py:few", "--epochs", "1", "--batch-size", "30")
    assert "mAP@0.5" in trained
    assert "on 20 test images after 1 epochs" in trained
    searched = command("search", "--macs-ratio", "0.8", "--policy", "uniform", "--run", "cut", "--reward-images", "20",
                       "--channel-choice", "l1", "--min-keep-ratio", "0.5", "--multiple", "64")  # fmt: skip
    assert "mAP@0.5 on 20 test images: original" in searched
    tuned = json.loads(command("finetune", "--epochs", "1", "--batch-size", "30", "--json"))
    assert tuned["metric"] == "mAP@0.5"
    assert tuned["learning_rate"] == 0.002
    assert tuned["epoch_reports"][0]["train_top1"] is None
    exported = json.loads(command("export", "--onnx", "--offline", "--json"))
    parity = exported["files"][0]["parity"]
    assert parity["max_abs"] < 1e-4 * parity["largest_logit"]
    assert parity["top1_agreement"] > 0.999
    assert abs(exported["files"][0]["test_top1"] - exported["test_top1"]) < 0.05
    report = json.loads(command("report"))
    assert report["original"]["accuracy"]["metric"] == "mAP@0.5"
    kept = {group["name"]: group["reason"] for group in report["kept_groups"]}
    assert kept["classification_heads.0.1"] == kept["regression_heads.2.1"] == "network output"
    page = (tmp_path / "amc-workspace/runs/cut/report.html").read_text()
    assert "mAP@0.5 on 20 held-out images" in page
    assert "of the anchors of 20" in page
    assert "top-1" not in page
    quantised = command("export", "--onnx", "--int8", "--offline")
    assert quantised.count("mAP@0.5") == 2
    assert "% of the anchors\n" in quantised
    assert "top-1" not in quantised
    alone = command("sensitivity", "--ratios", "0.5", "--reward-images", "20", "--channel-choice", "l1")
    assert "original mAP@0.5" in alone
    assert "top-1" not in alone + (tmp_path / "amc-workspace/sensitivity.html").read_text()


@pytest.mark.slow
def test_a_detector_is_searched_in_int8(
    tmp_path: Path, command: Callable[..., str], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("profile", "export"):
        monkeypatch.setattr(f"amc_mobile.workflows.{module}.device_of", lambda *_: bench)
    (tmp_path / "boxes.py").write_text(LOADER)
    command("train", *NETWORK, "--data", "boxes.py:few", "--epochs", "1", "--batch-size", "30")
    assert command("profile", "--int8", "--runtime", "onnxruntime").startswith("ssdlite_mobilenet_v2 (int8) on bench")
    found = json.loads(command("search", "--latency-ratio", "0.7", "--policy", "random", "--episodes", "2",
                               "--reward-images", "20", "--channel-choice", "l1", "--json"))  # fmt: skip
    assert found["metric"] == "mAP@0.5"
    assert found["measured_ms"] <= found["budget"]["limit"] < 0.71 * found["budget"]["reference_ms"]
    assert found["predicted_cost"] == pytest.approx(found["measured_ms"], rel=0.02)
    command("finetune", "--epochs", "1", "--batch-size", "30")
    exported = json.loads(command("export", "--onnx", "--json"))
    assert (exported["precision"], exported["gate"]["passed"]) == ("int8", True)
    (file,) = exported["files"]
    assert file["sqnr_db"] > 15
    assert file["parity"]["top1_agreement"] > 0.95
    report = json.loads(command("report"))
    assert [stage["name"] for stage in report["stages"]][-2:] == ["onnx float32", "onnx int8"]
    assert report["pruned"]["accuracy"]["metric"] == "mAP@0.5"


def test_a_detector_is_not_trained_on_classes_of_images(command: Callable[..., str]) -> None:
    refused = command("train", *NETWORK, "--data", "digits", "--epochs", "1")
    assert refused.startswith("exit 1: error: the network detects objects")
    assert "--data shapes" in refused
