"""Runs tests/phone as a user would, on a phone that the environment makes adb see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 900


def run_phone_suite(serial: str, *words: str, **variables: str) -> int:
    """The number of tests that passed; none may fail. `words`: for pytest."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ANDROID_SERIAL": serial, **variables}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/phone", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    return int(passed[1]) if passed else 0
