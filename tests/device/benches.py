"""A network, and batches for the stand-in runner."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from phone_fake import fake_runner_source
from phone_fake.phone import FakePhone

from amc_mobile.device.phone_runner import InstalledFile

NETWORK = """
from torch import nn


def build(num_classes=10):
    layers = [nn.Conv2d(3, 48, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(48, 48, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, num_classes))
"""


def fake_runner(folder: Path) -> Path:
    """The stand-in as an executable file."""
    path = folder / "amc-bench"
    path.write_text(f"#!{sys.executable} -ISs\n{fake_runner_source()}")
    path.chmod(0o755)
    return path


def installed(path: Path) -> InstalledFile:
    import hashlib

    return InstalledFile(path, hashlib.sha256(path.read_bytes()).hexdigest())


def manifest(library: str, models: Mapping[str, str]) -> str:
    """`models`: paths by identifier."""
    lines = ["amc_bench_manifest 1", "runtime tflite", f"library {library}", "threads 1", "deadline_s 60", "samples 4"]
    return "\n".join([*lines, *(f"model {name} {path}" for name, path in models.items())]) + "\n"


def runners(phone: FakePhone) -> list[int]:
    """The pids of the runners that work, without the shells that wait for them."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in phone.sandbox.processes()}
    return [pid for pid, words in commands.items() if words[0] != b"/bin/sh"]


def results(lines: Iterable[str]) -> list[tuple[str, float]]:
    """(id, first sample) of each result line, which are checked to be one complete run in order."""
    documents = [json.loads(line) for line in lines]
    assert [d["event"] for d in documents] == ["start"] + ["result"] * (len(documents) - 2) + ["end"]
    return [(d["id"], d["samples_ms"][0]) for d in documents[1:-1]]
