"""README and docs: commands that exist, code that runs, links that lead somewhere, texts that the program says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import amc_mobile as amc
from amc_mobile.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TUTORIAL = ROOT / "docs" / "tutorial.md"


def blocks(page: Path, *languages: str) -> list[str]:
    """The code of a page's fenced blocks in one of `languages`; shell commands have none."""
    return [code for language, code in FENCE.findall(page.read_text()) if language.split(" ")[0] in languages]


def typed(page: Path) -> Iterator[list[str]]:
    """The words of every command in the shell blocks, comments and prompts left out."""
    for code in blocks(page, "", "shell", "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


COMMANDS = [(page.name, words) for page in PAGES for words in typed(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_every_command_of_the_pages_can_be_typed(page: str, words: list[str], tmp_path: Path) -> None:
    if words[0] != "amc-mobile":
        assert words[0] in ("pip", "git", "cd") or (ROOT / words[0]).exists()
        return
    command: Any = get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    context = command.make_context(command.name, rest)  # parses every option and argument, runs nothing
    assert context.command is command


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"(?:\]\(|src(?:set)?=\")([^)\"\s]+)", FENCE.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor.startswith("only-"):  # the page's theme that a picture is for
            assert file.suffix == ".svg", target
        else:
            assert not anchor or anchor in anchors(file), target


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r'"([\w-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    errors = {name for name in amc.__all__ if amc._MODULES.get(name) == "errors"}
    constants = {"__version__", "CHANNEL_CHOICES", "POLICIES", "REWARDS"}
    missing = [name for name in amc.__all__ if name not in errors | constants and f".{name}\n" not in page]
    assert missing == []


def test_the_texts_of_troubleshooting_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row) if text != "export"]
    assert len(texts) >= 15
    source = "".join(path.read_text() for path in (ROOT / "amc_mobile").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that go on in the next line
    assert [text for text in texts if text not in source] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_the_pages_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        assert compile(code, page.name, "exec")


def as_a_reader() -> dict[str, str]:
    """The environment without what the tests set: random weights are refused."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AMC_MOBILE_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def _write_photos(folder: Path) -> None:
    """Images of two classes that a small network can tell apart: bright and dark ones."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 120), ("val", 20)):
        for name, level in (("bright", 170), ("dark", 60)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.normal(level, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    network, load = blocks(TUTORIAL, "python")
    (tmp_path / "mynet.py").write_text(network)
    (tmp_path / "load.py").write_text(load + "print(type(module))\n")
    _write_photos(tmp_path / "photos")
    commands = [[sys.executable, "-m", "amc_mobile", *words[1:]] for words in typed(TUTORIAL)]
    for command in [*commands, [sys.executable, "load.py"]]:
        done = subprocess.run(command, cwd=tmp_path, env=as_a_reader(), capture_output=True, text=True)
        # 3: a network of microseconds may miss a budget on a busy computer; the page says what that means.
        assert done.returncode in ((0, 3) if {"export", "prune"} & {*command} else (0,)), done.stderr[-2000:]
    assert "GraphModule" in done.stdout or "Sequential" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_lines_of_python_run_as_they_are_written(page: str, tmp_path: Path) -> None:
    (code,) = blocks(ROOT / page, "python")
    (tmp_path / "lines.py").write_text(code)
    commands = [[sys.executable, "lines.py"]]
    if page == "README.md":  # whose lines go on from its first command
        commands.insert(
            0, [sys.executable, "-m", "amc_mobile", *next(w for w in typed(ROOT / page) if "train" in w)[1:]]
        )
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, env=as_a_reader(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
