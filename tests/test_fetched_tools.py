"""scripts/fetch-test-tools where it can fetch nothing, and what a test run says of the tests skipped for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from arm64_sandbox import FETCH, ROOT, fetch_hint

PROGRAMS = ("bash", "cat", "dirname", "grep", "mkdir", "mktemp", "rm")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With the script, the pinned versions and the programs that every system has; without apt and without .venv."""
    for name in (FETCH, "requirements/pinned.txt"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        found = shutil.which(program)
        assert found is not None
        (tmp_path / "bin" / program).symlink_to(found)
    return tmp_path


def fetch(checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout / "bin"), "HOME": os.environ.get("HOME", "/")}
    command = [str(checkout / "bin" / "bash"), str(checkout / FETCH)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_what_cannot_be_fetched_is_named_and_leaves_nothing_behind(checkout: Path) -> None:
    done = fetch(checkout)
    assert done.returncode == 1
    assert "needs Debian's apt" in done.stderr
    assert "no adbd, no qemu" in done.stderr
    assert "no arm64 libraries" in done.stderr
    assert list((checkout / ".test-tools").iterdir()) == []


def test_what_is_there_is_not_fetched_again(checkout: Path) -> None:
    pinned = (checkout / "requirements/pinned.txt").read_text().splitlines()
    wheels = " ".join(line for line in pinned if line.startswith(("onnxruntime==", "ai-edge-litert==")))
    made = checkout / ".test-tools/arm64/.made-of"
    made.parent.mkdir(parents=True)
    made.write_text(f"{wheels}\n")
    assert "no arm64 libraries" not in fetch(checkout).stderr
    made.write_text(f"{wheels}, older\n")
    assert "no arm64 libraries" in fetch(checkout).stderr


def test_the_end_of_a_run_says_how_to_get_what_tests_were_skipped_for() -> None:
    assert fetch_hint(["needs the tflite extra"]) == ""
    assert fetch_hint([f"Skipped: no qemu-aarch64: {FETCH}"]).startswith("1 test was skipped")
    hint = fetch_hint([f"no adbd: {FETCH}", "needs a C compiler", f"no qemu-x86_64: {FETCH}"])
    assert hint.startswith("2 tests were skipped")
    assert FETCH in hint
