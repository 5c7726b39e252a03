"""One table of what every fault did to every command, from what the tests recorded as `fault_cell`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

CELL = "fault_cell"  # a property of a test: (fault, command, outcome)


def cells(properties: Iterable[tuple[str, Any]]) -> list[tuple[str, str, str]]:
    return [(fault, command, outcome) for name, (fault, command, outcome) in properties if name == CELL]


def fault_table(found: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of a table, a row per fault and a column per command, in the order in which they were first seen."""
    outcomes = {(fault, command): outcome for fault, command, outcome in found}
    faults, commands = (list(dict.fromkeys(cell[place] for cell in found)) for place in (0, 1))
    rows = [["fault", *commands]]
    rows += [[fault, *(outcomes.get((fault, command), "-") for command in commands)] for fault in faults]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
