"""Every option that an error or a remark advises exists, in every command that can say so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from amc_mobile import cli

PACKAGE = Path(cli.__file__).parent
OPTION = re.compile(r"(?<![\w=-])--([a-z][a-z0-9-]+)")
COMMAND = re.compile(r"`amc-mobile ([^`]*)`")
TABLE = ("table verify", "table adopt", "table probe", "table plot")
NETWORKS = ("profile", "search", "compare", *TABLE)
MEASURES = (*NETWORKS, "measure")
SEARCHES = ("search", "compare")
# Module -> the commands that can print its advice, but for options with commands of their own. What a text names as
# `amc-mobile COMMAND --option` is checked against that command.
SAID_BY: dict[str, tuple[str, ...] | dict[str, tuple[str, ...]]] = {
    "data/sources.py": ("train", "search", "finetune", "compare", "sensitivity"),
    "device/adb.py": (*MEASURES, "export"),
    "device/accelerator.py": MEASURES,
    "device/host.py": MEASURES,
    "device/libraries.py": ("runtime add",),
    "device/phone.py": {"serial": (*MEASURES, "export"), "*": MEASURES},  # `export` says --offline instead
    "device/phone_state.py": (*MEASURES, "export"),
    "device/profiles.py": MEASURES,
    "errors.py": SEARCHES,
    "export/converters.py": {"calibration-images": SEARCHES, "fp32": ("profile", "search"), "*": ("export",)},
    "kernels/labels.py": ("profile", "search", "compare"),
    "latency/predictor.py": ("table import",),
    "latency/sharing.py": ("profile",),
    "latency/table.py": {"workspace": (*NETWORKS, "export", "report"), "table": ("profile",)},
    "latency/table_files.py": ("table import",),
    "models/loading.py": ("train", *SEARCHES),
    "models/task.py": ("train", *SEARCHES),
    "report/tables.py": {"offline": ("export",), "*": ("search",)},
    "search/episode_log.py": SEARCHES,
    "search/loop.py": SEARCHES,
    "search/policy.py": SEARCHES,
    "workflows/budgets.py": {"run": ("search",), "*": SEARCHES},
    "workflows/compare.py": ("compare",),
    "workflows/devices.py": {
        "serial": (*MEASURES, "export"),
        "offline": SEARCHES,
        "conditions": SEARCHES,
        "*": MEASURES,
    },
    "workflows/export.py": {
        "max-loss": ("search",),
        **dict.fromkeys(("sustained-s", "cadence-fps", "runtime"), ("measure",)),
        "*": ("export",),
    },
    "workflows/network.py": {"keep": SEARCHES, "untrained": (*SEARCHES, "sensitivity"), "*": NETWORKS},
    "workflows/profile.py": ("profile",),
    "workflows/prune.py": ("prune",),
    "workflows/search.py": {"device": MEASURES, "*": ("search",)},
    "workflows/search_config.py": {
        "max-loss": ("search",),
        "policy": ("search",),
        "ratios": ("sensitivity",),
        **dict.fromkeys(("policies", "seeds", "budgets", "finetune-epochs"), ("compare",)),
        "*": SEARCHES,
    },
    "workflows/sensitivity.py": ("sensitivity",),
    "workflows/table.py": TABLE,
    "workflows/training.py": ("train",),
    "workflows/workspace.py": {
        "offline": SEARCHES,
        "run": ("export", "report", "finetune"),
        "config": ("train", *SEARCHES),
        "latency-ratio": ("search",),
        **dict.fromkeys(("tflite", "onnx"), ("export",)),
        "*": NETWORKS,
    },
}


def commands() -> dict[str, set[str]]:
    """Each command's options, without the dashes."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, set[str]]]:
        if hasattr(command, "commands"):
            for name, part in command.commands.items():
                yield from walk(part, (*words, name))
        else:
            yield " ".join(words), {o.removeprefix("--") for p in command.params for o in p.opts if o.startswith("--")}

    return {name: {*options, "help"} for name, options in walk(typer.main.get_command(cli.app), ())}


OPTIONS = commands()


@cache
def advised(path: Path) -> list[str]:
    """The texts of a module that name an option of ours or one of our commands; docstrings are left out."""
    tree = ast.parse(path.read_text())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, kinds)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & parts:
            found.append(node.value)
    known = set().union(*OPTIONS.values())
    named = [text for text in found if " " in text and (set(OPTION.findall(text)) & known or COMMAND.search(text))]
    return [text for text in named if text not in docstrings]


MODULES = [
    str(path.relative_to(PACKAGE))
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.name.startswith("cli") and advised(path)
]


@pytest.mark.parametrize("module", MODULES)
def test_what_is_advised_can_be_passed(module: str) -> None:
    said_by = SAID_BY.get(module, ())
    for text in advised(PACKAGE / module):
        for words in COMMAND.findall(text):
            named = max((name for name in OPTIONS if words.startswith(name)), key=len, default=None)
            if named is None:
                assert words.split()[0] in ("COMMAND", "{}"), f"{module}: no command {words!r}"
                continue
            assert set(OPTION.findall(words)) <= OPTIONS[named], f"{module}: {words}"
        for option in OPTION.findall(COMMAND.sub("", text)):
            printed = said_by.get(option, said_by.get("*", ())) if isinstance(said_by, dict) else said_by
            assert printed or any(option in own for own in OPTIONS.values()), f"no command has --{option}"
            lacking = [command for command in printed if option not in OPTIONS[command]]
            assert not lacking, f"{module}: {text!r} is said by {lacking}, which have no --{option}"


def test_the_modules_named_here_advise_something() -> None:
    assert set(SAID_BY) <= set(MODULES)
    for said_by in SAID_BY.values():
        named = said_by.values() if isinstance(said_by, dict) else [said_by]
        assert {command for commands in named for command in commands} <= set(OPTIONS)
