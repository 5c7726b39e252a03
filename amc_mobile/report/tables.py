"""Rows as aligned plain text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from amc_mobile.report.quantities import printable

NUMERIC = re.compile(r"[-+]?[\d.,]+( ?(%|ms|[kMG]?B?|x|px|points))?|-|")


def _columns(text: str) -> int:
    """Terminal columns that `text` takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def is_numeric_column(cells: Sequence[str]) -> bool:
    """Every cell is a number with an optional unit, or empty; at least one is a number."""
    return all(NUMERIC.fullmatch(cell) for cell in cells) and any(cell not in ("", "-") for cell in cells)


def render_rows(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled header, numbers to the right; no line ends in blanks.

    Control characters in cells are shown as escapes. Raises ValueError when a row has another number of cells.
    """
    table = [[printable(cell) for cell in row] for row in rows]
    for row in table:
        if len(row) != len(headers):
            raise ValueError(f"{len(row)} cells under {len(headers)} headers: {row}")
    right = [is_numeric_column([row[i] for row in table]) for i in range(len(headers))]
    widths = [max(_columns(row[i]) for row in [list(headers), *table]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, to_right in zip(cells, widths, right, strict=True):
            blanks = " " * (width - _columns(cell))
            padded.append(blanks + cell if to_right else cell + blanks)
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in table)])
