"""The few SVG pieces that charts are made of. Every text is escaped; colours come from the page's classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from amc_mobile.report.quantities import printable

MOST_DOTS = 5000  # a longer series is thinned, so that the page stays small


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the range, about so many."""
        raw = (self.high - self.low) / about
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def scale_over(values: Iterable[float], start: float, end: float, *, margin: float = 0.06) -> Scale:
    """A scale that holds every finite value, with some room on both sides."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def pixel(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, *, css: str = "", anchor: str = "start") -> Markup:
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    name = f' class="{css}"' if css else ""
    return Markup(f'<text x="{pixel(x)}" y="{pixel(y)}"{name}{where}>') + escape(printable(content)) + Markup("</text>")


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup(f'<path class="{css}" d="M{pixel(x1)} {pixel(y1)}L{pixel(x2)} {pixel(y2)}"/>')


def rectangle(x: float, y: float, width: float, height: float, css: str) -> Markup:
    size = f'width="{pixel(max(width, 0.5))}" height="{pixel(height)}"'
    return Markup(f'<rect class="{css}" x="{pixel(x)}" y="{pixel(y)}" {size} rx="1.5"/>')


def polyline(points: Sequence[tuple[float, float]], css: str) -> Markup:
    if not points:
        return Markup("")
    return Markup(f'<path class="{css}" d="M{"L".join(f"{pixel(x)} {pixel(y)}" for x, y in points)}"/>')


def dots(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """One path of zero-length strokes: round caps make the dots, at a fifth of the size of circles."""
    if not points:
        return Markup("")
    every = math.ceil(len(points) / MOST_DOTS)
    marks = "".join(f"M{pixel(x)} {pixel(y)}h0" for x, y in points[::every])
    return Markup(f'<path class="dots {css}" d="{marks}"/>')


def tick_label(value: float) -> str:
    return f"{value:.6g}"


def left_axis(scale: Scale, left: float, right: float, title: str, *, about: int = 4) -> Markup:
    """Rules across the plot, their values at the left, the quantity above."""
    top = min(scale.start, scale.end)
    parts = [text(0, top - 9, title, css="axis-title")]
    for tick in scale.ticks(about):
        parts.append(line(left, scale(tick), right, scale(tick), "rule"))
        parts.append(text(left - 6, scale(tick) + 4, tick_label(tick), anchor="end"))
    return Markup("").join(parts)


def bottom_axis(scale: Scale, bottom: float, title: str, *, whole: bool = False) -> Markup:
    """Values under the plot and the quantity under them; `whole`: integers only."""
    parts = [line(scale.start, bottom, scale.end, bottom, "axis")]
    for tick in scale.ticks(5):
        if not whole or float(tick).is_integer():
            parts.append(text(scale(tick), bottom + 16, tick_label(tick), anchor="middle"))
    parts.append(text(scale.end, bottom + 33, title, css="axis-title", anchor="end"))
    return Markup("").join(parts)


def drawing(width: float, height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """The picture, scaled to its column; `label` is what a screen reader says."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        pixel(width), pixel(height), printable(label)
    )
    return head + Markup("").join(parts) + Markup("</svg>")
