"""The pictures of reports and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeGuard

from markupsafe import Markup, escape

from amc_mobile.report.content import TOP1, Budget, EpisodePoint, EpochAccuracy, LayerRow, Predictions
from amc_mobile.report.tables import number, printable, shortened

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


WIDTH = 380  # units of the drawing: near a phone's width in pixels, so that its text stays readable there
MOST_BARS = 48
NAME_LENGTH = 22
UNIT_FACTOR = {"ms": (1.0, "ms"), "macs": (1e-6, "million MACs"), "parameters": (1e-3, "thousand parameters")}


@dataclass(frozen=True)
class Bar:
    name: str
    before: float
    after: float | None


def layer_ms_bars(layers: Sequence[LayerRow]) -> Markup:
    """Latency per layer, original behind pruned."""
    bars = [Bar(x.name, x.ms_before, x.ms_after) for x in layers if x.ms_before is not None]
    return _bars(_heaviest(bars), "ms per layer, original and pruned", lambda value: number(value, significant=3))


def layer_channel_bars(layers: Sequence[LayerRow]) -> Markup:
    """Output channels per layer, original behind pruned."""
    bars = [
        Bar(x.name, x.channels_before, x.channels_after)
        for x in layers
        if x.channels_before is not None and x.channels_after is not None
    ]
    return _bars(_heaviest(bars), "channels per layer, original and pruned", lambda value: f"{value:.0f}")


def density_bars(densities: Mapping[str, float]) -> Markup:
    """The share of its weights that each layer keeps, in front of all of them."""
    bars = [Bar(name, 1.0, density) for name, density in densities.items()]
    return _bars(bars, "share of weights kept per layer", lambda value: f"{value:.0%}", pair=False)


def _heaviest(bars: list[Bar]) -> list[Bar]:
    """The largest ones, in the order of the network."""
    if len(bars) <= MOST_BARS:
        return bars
    least = sorted((bar.before for bar in bars), reverse=True)[MOST_BARS - 1]
    return [bar for bar in bars if bar.before >= least][:MOST_BARS]


def _bars(bars: Sequence[Bar], label: str, shown: Callable[[float], str], *, pair: bool = True) -> Markup:
    """`pair`: both values are written, not the second alone."""
    if not bars:
        return Markup("")
    row, left, right = 19, 142, WIDTH - 96
    largest = max(max(bar.before, bar.after or 0) for bar in bars) or 1.0
    scale = Scale(0, largest, left, right)
    parts = []
    for i, bar in enumerate(bars):
        y = i * row
        parts.append(text(left - 8, y + 13.5, shortened(bar.name, NAME_LENGTH), css="name", anchor="end"))
        parts.append(rectangle(left, y + 3, scale(bar.before) - left, 13, "bar before"))
        values = shown(bar.before)
        if bar.after is not None:
            parts.append(rectangle(left, y + 6, scale(bar.after) - left, 7, "bar after"))
            values = f"{values} → {shown(bar.after)}" if pair and shown(bar.after) != values else shown(bar.after)
        end = scale(max(bar.before, bar.after or 0))
        parts.append(text(end + 6, y + 13.5, values, css="value"))
    return drawing(WIDTH, len(bars) * row + 4, label, parts)


def search_curve(episodes: Sequence[EpisodePoint], budget: Budget | None) -> Markup:
    """Above: reward of each episode and the best so far. Below: predicted and measured cost with the budget."""
    if not episodes:
        return Markup("")
    left, right, middle, bottom = 44, WIDTH - 8, 160, 320
    first, last = min(p.episode for p in episodes), max(p.episode for p in episodes)
    across = Scale(first, max(last, first + 1), left + 4, right - 4)
    chosen = [p for p in episodes if p.is_best]
    parts = []
    rewards = [(p, p.reward) for p in episodes if _finite(p.reward)]
    if rewards:
        up = scale_over(_without_outliers([reward for _, reward in rewards]), middle - 14, 24)
        places = [(across(p.episode), up(max(r, up.low))) for p, r in rewards]
        fitting = [place for place, (p, _) in zip(places, rewards, strict=True) if not _is_measured_over(p, budget)]
        parts += [
            left_axis(up, left, right, "reward"),
            dots(places, "episode"),
            polyline(_best_so_far(fitting), "best"),
        ]
        parts += [_ring(across(p.episode), up(max(p.reward, up.low))) for p in chosen if _finite(p.reward)]
    factor, unit = UNIT_FACTOR[budget.unit if budget else "ms"]
    predicted = [(p.episode, p.predicted * factor) for p in episodes if _finite(p.predicted)]
    measured = [(p.episode, p.measured_ms) for p in episodes if _finite(p.measured_ms)] if unit == "ms" else []
    limit = [budget.limit_of_search * factor] if budget else []
    costs = [value for _, value in predicted + measured]
    if costs:
        up = scale_over(costs + limit, bottom - 4, middle + 40)
        parts.append(left_axis(up, left, right, unit))
        parts.append(dots([(across(e), up(v)) for e, v in predicted], "episode"))
        parts.append(dots([(across(e), up(v)) for e, v in measured], "measured"))
        for value in limit:
            parts.append(line(left, up(value), right, up(value), "budget"))
            parts.append(text(right, up(value) - 5, f"budget {number(value)}", css="budget-label", anchor="end"))
    parts.append(bottom_axis(across, bottom, "episode", whole=True))
    return drawing(WIDTH, bottom + 38, "reward and cost of each episode of the search", parts)


def finetuning_curve(epochs: Sequence[EpochAccuracy], metric: str = TOP1) -> Markup:
    """Accuracy on the held-out images after each epoch; the line across is where fine-tuning began."""
    if len(epochs) < 2:
        return Markup("")
    left, right, top, bottom = 44, WIDTH - 46, 24, 160
    across = Scale(epochs[0].epoch, epochs[-1].epoch, left + 4, right - 4)
    up = scale_over([100 * point.top1 for point in epochs], bottom - 4, top)
    places = [(across(point.epoch), up(100 * point.top1)) for point in epochs]
    last = f"{100 * epochs[-1].top1:.1f}"
    parts = [
        left_axis(up, left, right, f"{metric}, %"), bottom_axis(across, bottom, "epoch", whole=True),
        line(left, places[0][1], right, places[0][1], "equal"), polyline(places, "best"),
        dots([places[-1]], "large calibration"), text(places[-1][0] + 8, places[-1][1] + 4, last, css="value"),
    ]  # fmt: skip
    return drawing(WIDTH, bottom + 38, "accuracy on held-out images after each epoch of fine-tuning", parts)


def _is_measured_over(point: EpisodePoint, budget: Budget | None) -> bool:
    """Such a plan scored well by being too slow: it counts for nothing."""
    is_latency = budget is not None and budget.unit == "ms"
    return is_latency and budget is not None and (point.measured_ms or 0) > budget.limit_of_search


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _without_outliers(values: list[float]) -> list[float]:
    """Without the lowest twentieth: one ruined network must not flatten the curve. It is drawn at the edge."""
    return sorted(values)[len(values) // 20 :]


def _best_so_far(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the running best; pixels grow downwards, so the best is the smallest y."""
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if not corners:
            corners.append((x, y))
        elif y < corners[-1][1]:
            corners += [(x, corners[-1][1]), (x, y)]
    if corners:
        corners.append((points[-1][0], corners[-1][1]))
    return corners


