"""A kernel's latency over its channels: measured points, the fit and its steps, as an SVG file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from amc_mobile.report.svg import bottom_axis, dots, left_axis, polyline, scale_over, text

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 560, 56, 350
STYLE = (
    "svg{background:#fff;font:12px sans-serif}text{fill:#444}.title{font-weight:bold;fill:#111}"
    "path{fill:none}.fit{stroke:#2b6cb0;stroke-width:1.5}.axis{stroke:#444}.rule{stroke:#ddd}"
    ".dots{stroke:#c05621;stroke-width:7;stroke-linecap:round}"
)


@dataclass(frozen=True)
class StaircaseLine:
    """One line: `measured` and `fitted` are (channels, ms); `name` stands at its end."""

    name: str
    measured: Sequence[tuple[float, float]]
    fitted: Sequence[tuple[float, float]]


def staircase(title: str, lines: Sequence[StaircaseLine]) -> str:
    """The whole file. Each fitted value holds until the next: what lies between two numbers of channels cannot be."""
    every = [point for line in lines for point in (*line.measured, *line.fitted)]
    across = scale_over([x for x, _ in every], LEFT, RIGHT)
    up = scale_over([0.0, *(y for _, y in every)], BOTTOM, TOP)
    parts = [
        text(LEFT, 22, title, css="title"), left_axis(up, LEFT, RIGHT, "ms (lowest 20th percentile)"),
        bottom_axis(across, BOTTOM, "channels", whole=True),
    ]  # fmt: skip
    for line in lines:
        corners: list[tuple[float, float]] = []
        for x, y in line.fitted:
            if corners:
                corners.append((across(x), corners[-1][1]))
            corners.append((across(x), up(y)))
        parts.append(polyline(corners, "fit"))
        parts.append(dots([(across(x), up(y)) for x, y in line.measured], "measured"))
        if line.name and corners:
            parts.append(text(corners[-1][0] + 8, corners[-1][1] + 4, line.name))
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}"><style>{}</style>'
    ).format(WIDTH, HEIGHT, f"latency of {title} over its channels", Markup(STYLE))
    return str(head + Markup("").join(parts) + Markup("</svg>\n"))
