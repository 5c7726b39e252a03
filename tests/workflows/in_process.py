"""Commands run inside the test's process: several of them share one import of torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from amc_mobile.cli import main


@dataclass
class CommandLine:
    """Runs commands in `folder`."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setattr(sys, "argv", ["amc-mobile", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err
