"""The command line inside this process, so that its parts can be watched."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amc_mobile import cli


@pytest.fixture
def amc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """amc(*words) runs a command in `tmp_path`; gives its output, or "exit CODE: " and what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["amc-mobile", *words, "--quiet" if words[0] != "report" else "--json"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return said.out if not stopped.value.code else f"exit {stopped.value.code}: {said.err}"

    return run
