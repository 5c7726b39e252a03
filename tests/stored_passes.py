"""What a latency table holds while another process may be writing it."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def stored_passes(table: Path) -> list[tuple[int, str, str]]:
    """(id, what was measured, its samples) of every pass in a table that another process may be writing."""
    return [(number, subject, samples) for number, subject, samples, _ in stored_rows(table)]


def stored_rows(table: Path) -> list[tuple[int, str, str, int]]:
    """As `stored_passes`, with whether each pass is flagged busy."""
    if not table.exists():
        return []
    with sqlite3.connect(table, timeout=30) as connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'sample'").fetchall():
            return []
        return connection.execute("SELECT id, subject, samples_ms, busy FROM sample ORDER BY id").fetchall()