def _ring(x: float, y: float) -> Markup:
    return Markup(f'<circle class="ring" cx="{pixel(x)}" cy="{pixel(y)}" r="6"/>')


def prediction_scatter(predictions: Predictions) -> Markup:
    """Measured over predicted p50 with the line of equality and the band."""
    points = [p for p in predictions.points if _finite(p.predicted_ms) and _finite(p.measured_ms)]
    if not points:
        return Markup("")
    left, right, top, bottom = 44, WIDTH - 8, 24, 340
    values = [p.predicted_ms for p in points] + [p.measured_ms for p in points]
    across = scale_over(values, left, right)
    up = Scale(across.low, across.high, bottom, top)
    parts = [left_axis(up, left, right, "measured ms")]
    if predictions.band is not None:
        parts.append(_band(across, up, predictions.band))
    parts.append(line(across(across.low), up(across.low), across(across.high), up(across.high), "equal"))
    for kind in ("calibration", "search", "final"):
        places = [(across(p.predicted_ms), up(p.measured_ms)) for p in points if p.kind == kind]
        parts.append(dots(places, f"large {kind}"))
    parts.append(bottom_axis(across, bottom, "predicted ms"))
    return drawing(WIDTH, bottom + 38, "predicted and measured latency of whole networks", parts)


def _band(across: Scale, up: Scale, band: float) -> Markup:
    """Between predicted x (1 - band) and x (1 + band), cut at the edges of the plot."""
    steps = [across.low + (across.high - across.low) * i / 40 for i in range(41)]
    corners = [(across(v), up(min(max(v * (1 + band), up.low), up.high))) for v in steps]
    corners += [(across(v), up(min(max(v * (1 - band), up.low), up.high))) for v in reversed(steps)]
    return polyline(corners, "band")


