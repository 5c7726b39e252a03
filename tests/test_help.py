"""docs/commands.md is what --help prints, command by command; `pytest --renew-golden` writes it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from amc_mobile.cli import app

PROGRAM = "amc-mobile"
INTRODUCTION = """\
# Commands
What `amc-mobile COMMAND --help` prints, for every command. A file for `--config` takes the same names, with `_` for
`-`. Exit codes: 0 done; 1 an error, named with what to do next; 2 what was typed cannot be meant; 3 a budget or a
promise of accuracy is not met; 4 a latency budget could not be measured.
"""


def _paths(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from _paths(below, (*words, name))


def _help(words: tuple[str, ...]) -> str:
    shown = CliRunner().invoke(
        app, [*words, "--help"], prog_name=PROGRAM, env={"COLUMNS": "80"}, terminal_width=80, color=False
    )
    assert shown.exit_code == 0
    return shown.stdout.rstrip()


def test_the_page_of_commands_is_what_help_prints(golden: Callable[[str, str], None]) -> None:
    parts = [
        f"\n## {' '.join((PROGRAM, *words))}\n```text\n{_help(words)}\n```\n" for words in _paths(get_command(app))
    ]
    golden("../../docs/commands.md", INTRODUCTION + "".join(parts))
