"""The pictures of a comparison: keep ratios over the channel groups, accuracies before and after, the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from amc_mobile.report.quantities import number, shortened
from amc_mobile.report.series import Spread, end_labels, legend, look, marker, tilted
from amc_mobile.report.svg import (
    Scale,
    bottom_axis,
    dots,
    drawing,
    left_axis,
    line,
    polyline,
    rectangle,
    scale_over,
    text,
)

WIDTH, LEFT, LABELS = 760.0, 46.0, 150.0  # LABELS: the room for the names of the series at the right
RIGHT = WIDTH - LABELS
NAME_LENGTH = 14
MOST_NAMES = 48  # under an axis; of more groups every second, third ... is named
MOST_TOGETHER = 4  # lines in one panel
PANEL, GAP = 62.0, 18.0  # height of each panel where series have their own, and between them
GROUP_SIGN = {"residual": "+", "depthwise": "dw", "": ""}


@dataclass(frozen=True)
class GroupTick:
    """One channel group. `kind`: "residual" (several layers write it), "depthwise" (one filters it) or ""."""

    name: str
    kind: str = ""


@dataclass(frozen=True)
class StageBars:
    """Top-1 in [0, 1] of one policy after each stage; None where a stage has not run."""

    policy: str
    stages: Mapping[str, Spread | None]


@dataclass(frozen=True)
class FrontPoint:
    """One policy at one budget: mean cost and top-1 in [0, 1], and the same of each seed."""

    policy: str
    cost: float
    top1: float
    seeds: tuple[tuple[float, float], ...] = ()


def group_lines(
    groups: Sequence[GroupTick], lines: Mapping[str, Sequence[Spread]], *, label: str, title: str, factor: float = 1.0,
    up: tuple[float, float] | None = None, reference: tuple[str, float] | None = None,
) -> Markup:  # fmt: skip
    """One line per series over the channel groups, its lowest and highest values as a pale bar behind each mean.

    More than MOST_TOGETHER series get a panel each, with the others in grey behind. `title`: the quantity, at the left
    axis; values are shown times `factor`. `up`: that axis' range, shown values. `reference`: a named value to draw
    across.
    """
    if not groups or not lines:
        return Markup("")
    panels = [[name] for name in lines] if len(lines) > MOST_TOGETHER else [list(lines)]
    height = PANEL if len(panels) > 1 else 260.0
    across = Scale(-0.5, len(groups) - 0.5, LEFT, RIGHT)
    values = [v * factor for spreads in lines.values() for s in spreads for v in (s.low, s.high)]
    values += [reference[1] * factor] if reference else []
    names = {name: i for i, name in enumerate(lines)}
    parts = []
    top = 30.0
    for panel in panels:
        bottom = top + height
        axis = Scale(*up, bottom, top) if up else scale_over(values, bottom, top)
        parts.append(_shared(groups, across, top, bottom))
        parts.append(left_axis(axis, LEFT, RIGHT, title if panel == panels[0] else "", about=4 if height > 99 else 2))
        parts.append(line(LEFT, bottom, RIGHT, bottom, "axis"))
        places = {
            name: [(across(i), axis(s.mean * factor)) for i, s in enumerate(spreads)] for name, spreads in lines.items()
        }
        if reference:
            y = axis(reference[1] * factor)
            parts.append(line(LEFT, y, RIGHT, y, "reference"))
            parts.append(text(LEFT + 4, y - 5, reference[0], css="reference-label"))
        parts += [polyline(places[name], "other") for name in lines if name not in panel]
        for name in panel:
            for i, s in enumerate(lines[name]):
                if s.high > s.low:
                    low, high = axis(s.low * factor), axis(s.high * factor)
                    parts.append(line(across(i), low, across(i), high, f"whisker {look(names[name])}"))
        for name in panel:
            parts.append(polyline(places[name], f"curve {look(names[name])}"))
            parts += [marker(names[name], x, y, size=3.2) for x, y in places[name]]
        ends = {name: places[name][-1] for name in panel}
        parts.append(end_labels(names, ends, RIGHT + 34, top, bottom))
        top = bottom + GAP
    bottom = top - GAP
    parts.append(_group_names(groups, across, bottom))
    parts.append(text(RIGHT, bottom + 112, "channel group, in order of execution", css="axis-title", anchor="end"))
    return drawing(WIDTH, bottom + 118, label, parts)


def _shared(groups: Sequence[GroupTick], across: Scale, top: float, bottom: float) -> Markup:
    step = across(1) - across(0)
    residual = [i for i, group in enumerate(groups) if group.kind == "residual"]
    return Markup("").join(rectangle(across(i) - step / 2, top, step, bottom - top, "shared") for i in residual)


def _group_names(groups: Sequence[GroupTick], across: Scale, bottom: float) -> Markup:
    every = -(-len(groups) // MOST_NAMES)
    parts = []
    for i, group in enumerate(groups):
        parts.append(text(across(i), bottom + 14, GROUP_SIGN[group.kind], css="sign", anchor="middle"))
        if i % every == 0:
            parts.append(tilted(across(i) + 3, bottom + 24, shortened(group.name, NAME_LENGTH), "name"))
    return Markup("").join(parts)


def accuracy_bars(rows: Sequence[StageBars], original: float | None, *, accuracy: str) -> Markup:
    """Bars per policy and stage with the spread over seeds, and the original as a line.

    `accuracy`: which and on what, e.g. "top-1 on 360 test images".
    """
    known = [s for row in rows for s in row.stages.values() if s is not None]
    if not known:
        return Markup("")
    bar, gap, left, top = 13.0, 9.0, 128.0, 40.0
    right = WIDTH - 150
    lowest = min(100 * s.low for s in known)
    start = 10.0 * max(0, (lowest - 8) // 10) if lowest > 20 else 0.0
    end = max([100 * s.high for s in known] + [100 * (original or 0.0)])
    across = Scale(start, min(100.0, end + (end - start) * 0.03), left, right)
    stages = [name for name in rows[0].stages if any(row.stages[name] for row in rows)]
    parts = []
    bottom = top + len(rows) * (len(stages) * bar + gap)
    for tick in across.ticks(6):
        parts.append(line(across(tick), top - 4, across(tick), bottom, "rule"))
    y = top
    for row in rows:
        parts.append(text(0, y + 0.5 * len(stages) * bar + 4, shortened(row.policy, 20), css="series"))
        for i, stage in enumerate(stages):
            s = row.stages[stage]
            if s is None:
                parts.append(text(left + 4, y + bar - 3, "not run", css="value"))
            else:
                parts.append(rectangle(left, y + 1, across(100 * s.mean) - left, bar - 2, f"bar stage{i}"))
                if s.high > s.low:
                    parts.append(line(across(100 * s.low), y + bar / 2, across(100 * s.high), y + bar / 2, "spread"))
                    parts += [line(across(100 * v), y + 3, across(100 * v), y + bar - 3, "spread")
                              for v in (s.low, s.high)]  # fmt: skip
                spread = f" [{100 * s.low:.1f}-{100 * s.high:.1f}]" if s.high > s.low else ""
                parts.append(text(right + 8, y + bar - 3, f"{100 * s.mean:.1f}{spread}", css="value"))
            y += bar
        y += gap
    if original is not None:
        x = across(100 * original)
        parts.append(line(x, top - 8, x, bottom, "reference"))
        parts.append(text(x, top - 12, f"original {100 * original:.1f}", css="reference-label", anchor="end"))
    where = f"{accuracy}, %" + (f"; the axis starts at {start:.0f}" if start else "")
    parts.append(bottom_axis(across, bottom, where))
    x = 0.0
    for i, stage in enumerate(stages):
        parts.append(rectangle(x, 4, 11, 11, f"bar stage{i}"))
        parts.append(text(x + 16, 14, stage, css="series"))
        x += 40 + 6.5 * len(stage)
    return drawing(WIDTH, bottom + 40, "accuracy of each policy before and after fine-tuning", parts)


def front(points: Sequence[FrontPoint], original: FrontPoint | None, *, unit: str, accuracy: str) -> Markup:
    """Accuracy over cost: a line per policy through its budgets, dots for seeds, the front of all means as steps."""
    if not points:
        return Markup("")
    names = {name: i for i, name in enumerate(dict.fromkeys(p.policy for p in points))}
    key, top = legend(names, WIDTH)
    top += 30
    bottom = top + 310
    everything = [*points, *([original] if original else [])]
    seen = [pair for p in everything for pair in (*p.seeds, (p.cost, p.top1))]
    right = WIDTH - 12
    across = scale_over([cost for cost, _ in seen], LEFT, right)
    up = scale_over([100 * top1 for _, top1 in seen], bottom, top)
    parts = [key, left_axis(up, LEFT, right, f"{accuracy}, %"), bottom_axis(across, bottom, unit)]
    steps: list[tuple[float, float]] = []
    for cost, top1 in non_dominated([(p.cost, p.top1) for p in everything]):
        if steps:
            steps.append((across(cost), steps[-1][1]))
        steps.append((across(cost), up(100 * top1)))
    parts.append(polyline(steps, "front"))
    for name, i in names.items():
        mine = sorted((p for p in points if p.policy == name), key=lambda p: p.cost)
        places = [(across(p.cost), up(100 * p.top1)) for p in mine]
        parts.append(dots([(across(c), up(100 * t)) for p in mine for c, t in p.seeds], f"seed {look(i)}"))
        parts.append(polyline(places, f"curve {look(i)}"))
        parts += [marker(i, x, y) for x, y in places]
    if original:
        x, y = across(original.cost), up(100 * original.top1)
        parts.append(dots([(x, y)], "original"))
        shown = f"original {100 * original.top1:.1f} %, {number(original.cost, significant=3)}"
        parts.append(text(x - 8, y + 4, shown, css="reference-label", anchor="end"))
    return drawing(WIDTH, bottom + 40, "accuracy against cost", parts)


def non_dominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) pairs to which none is both as cheap and better, or cheaper and as good; by rising cost."""
    best: list[tuple[float, float]] = []
    for _, same_cost in groupby(sorted(points), key=lambda point: point[0]):
        candidate = max(same_cost, key=lambda point: point[1])
        if not best or candidate[1] > best[-1][1]:
            best.append(candidate)
    return best
