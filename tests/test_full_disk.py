"""A full disk and a folder that cannot be written to, as the commands say it, on a file system of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NET = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(16, 256, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(4096, num_classes),
    )
"""
TRAIN = ("train", "--model", "net.py:build", "--data", "digits", "--input-size", "16", "--epochs", "1")
SEARCH = ("search", "--macs-ratio", "0.5", "--policy", "uniform", "--episodes", "1", "--calibration-images", "16",
          "--reward-images", "8", "--model", "net.py:build", "--data", "digits", "--input-size", "16")  # fmt: skip
SESSION = """
import subprocess, sys
from pathlib import Path

from amc_mobile.cli import main

disk = Path(sys.argv[1])


def amc(*words):
    sys.argv = ["amc-mobile", *words, "--workspace", str(disk / "space"), "--quiet"]
    try:
        main()
    except SystemExit as ended:
        print(f"exit {ended.code}", file=sys.stderr, flush=True)


train, search = TRAIN, SEARCH
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "test", str(disk)], check=True)
amc(*train)  # the weights alone take more
(disk / "filler").write_bytes(b"")
try:
    with (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
amc(*search)
subprocess.run(["mount", "-o", "remount,ro", "test", str(disk)], check=True)
amc(*train)
amc(*search)
disk = Path("net.py")
amc(*train)
"""


def test_what_cannot_be_written_is_named_with_the_next_step(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        sys.platform != "linux"
        or subprocess.run([*mounting, "mount", "-t", "tmpfs", "t", disk], check=False).returncode
    ):
        pytest.skip("needs Linux with user namespaces, to mount a small file system")
    (tmp_path / "net.py").write_text(NET)
    script = SESSION.replace("TRAIN, SEARCH", f"{TRAIN!r}, {SEARCH!r}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*mounting, sys.executable, "-c", script, disk], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.split("exit 1\n")
    assert len(said) == 6 and not said[-1], done.stderr
    space = f"{disk}/space"
    for text, written in zip(said, ("train.safetensors", "runs"), strict=False):
        assert text.startswith(f"error: {space}/") and written in text, text
        assert "No space left on device\nnext: free some space there, or pass another --workspace; then run" in text
    for text in said[2:4]:
        assert text.startswith(f"error: {space}") and "Read-only file system\n" in text
        assert "next: check its permissions, or pass another --workspace" in text
    assert said[4].startswith("error: net.py") and "next: check its permissions" in said[4]


def test_a_matrix_that_the_disk_has_no_room_for_ends_in_an_error(tmp_path: Path) -> None:
    """Not in a SIGBUS when its pages are written."""
    script = (
        "import errno, subprocess, sys\nfrom pathlib import Path\n"
        "from amc_mobile.pruning.least_squares import Matrices\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'test', sys.argv[1]], check=True)\n"
        "try:\n    Matrices(0, Path(sys.argv[1])).zeros(300, 300).fill_(1.0)\n"
        "except OSError as error:\n    assert error.errno == errno.ENOSPC\n    print('named')\n"
    )
    mounting = ["unshare", "--user", "--map-root-user", "--mount"]
    if sys.platform != "linux" or subprocess.run([*mounting, "true"], check=False).returncode:
        pytest.skip("needs Linux with user namespaces, to mount a small file system")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*mounting, sys.executable, "-c", script, tmp_path], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "named\n"), done.stderr
