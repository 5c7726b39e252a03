"""Several named series in one picture: each has a colour, a marker and a dash of its own, and its name at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from amc_mobile.report.quantities import printable, shortened
from amc_mobile.report.svg import pixel, polyline, text

COLOURS = 8  # classes s0 to s7 of the style sheet: told apart by colour-blind readers, in light and dark
MARKERS = 6  # an odd ratio to COLOURS, so that a colour that comes again has another marker
LABEL_GAP = 13.0
LABEL_LENGTH = 16


@dataclass(frozen=True)
class Spread:
    """A mean with the lowest and the highest value, over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(math.fsum(values) / len(values), min(values), max(values))


def look(index: int) -> str:
    """The classes of the series at `index`; after COLOURS the lines are dashed."""
    return f"s{index % COLOURS}" + (" again" if index >= COLOURS else "")


def marker(index: int, x: float, y: float, *, size: float = 4.0) -> Markup:
    """A closed shape around (x, y): circle, square, triangle, diamond, triangle upside down, bar."""
    r = size
    shapes: tuple[Sequence[tuple[float, float]], ...] = (
        [(r * math.cos(i * math.pi / 8), r * math.sin(i * math.pi / 8)) for i in range(16)],
        [(-r, -r), (r, -r), (r, r), (-r, r)],
        [(0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)],
        [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
        [(0, 1.3 * r), (1.2 * r, -r), (-1.2 * r, -r)],
        [(-0.5 * r, -1.5 * r), (0.5 * r, -1.5 * r), (0.5 * r, 1.5 * r), (-0.5 * r, 1.5 * r)],
    )
    corners = "L".join(f"{pixel(x + dx)} {pixel(y + dy)}" for dx, dy in shapes[index % MARKERS])
    return Markup(f'<path class="mark {look(index)}" d="M{corners}Z"/>')


def end_labels(
    names: Mapping[str, int], ends: Mapping[str, tuple[float, float]], x: float, top: float, bottom: float
) -> Markup:
    """Each name at `x`, as near to its end as the others let it, tied to it by a thin line. `names`: name -> index."""
    order = sorted(ends, key=lambda name: ends[name][1])
    places = apart([ends[name][1] for name in order], top, bottom)
    parts = []
    for name, y in zip(order, places, strict=True):
        end_x, end_y = ends[name]
        parts.append(polyline([(end_x + 5, end_y), (x - 12, y), (x - 9, y)], "leader"))
        parts.append(marker(names[name], x - 4, y, size=3.2))
        parts.append(text(x + 4, y + 4, shortened(name, LABEL_LENGTH), css="series"))
    return Markup("").join(parts)


def legend(names: Mapping[str, int], width: float) -> tuple[Markup, float]:
    """Markers with names in rows of `width`, from y = 0, and the height that they take."""
    parts = []
    x, y = 0.0, 14.0
    for name, index in names.items():
        shown = shortened(name, LABEL_LENGTH)
        needed = 30 + 6.6 * len(shown)
        if x + needed > width:
            x, y = 0.0, y + 18
        parts += [marker(index, x + 6, y - 4), text(x + 16, y, shown, css="series")]
        x += needed
    return Markup("").join(parts), y + 6


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending places near the ascending `wanted` ones, LABEL_GAP apart, inside top..bottom where they fit."""
    gap = min(LABEL_GAP, (bottom - top) / max(len(wanted) - 1, 1))
    places: list[float] = []
    for y in wanted:
        places.append(max(y, top, places[-1] + gap if places else top))
    limit = bottom
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places


def tilted(x: float, y: float, content: str, css: str) -> Markup:
    """A label that ends at (x, y) and rises to it, for names under an axis."""
    where = f'transform="translate({pixel(x)} {pixel(y)}) rotate(-50)" text-anchor="end"'
    return Markup(f'<text class="{css}" {where}>') + escape(printable(content)) + Markup("</text>")
