"""How long work tells the caller where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a stage, how much of it is done, its total (0: unknown) and a short note."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Reports nothing."""
