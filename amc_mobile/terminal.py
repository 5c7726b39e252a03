"""What the command line shows: progress with an ETA on stderr, results on stdout."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amc_mobile.device.phone_output import visible
from amc_mobile.workflows.progress import Progress, silent

SETTLED_S = 2.0  # of a stage, after which what is left of it can be foretold


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
    """At most twenty lines per stage, for logs, and one more as soon as it is known how long the stage takes."""
    shown: dict[str, tuple[int, bool]] = {}
    begun: dict[str, tuple[float, int]] = {}

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        started, before = begun.setdefault(stage, (now, done))
        # Waiting may take hours and may end at any moment: it is told at 1, 2, 4, 8 ... seconds.
        is_waiting = stage.startswith("wait for ") or not total
        step = done.bit_length() if is_waiting else done * 20 // total
        is_timed = now - started >= SETTLED_S and done > before
        if shown.get(stage) not in ((step, is_timed), (step, True)):
            shown[stage] = (step, is_timed)
            count = f" {done}/{total}" if total else ""
            left = (now - started) * (total - done) / (done - before) if is_timed and total > done else 0.0
            remaining = f"  about {_duration(left)} left" if left else ""
            print(visible(f"{stage}{count}{remaining}{'  ' + note if note else ''}"), file=sys.stderr, flush=True)

    return report


def ask_password(url: str) -> str:
    """What the user types, unseen; "" where nobody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    return getpass.getpass(f"Password for {url}: ", stream=sys.stderr)


def _duration(seconds: float) -> str:
    """Like `40 s` or `3 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def show_error(message: str, next_step: str) -> None:
    # Tables and files of strangers are quoted in errors too.
    print(f"error: {visible(message)}", file=sys.stderr)
    if next_step:
        print(f"next: {visible(next_step)}", file=sys.stderr)


def show_json_error(kind: str, message: str, next_step: str, exit_code: int) -> None:
    """In the place of the result, for programs that read stdout."""
    document = {"error": {"kind": kind, "message": message, "next": next_step, "exit_code": exit_code}}
    print(json.dumps(document, indent=1))


def show(text: str, document: dict[str, Any], *, as_json: bool) -> None:
    """Prints one result on stdout: `document` for machines, `text` for people."""
    print(json.dumps(document, indent=1, allow_nan=False) if as_json else visible(text))
