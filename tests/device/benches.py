"""A network, and batches for the stand-in runner."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from phone_fake import fake_runner_source
from phone_fake.phone import FakePhone

from amc_mobile.device.device import Timing
from amc_mobile.device.phone_runner import InstalledFile
from amc_mobile.device.runner import (
    BenchEnd,
    BenchEvent,
    BenchManifest,
    BenchModel,
    BenchResult,
    BenchStart,
)

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


def manifest(library: str, models: Mapping[str, str], deadline_s: int = 60, model_deadline_s: int = 0) -> BenchManifest:
    """`models`: paths by identifier."""
    entries = tuple(BenchModel(name, path) for name, path in models.items())
    timing = Timing(samples=4)
    return BenchManifest("tflite", library, 1, deadline_s, entries, timing, model_deadline_s=model_deadline_s)


def runners(phone: FakePhone) -> list[int]:
    """The pids of the runners that work, without the shells that wait for them."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in phone.sandbox.processes()}
    return [pid for pid, words in commands.items() if words[0] != b"/bin/sh"]


def results(events: Iterable[BenchEvent]) -> list[tuple[str, float]]:
    """(id, first sample) of each result; the events are checked to be one complete run in order."""
    start, *middle, end = events
    assert (type(start), type(end)) == (BenchStart, BenchEnd)
    measured = [event for event in middle if isinstance(event, BenchResult)]
    assert measured == middle
    return [(event.id, event.samples_ms[0]) for event in measured]


def wait_for(condition: Callable[[], bool], limit_s: float = 20) -> None:
    """Ends at the first look that holds: adb lists a locked phone as authorizing every other moment."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
