"""No serial, path or name changes a command, whatever it holds."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_mobile.device.adb import command_line, quote
from amc_mobile.errors import InvalidInput

SHELLS = [shell for shell in ("sh", "mksh", "bash", "busybox") if shutil.which(shell)]
HOSTILE = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    ";id",
    "$(id)",
    "`id`",
    "~",
    "~root",
    "=cat",
    "a\nb",
    "\\",
    "*",
    "-n",
    "%1",
    "{a,b}",
    "é",
]
WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=1, max_size=40)


def words_seen_by(shell: str, line: str) -> list[str]:
    """What a shell makes of `line`, as the arguments of a program."""
    program = [shell, "sh", "-c"] if shell == "busybox" else [shell, "-c"]
    done = subprocess.run([*program, f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
def test_hostile_words_arrive_as_they_are(shell: str) -> None:
    assert words_seen_by(shell, command_line(*HOSTILE)) == HOSTILE


@settings(max_examples=1000, deadline=None)
@given(WORDS)
def test_any_words_arrive_as_they_are(words: list[str]) -> None:
    assert words_seen_by("sh", command_line(*words)) == words


def test_plain_words_stay_readable() -> None:
    assert command_line("getprop", "ro.product.model", "a b") == "getprop ro.product.model 'a b'"


def test_a_nul_cannot_be_quoted() -> None:
    with pytest.raises(InvalidInput, match="NUL"):
        quote("a\0b")
