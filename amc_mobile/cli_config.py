"""`--config FILE`: flags from a TOML file, and the command that writes one.

A key is a flag's name with _ for -, or for a flag without a value of its own true or false. One file serves all
commands: each takes the keys of its own flags. What is typed on the command line comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.store import read_toml, write_text

NAMES_OF_KINDS = {"integer": int, "float": float, "boolean": bool}  # as older versions of Typer have them
NOT_IN_FILES = ("config", "help", "json", "run")  # `run` names one run, which no second command should share
PRECISION = {"int8": "int8", "float16": "fp16", "float32": "fp32"}  # of files of earlier versions: precision = "int8"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`, called before the other flags are read. Raises InvalidConfig."""
    if path is not None:
        context.default_map = flags_from(path, context)
    return path


def flags_from(path: Path, context: typer.Context) -> dict[str, Any]:
    """The values for the flags of the command at work. Raises InvalidConfig for what no command takes."""
    document = read_toml(path)
    if (precision := document.pop("precision", None)) is not None:
        if precision not in list(PRECISION):
            raise InvalidConfig(f"{path}: precision = {precision!r} is unknown", next_step="write int8 = true")
        document.setdefault(PRECISION[precision], True)
    own = dict(_keys(context.command))
    known = {key: flag for command in commands(context) for key, flag in _keys(command)}
    found = {}
    for key, value in document.items():
        flag = own.get(key) or known.get(key)
        if flag is None:
            raise InvalidConfig(f"{path}: unknown key {key!r}", next_step=f"known keys: {', '.join(sorted(known))}")
        checked = _checked(path, key, value, flag)
        if key in own:
            found[str(flag.name)] = checked
    return found


def commands(context: typer.Context) -> Iterator[Any]:
    """Every command that takes a configuration."""
    inner = [context.find_root().command]
    while inner:
        command = inner.pop(0)
        inner += getattr(command, "commands", {}).values()
        if any(flag.name == "config" for flag in command.params):
            yield command


def _keys(command: Any) -> Iterator[tuple[str, Any]]:
    for flag in command.params:
        longest = max(flag.opts, key=len)
        key = longest.removeprefix("--").replace("-", "_")
        if longest.startswith("--") and key not in NOT_IN_FILES:
            yield key, flag
            if flag.name != key:
                yield str(flag.name), flag  # of files of earlier versions: width_multiplier


def _checked(path: Path, key: str, value: Any, flag: Any) -> Any:
    if flag.multiple:
        values = value if isinstance(value, list) else str(value).split(",")
        if not all(isinstance(one, str) for one in values):
            raise InvalidConfig(f"{path}: {key} = {value!r} is no list of texts", next_step=f'{key} = ["A", "B"]')
        return values
    kind = _kind(flag)
    if type(value) is not kind and not (kind is float and type(value) is int):
        shown = "" if kind is str else f" = {str(value)[:60]!r}"  # which may hold a password
        raise InvalidConfig(f"{path}: {key}{shown} is not of type {kind.__name__}", next_step="correct that value")
    return value


def _kind(flag: Any) -> type:
    """int, float or bool; str for all others."""
    annotation = getattr(getattr(flag, "type_descriptor", None), "annotation", None)
    if annotation in (int, float, bool):
        return type(annotation())
    return NAMES_OF_KINDS.get(getattr(getattr(flag, "type", None), "name", ""), str)


def config(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")] = Path("amc.toml"),
    workspace: Annotated[Path, typer.Option("--workspace", help="Folder whose last choices are put in.")] = Path(
        "amc-workspace"
    ),
) -> None:
    """Write a file for --config: every flag with its meaning, those that the workspace remembers set.

    Example: amc-mobile config amc.toml; amc-mobile search --config amc.toml
    """
    if file.exists():
        raise InvalidInput(f"{file} is there already", next_step="name another file, or delete it")
    write_text(file, "\n".join(_lines(context, workspace)) + "\n")
    print(f"wrote {file}: take the # from a line to set it; amc-mobile search --config {file}")


def _lines(context: typer.Context, workspace: Path) -> Iterator[str]:
    from dataclasses import asdict

    from amc_mobile.workflows.workspace import Settings, Workspace

    remembered = {**asdict(Workspace(workspace).settings()), "config": None}
    usual = asdict(Settings())
    done: set[str] = set()
    yield "# Flags of amc-mobile: amc-mobile COMMAND --config FILE. What is typed on the command line comes first."
    for command in commands(context):
        new = [(key, flag) for key, flag in _keys(command) if flag.name not in done]
        if new:
            yield f"\n# {command.name}"
        for key, flag in new:
            if flag.name in done:
                continue
            done.add(str(flag.name))
            value = remembered.get(str(flag.name))
            is_set = value is not None and value != usual.get(str(flag.name)) and flag.name != "table"
            yield f"# {flag.help}"
            yield f"{'' if is_set else '# '}{key} = {_toml(value if is_set else _example(flag))}"


def _example(flag: Any) -> Any:
    if flag.default is not None and not callable(flag.default):
        return flag.default
    if flag.multiple:
        return []
    return {int: 1, float: 0.5, bool: True}.get(_kind(flag), "")


def _toml(value: Any) -> str:
    return json.dumps(value if isinstance(value, int | float | bool | list) else str(value))
