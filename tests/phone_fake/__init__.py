"""A phone in pure Python: an adbd that the real adb server connects to, with a sandbox for a file system and faults."""

from __future__ import annotations

from pathlib import Path


def fake_runner_source() -> str:
    return (Path(__file__).parent / "fake_runner.py").read_text()
