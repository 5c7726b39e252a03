"""What the command line shows: progress with an ETA on stderr, results on stdout."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amc_mobile.workflows.progress import Progress, silent


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """A callback that draws one bar per stage on stderr; lines of text where stderr is not a terminal."""
    if quiet:
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None, note=note)
            bars.update(tasks[stage], completed=done, total=total or None, note=note)

        yield report


def _lines() -> Progress:
    """At most twenty lines per stage, for logs."""
    shown: dict[str, int] = {}

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        step = done * 20 // total if total else done
        if shown.get(stage) != step:
            shown[stage] = step
            count = f" {done}/{total}" if total else ""
            print(f"{stage}{count}{'  ' + note if note else ''}", file=sys.stderr, flush=True)

    return report


def ask_password(url: str) -> str:
    """What the user types, unseen; "" where nobody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    return getpass.getpass(f"Password for {url}: ", stream=sys.stderr)


def show(text: str, document: dict[str, Any], *, as_json: bool) -> None:
    """Prints one result on stdout: `document` for machines, `text` for people."""
    print(json.dumps(document, indent=1, allow_nan=False) if as_json else text)