SERIES_WIDTH, SERIES_LEFT, LABELS = 760.0, 46.0, 150.0  # LABELS: the room for the names of the series at the right
SERIES_RIGHT = SERIES_WIDTH - LABELS
GROUP_NAME_LENGTH = 14
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
    across = Scale(-0.5, len(groups) - 0.5, SERIES_LEFT, SERIES_RIGHT)
    values = [v * factor for spreads in lines.values() for s in spreads for v in (s.low, s.high)]
    values += [reference[1] * factor] if reference else []
    names = {name: i for i, name in enumerate(lines)}
    parts = []
    top = 30.0
    for panel in panels:
        bottom = top + height
        axis = Scale(*up, bottom, top) if up else scale_over(values, bottom, top)
        parts.append(_shared(groups, across, top, bottom))
        parts.append(
            left_axis(
                axis, SERIES_LEFT, SERIES_RIGHT, title if panel == panels[0] else "", about=4 if height > 99 else 2
            )
        )
        parts.append(line(SERIES_LEFT, bottom, SERIES_RIGHT, bottom, "axis"))
        places = {
            name: [(across(i), axis(s.mean * factor)) for i, s in enumerate(spreads)] for name, spreads in lines.items()
        }
        if reference:
            y = axis(reference[1] * factor)
            parts.append(line(SERIES_LEFT, y, SERIES_RIGHT, y, "reference"))
            parts.append(text(SERIES_LEFT + 4, y - 5, reference[0], css="reference-label"))
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
        parts.append(end_labels(names, ends, SERIES_RIGHT + 34, top, bottom))
        top = bottom + GAP
    bottom = top - GAP
    parts.append(_group_names(groups, across, bottom))
    parts.append(
        text(SERIES_RIGHT, bottom + 112, "channel group, in order of execution", css="axis-title", anchor="end")
    )
    return drawing(SERIES_WIDTH, bottom + 118, label, parts)


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
            parts.append(tilted(across(i) + 3, bottom + 24, shortened(group.name, GROUP_NAME_LENGTH), "name"))
    return Markup("").join(parts)


def accuracy_bars(rows: Sequence[StageBars], original: float | None, *, accuracy: str) -> Markup:
    """Bars per policy and stage with the spread over seeds, and the original as a line.

    `accuracy`: which and on what, e.g. "top-1 on 360 test images".
    """
    known = [s for row in rows for s in row.stages.values() if s is not None]
    if not known:
        return Markup("")
    bar, gap, left, top = 13.0, 9.0, 128.0, 40.0
    right = SERIES_WIDTH - 150
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
    return drawing(SERIES_WIDTH, bottom + 40, "accuracy of each policy before and after fine-tuning", parts)


def front(points: Sequence[FrontPoint], original: FrontPoint | None, *, unit: str, accuracy: str) -> Markup:
    """Accuracy over cost: a line per policy through its budgets, dots for seeds, the front of all means as steps."""
    if not points:
        return Markup("")
    names = {name: i for i, name in enumerate(dict.fromkeys(p.policy for p in points))}
    key, top = legend(names, SERIES_WIDTH)
    top += 30
    bottom = top + 310
    everything = [*points, *([original] if original else [])]
    seen = [pair for p in everything for pair in (*p.seeds, (p.cost, p.top1))]
    right = SERIES_WIDTH - 12
    across = scale_over([cost for cost, _ in seen], SERIES_LEFT, right)
    up = scale_over([100 * top1 for _, top1 in seen], bottom, top)
    parts = [key, left_axis(up, SERIES_LEFT, right, f"{accuracy}, %"), bottom_axis(across, bottom, unit)]
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
    return drawing(SERIES_WIDTH, bottom + 40, "accuracy against cost", parts)


def non_dominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) pairs to which none is both as cheap and better, or cheaper and as good; by rising cost."""
    best: list[tuple[float, float]] = []
    for _, same_cost in groupby(sorted(points), key=lambda point: point[0]):
        candidate = max(same_cost, key=lambda point: point[1])
        if not best or candidate[1] > best[-1][1]:
            best.append(candidate)
    return best


PANEL_WIDTH, PANEL_HEIGHT, HEAD = 640, 360, 64
PANEL_LEFT, PANEL_RIGHT, TOP, BOTTOM = 64, 560, 36, 306  # within a panel
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
    ).format(PANEL_WIDTH, height, f"latency of {title} over its channels", Markup(STYLE))
    return str(
        head + Markup("").join([text(PANEL_LEFT, 22, title, css="title"), _legend(), *drawn]) + Markup("</svg>\n")
    )


def _legend() -> Markup:
    entries = (
        (dots([(PANEL_LEFT + 4, 42)], "key"), PANEL_LEFT + 14, "measured by the profile"),
        (dots([(PANEL_LEFT + 174, 42)], "key more"), PANEL_LEFT + 184, "by a probe or a search"),
        (line(PANEL_LEFT + 330, 42, PANEL_LEFT + 350, 42, "key fit"), PANEL_LEFT + 356, "predicted"),
    )
    return Markup("").join(key + text(x, 46, name) for key, x, name in entries)


def _panel(panel: StaircasePanel) -> Markup:
    every = [*panel.apart, *(p for one in panel.lines for p in (*one.profiled, *one.more, *one.predicted))]
    across = scale_over([x for x, _ in every], PANEL_LEFT, PANEL_RIGHT)
    up = scale_over([0.0, *(y for _, y in every)], BOTTOM, TOP)

    def places(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(across(x), up(y)) for x, y in points]

    parts = [
        left_axis(up, PANEL_LEFT, PANEL_RIGHT, "latency, ms (lowest 20th percentile)"),
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
