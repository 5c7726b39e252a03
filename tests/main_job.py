"""The whole job on a phone through the command line: profile, search, export, measure, report."""

from __future__ import annotations

from command_line import CommandLine

NETWORK = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )
"""
EXPORT_FLAGS = {"tflite": "--tflite", "onnxruntime": "--onnx"}
SEARCH = (
    "--min-keep-ratio", "0.1", "--calibration-images", "64", "--reward-images", "32", "--episodes", "8",
    "--policy", "random",
)  # fmt: skip
GATE_CODES = (0, 3)  # 3: the exported file misses its budget, as it may on a busy or emulated phone


def run_main_job(amc: CommandLine, runtime: str, *device: str) -> None:
    """`device`: the flags that name the phone. Each step's document is checked for what the next one builds on."""
    (amc.folder / "net.py").write_text(NETWORK)
    network = ("--model", "net.py:build", "--input-size", "32", "--data", "digits", "--runtime", runtime)
    profiled = amc.document("profile", *device, *network, "--quiet")
    conditions = profiled["conditions"]
    assert conditions["os"].startswith("Android ")
    assert profiled["kernels"] > 0
    assert 0 < profiled["fastest_p50_ms"] < profiled["original_p50_ms"]

    found = amc.document("search", "--latency-ratio", "0.7", *SEARCH, "--quiet")
    assert found["measured_ms"] > 0
    assert found["macs"] < found["original_macs"]

    (exported,) = amc.document("export", EXPORT_FLAGS[runtime], "--quiet", codes=GATE_CODES)["files"]
    assert exported["pair"]["after"]["conditions"] == exported["pair"]["before"]["conditions"]
    assert exported["pair"]["after"]["p50_ms"] < exported["pair"]["before"]["p50_ms"]

    measured = amc.document("measure", str(amc.folder / exported["path"]), *device, "--quiet")
    assert measured["conditions"] == exported["pair"]["after"]["conditions"]
    assert measured["conditions"]["library_sha256"] == conditions["library_sha256"]
    assert amc.document("report")["conditions"]["device"] == conditions["device"]
