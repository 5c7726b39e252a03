"""A kernel's latency over its channels: measured points and what is predicted, as an SVG file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from amc_mobile.report.svg import bottom_axis, dots, left_axis, line, polyline, scale_over, text

WIDTH, PANEL_HEIGHT, HEAD = 640, 360, 64
LEFT, RIGHT, TOP, BOTTOM = 64, 560, 36, 306  # within a panel
STYLE = (
    "svg{--paper:#fff;--ink:#111;--soft:#444;--hair:#ddd;--fit:#2b6cb0;--profile:#c05621;--more:#2f855a;"
    "background:var(--paper);font:12px sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--paper:#14171b;--ink:#e6e8eb;--soft:#9aa4af;--hair:#323841;--fit:#6cb2ee;"
    "--profile:#f2a154;--more:#6fd096}}"
    "text{fill:var(--soft)}.title{font-weight:bold;fill:var(--ink)}path{fill:none}"
    ".fit{stroke:var(--fit);stroke-width:1.5}.axis{stroke:var(--soft)}.rule{stroke:var(--hair)}"
    ".dots{stroke:var(--profile);stroke-width:7;stroke-linecap:round}.more{stroke:var(--more)}"
)


@dataclass(frozen=True)
class StaircaseLine:
    """One line; each point is (channels, ms). `profiled` and `more` are measured, by the profile and by a probe or a
    search; `predicted` is the line itself. `name` is written at its end."""

    name: str
    profiled: Sequence[tuple[float, float]]
    more: Sequence[tuple[float, float]]
    predicted: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class StaircasePanel:
    """The lines over one kind of channels. `apart`: measured points that are on none of them."""

    axis: str
    lines: Sequence[StaircaseLine]
    apart: Sequence[tuple[float, float]] = ()


def staircase(title: str, panels: Sequence[StaircasePanel]) -> str:
    """The whole file. A predicted value holds until the next: there is nothing between two numbers of channels."""
    height = HEAD + PANEL_HEIGHT * len(panels)
    drawn = [
        Markup('<g transform="translate(0 {})">').format(HEAD + PANEL_HEIGHT * i) + _panel(panel) + Markup("</g>")
        for i, panel in enumerate(panels)
    ]
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}"><style>{}</style>'
    ).format(WIDTH, height, f"latency of {title} over its channels", Markup(STYLE))
    return str(head + Markup("").join([text(LEFT, 22, title, css="title"), _legend(), *drawn]) + Markup("</svg>\n"))


def _legend() -> Markup:
    entries = (
        (dots([(LEFT + 4, 42)], "key"), LEFT + 14, "measured by the profile"),
        (dots([(LEFT + 174, 42)], "key more"), LEFT + 184, "by a probe or a search"),
        (line(LEFT + 330, 42, LEFT + 350, 42, "key fit"), LEFT + 356, "predicted"),
    )
    return Markup("").join(key + text(x, 46, name) for key, x, name in entries)


def _panel(panel: StaircasePanel) -> Markup:
    every = [*panel.apart, *(p for one in panel.lines for p in (*one.profiled, *one.more, *one.predicted))]
    across = scale_over([x for x, _ in every], LEFT, RIGHT)
    up = scale_over([0.0, *(y for _, y in every)], BOTTOM, TOP)

    def places(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(across(x), up(y)) for x, y in points]

    parts = [
        left_axis(up, LEFT, RIGHT, "latency, ms (lowest 20th percentile)"),
        bottom_axis(across, BOTTOM, panel.axis, whole=True),
    ]
    for one in panel.lines:
        corners: list[tuple[float, float]] = []
        for x, y in places(one.predicted):
            if corners:
                corners.append((x, corners[-1][1]))
            corners.append((x, y))
        parts.append(polyline(corners, "fit"))
        if one.name and corners:
            parts.append(text(corners[-1][0] + 8, corners[-1][1] + 4, one.name))
    for one in panel.lines:  # above all lines
        parts += [dots(places(one.profiled), "measured"), dots(places(one.more), "measured more")]
    parts.append(dots(places(panel.apart), "measured more"))
    return Markup("").join(parts)
