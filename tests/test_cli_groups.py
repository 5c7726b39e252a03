"""Groups of flags: what Typer sees of them, and what the command gets."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from amc_mobile.cli_options import PrecisionFlags, config_of, expand_groups, given_settings
from amc_mobile.workflows.workspace import option


@dataclass(frozen=True)
class PlaceFlags:
    """Two flags, one of them under another name."""

    serial: Annotated[str | None, typer.Option(help="Which phone.")] = None
    thread_count: Annotated[int, typer.Option("--threads", help="How many.")] = 1


@dataclass(frozen=True)
class OtherPlaceFlags:
    """A flag that PlaceFlags has too."""

    serial: Annotated[str, typer.Option(help="Which one.")] = "none"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @expand_groups
    def show(*, file: str, runs: int = 3, place: PlaceFlags, quiet: bool = False) -> None:
        """Show what was given."""
        print(file, runs, place, quiet)

    return app


@dataclass(frozen=True)
class Counts:
    """Two fields that are options, and one that is not."""

    device: str
    counts: tuple[int, ...] = option((1, 2), "How many.", "Search")
    also: str = option("", "Further ones.", "Search", "--too", repeatable=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], Counts("host")),
        (["--counts", "3, 4", "--too", "A", "--too", "B"], Counts("host", (3, 4), "A,B")),
    ],
)
def test_a_command_gets_a_configuration_made_of_its_options(words: list[str], said: Counts) -> None:
    app = typer.Typer()

    @app.command()
    @expand_groups
    def show(*, counts: Callable[[str], Counts] = config_of(Counts)) -> None:
        print(counts("host"))

    assert CliRunner().invoke(app, words).stdout.strip() == str(said)


def test_a_command_gets_the_settings_that_were_given() -> None:
    app = typer.Typer()

    @app.command()
    @expand_groups
    def show(*, given: dict[str, Any] = given_settings("precision", "threads", "waive", "offline")) -> None:
        print(given)

    assert CliRunner().invoke(app, []).stdout.strip() == "{}"
    given = CliRunner().invoke(app, ["--int8", "--waive", "HOT", "--waive", "BUSY", "--threads", "2"]).stdout
    assert ast.literal_eval(given) == {"precision": "int8", "waive": "HOT,BUSY", "threads": 2}


def test_flags_stand_where_their_group_stood(app: typer.Typer) -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "Show what was given." in shown
    places = [shown.index(flag) for flag in ("--runs", "--serial", "--threads", "--quiet")]
    assert places == sorted(places)
    assert "--place" not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], f"a 3 {PlaceFlags()} False"),
        (["--threads", "4", "a", "--runs", "5", "--serial", "A1"], f"a 5 {PlaceFlags('A1', 4)} False"),
    ],
)
def test_a_command_gets_its_groups(app: typer.Typer, words: list[str], said: str) -> None:
    assert CliRunner().invoke(app, words).stdout.strip() == said


def test_a_flag_of_two_groups_is_refused() -> None:
    def command(*, here: PlaceFlags, there: OtherPlaceFlags) -> None: ...

    with pytest.raises(ValueError, match="serial"):
        expand_groups(command)


def test_one_precision_can_be_chosen_and_not_two() -> None:
    assert PrecisionFlags().chosen() is None
    assert PrecisionFlags(fp16=True).chosen() == "float16"
    with pytest.raises(typer.BadParameter, match="choose one of"):
        PrecisionFlags(int8=True, fp32=True).chosen()
