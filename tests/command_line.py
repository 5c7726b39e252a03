"""The program as a user types it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = "from amc_mobile.cli import main; main()"
TIMEOUT_S = 600  # emulated phones are slow


class CommandLine:
    """Runs amc-mobile in a folder, with the present environment and some variables more."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self._variables = variables

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self._variables}
        command = [sys.executable, "-c", PROGRAM, *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    def document(self, *words: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """What the command prints with --json; it has to end with one of these exit codes."""
        done = self(*words, "--json")
        assert done.returncode in codes, f"{done.returncode}: {done.stdout[-500:]}\n{done.stderr}"
        return dict(json.loads(done.stdout))
