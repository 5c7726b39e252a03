"""The report's pictures as inline SVG; an empty string where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup

from amc_mobile.report.content import TOP1, Budget
from amc_mobile.report.details import EpisodePoint, EpochAccuracy, LayerRow, Predictions
from amc_mobile.report.quantities import number, shortened
from amc_mobile.report.svg import (
    Scale,
    bottom_axis,
    dots,
    drawing,
    left_axis,
    line,
    pixel,
    polyline,
    rectangle,
    scale_over,
    text,
)

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
