"""The --help of every command, as the program prints it: tests/golden/help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from amc_mobile.cli import app

GOLDEN = Path(__file__).parent / "golden"
PROGRAM = "amc-mobile"


def _paths(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from _paths(below, (*words, name))


# The file's name -> the words that name the command.
COMMANDS = {"_".join(words) or PROGRAM: words for words in _paths(get_command(app))}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_as_last_reviewed(name: str, golden: Callable[[str, str], None]) -> None:
    words = [*COMMANDS[name], "--help"]
    shown = CliRunner().invoke(app, words, prog_name=PROGRAM, env={"COLUMNS": "80"}, terminal_width=80, color=False)
    assert shown.exit_code == 0
    golden(f"help/{name}.txt", shown.stdout)


def test_no_help_is_kept_of_a_command_that_is_gone() -> None:
    assert {path.stem for path in (GOLDEN / "help").glob("*.txt")} == set(COMMANDS)
