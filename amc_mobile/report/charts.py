"""The charts of reports, comparisons and latency tables: Vega-Lite specifications, drawn by a page or as an SVG file.

Each chart is made in light colours. `DARK` gives what a dark screen shows in their place, by CSS, so that a page, its
static pictures and an SVG file need one drawing each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from amc_mobile.report.content import (
    TOP1,
    AskedBudget,
    EpisodePoint,
    EpochAccuracy,
    LayerRow,
    PassRow,
    Predictions,
    Stage,
    wilson_interval,
)
from amc_mobile.report.tables import number, printable

if TYPE_CHECKING:  # half a second, which `amc-mobile --help` does not need
    import altair as alt
    import pandas as pd

T = TypeVar("T")
Spec = Mapping[str, Any]  # of Vega-Lite; its "description" is what a screen reader says

PAPER, INK, SOFT, HAIR, SHADE = "#fbfaf8", "#1d2127", "#5c6570", "#e2e0db", "#eceae5"
BEFORE, AFTER, MEASURED, CHOSEN, LIMIT = "#d3d8de", "#1f6fb2", "#d1670b", "#a3195b", "#b3261e"
ORIGINAL = "#7d8793"  # of lines and dots, which are too thin for BEFORE
OTHERS, FRONT, STAGES = "#c9cdd2", "#b9bec4", ("#b8cde2", "#6d9fcf", "#1f5f9e")
# Told apart by colour-blind readers, in light and dark. A ninth series has the first colour again, with dashes.
SERIES = ("#2a78d6", "#d1560f", "#128a5f", "#b07800", "#c74a80", "#4a3aa7", "#00798c", "#6b6b6b")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DARK = {
    PAPER: "#14171b", INK: "#e6e8eb", SOFT: "#9aa4af", HAIR: "#323841", SHADE: "#20252c", BEFORE: "#48515c",
    ORIGINAL: "#8f99a5", AFTER: "#6cb2ee", MEASURED: "#f2a154", CHOSEN: "#f07db1", LIMIT: "#f28b82",
    OTHERS: "#4a515a", FRONT: "#59616b",
    **dict(zip(STAGES, ("#3b4d61", "#4a7cab", "#7cbcf5"), strict=True)),
    **dict(zip(SERIES, ("#5a9df0", "#f0833c", "#35c08c", "#dfa72a", "#ef7fae", "#a498f2", "#40bccd", "#b3b3b3"),
               strict=True)),
}  # fmt: skip
SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, Consolas, "Liberation Mono", monospace'
CONFIG: Spec = {
    "background": None,
    "font": SANS,
    "axis": {"labelColor": SOFT, "titleColor": INK, "gridColor": HAIR, "domainColor": SOFT, "tickColor": SOFT,
             "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11},
    "legend": {"orient": "top", "offset": 20, "symbolOpacity": 1, "labelColor": INK, "labelFontSize": 11,
               "columns": 4, "columnPadding": 26, "labelLimit": 220},
    "title": {"color": INK, "fontSize": 12, "anchor": "start"},
    "text": {"color": SOFT, "fontSize": 10.5},
    "view": {"stroke": None},
}  # fmt: skip
SVG_WIDTH = 640
FIT_WIDTH: Any = {"type": "fit-x", "contains": "padding"}  # where the height is that of the rows alone
MOST_DOTS = 2000  # a longer series is thinned, so that the page stays small
MOST_BARS = 48
MOST_STEPS = 300  # of a distribution
FILES = ("original", "pruned")
CLOCKS = ["#d1670b", "#2a78d6"]  # from the lowest to the highest; seen on light and dark paper
MOST_TOGETHER = 4  # lines in one panel
UNIT_FACTOR = {"ms": (1.0, "ms"), "macs": (1e-6, "million MACs"), "parameters": (1e-3, "thousand parameters")}
# Paths differ at their ends, so the middle of a long name goes.
SHORT_NAME = "length(datum.label) > 22 ? slice(datum.label, 0, 7) + '…' + slice(datum.label, -14) : datum.label"

# Draws each chart as wide as its place, again when that changes. `ast`: Vega evaluates its expressions itself, since
# the page's security policy allows no `eval`.
DRAW = """
for (const data of document.querySelectorAll('script[type="application/json"]')) {
  const place = data.previousElementSibling, chart = JSON.parse(data.textContent);
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth === width || !place.clientWidth) return;
    width = place.clientWidth;
    for (const panel of chart.vconcat || []) panel.width = width - 70;
    requestAnimationFrame(() => vegaEmbed(place, chart, {actions: false, ast: true, renderer: "svg"}));
  }).observe(place);
}
"""


@cache
def script() -> str:
    """The JavaScript that draws the charts of a page: Vega, Vega-Lite and Vega-Embed, about 0.9 MB."""
    import vl_convert

    return str(vl_convert.javascript_bundle(DRAW, vl_version=_version()))


def svg(chart: Spec, width: int = SVG_WIDTH) -> str:
    """The chart as an SVG file on a background, light or dark as the reader's screen is."""
    import vl_convert

    views = [{**view, "width": width} for view in chart.get("vconcat", [chart])]
    sized = {**chart, "vconcat": views} if "vconcat" in chart else views[0]
    drawn = str(vl_convert.vegalite_to_svg({**sized, "background": PAPER}, vl_version=_version()))
    head, rest = drawn.split(">", 1)
    return f'{head} role="img"><style>{dark_style()}</style>{rest}\n'


def dark_style() -> str:
    """CSS that puts the colours of `DARK` in place of those that a chart was drawn in."""
    rules = "".join(
        f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}' for light, dark in DARK.items()
    )
    return f"@media (prefers-color-scheme:dark){{{rules}}}"


def _version() -> str:
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.split(".")[:2])


def _finished(chart: alt.TopLevelMixin, description: str) -> Spec:
    document: Spec = chart.properties(description=printable(description)).to_dict()
    return {**document, "config": CONFIG}


def _rows(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
    """Of long numbers six digits; names without control characters."""
    import altair as alt

    def cell(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}") if math.isfinite(value) else None
        return printable(value) if isinstance(value, str) else value

    return alt.InlineData([{key: cell(value) for key, value in row.items()} for row in rows])


def _ms(value: float) -> str:
    return number(value, significant=3)


def layer_ms_bars(layers: Sequence[LayerRow]) -> Spec | None:
    """Latency per layer, original behind pruned."""
    bars = [(x.name, x.ms_before, x.ms_after) for x in layers if x.ms_before is not None]
    return _bars(bars, "ms of each layer, original and pruned", "ms", _ms) if bars else None


def layer_channel_bars(layers: Sequence[LayerRow]) -> Spec | None:
    """Output channels per layer, original behind pruned."""
    bars = [
        (x.name, float(x.channels_before), float(x.channels_after))
        for x in layers
        if x.channels_before is not None and x.channels_after is not None
    ]
    return (
        _bars(bars, "output channels of each layer, original and pruned", "channels", "{:.0f}".format) if bars else None
    )


def _bars(
    bars: Sequence[tuple[str, float, float | None]], description: str, unit: str, shown: Callable[[float], str]
) -> Spec:
    """`bars`: name, before and after. Of many the largest MOST_BARS, in the order of the network."""
    import altair as alt

    least = sorted((before for _, before, _ in bars), reverse=True)[:MOST_BARS][-1]
    rows = [
        {
            "layer": name, "before": before, "after": after, "end": max(before, after or 0.0),
            "values": " → ".join(dict.fromkeys(shown(value) for value in (before, after) if value is not None)),
        }
        for name, before, after in [bar for bar in bars if bar[1] >= least][:MOST_BARS]
    ]  # fmt: skip
    y = alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(
        labelFont=MONO, labelFontSize=10, labelColor=INK, labelExpr=SHORT_NAME, labelLimit=200, labelPadding=8,
        ticks=False, domain=False,
    ))  # fmt: skip
    base = alt.Chart(_rows(rows), height=19 * len(rows)).encode(y=y, tooltip=[
        "layer:N", alt.Tooltip("before:Q", title=f"original, {unit}"), alt.Tooltip("after:Q", title=f"pruned, {unit}"),
    ])  # fmt: skip
    colours = alt.Scale(domain=["original", "pruned"], range=[BEFORE, AFTER])

    def bar(field: str, name: str, size: int) -> Any:
        return (
            base.mark_bar(size=size, cornerRadius=1.5)
            .transform_calculate(what=f"'{name}'")
            .encode(
                alt.X(f"{field}:Q", title=None, stack=None, axis=None), alt.Color("what:N", title=None, scale=colours)
            )
        )

    values = base.mark_text(align="left", dx=5).encode(x="end:Q", text="values:N")
    chart = alt.layer(bar("before", "original", 13), bar("after", "pruned", 7), values)
    return _finished(chart.properties(width="container", autosize=FIT_WIDTH, padding=_padding(80)), description)


def sample_ecdf(passes: Sequence[PassRow], limit_ms: float | None) -> Spec | None:
    """The share of the runs that took at most so long, of original and pruned file, and the budget."""
    import altair as alt

    if not passes:
        return None
    rows = []
    for file in FILES:
        samples = sorted(value for one in passes if one.file == file for value in one.samples_ms)
        steps = range(min(len(samples), MOST_STEPS))
        places = [round((i + 1) * len(samples) / len(steps)) for i in steps]
        rows += [{"file": file, "ms": samples[place - 1], "share": place / len(samples)} for place in places]
    scale = alt.Scale(domain=_usual_ms(passes, limit_ms), nice=False)
    x = alt.X("ms:Q", title="latency of one run, ms", scale=scale, axis=alt.Axis(grid=False, tickCount=6))
    y = alt.Y("share:Q", title="share of the runs", axis=_left_axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    line = alt.Chart(_rows(rows)).encode(
        x, y, _file_colour(),
        tooltip=["file:N", alt.Tooltip("ms:Q", format=".4g"), alt.Tooltip("share:Q", format=".0%")],
    )  # fmt: skip
    chart = alt.layer(
        alt.Chart(_rows([{"value": 0.5}])).mark_rule(color=HAIR).encode(y="value:Q"),
        line.mark_line(interpolate="step-after", strokeWidth=2, clip=True),
        line.mark_point(filled=True, size=60, opacity=0, clip=True),  # for the tooltips
        *(
            _reference(alt.X("value:Q"), limit_ms, f"budget {number(limit_ms)} ms", LIMIT, inside=True)
            if limit_ms
            else []
        ),
    )
    described = "share of the runs at or under each latency, original and pruned"
    return _finished(chart.properties(width="container", height=200), described)


def run_order(passes: Sequence[PassRow], limit_ms: float | None) -> Spec | None:
    """Every run in the order made: by the clock of its cores where that is known, else by file."""
    import altair as alt

    rows: list[dict[str, Any]] = []
    for number_of_pass, one in enumerate(passes):
        for ms in one.samples_ms:
            rows.append({
                "run": len(rows) + 1, "ms": ms, "file": one.file, "round": number_of_pass // 2 + 1,
                "MHz": one.mean_mhz, "load": "other programs too" if one.is_busy else "none",
            })  # fmt: skip
    if not rows:
        return None
    x = alt.X("run:Q", title="run, in the order made", axis=alt.Axis(grid=False, format="d"),
              scale=alt.Scale(domain=[0, len(rows) + 1], nice=False))  # fmt: skip
    scale = alt.Scale(domain=_usual_ms(passes, limit_ms), nice=False, clamp=True)
    y = alt.Y("ms:Q", title="ms", axis=_left_axis(), scale=scale)
    clocks = {one.mean_mhz for one in passes if one.mean_mhz is not None}
    colour = _file_colour()
    if len(clocks) > 1:
        colour = alt.Color("MHz:Q", title="mean clock, MHz", scale=alt.Scale(range=CLOCKS), legend=alt.Legend(
            gradientLength=160, gradientThickness=8, format="d", titleColor=INK,
        ))  # fmt: skip
    shape = alt.Shape("file:N", title=None, scale=alt.Scale(domain=FILES, range=["circle", "diamond"]))
    tooltip: list[Any] = ["run:Q", alt.Tooltip("ms:Q", format=".4g"), "file:N", "round:Q",
                          alt.Tooltip("load:N", title="load"), alt.Tooltip("MHz:Q", format=".0f")]  # fmt: skip
    dots = alt.Chart(_rows(_thinned(rows))).mark_point(filled=True, size=16, opacity=0.75).encode(
        x, y, colour, shape, tooltip=tooltip
    )  # fmt: skip
    limit = _reference(alt.Y("value:Q"), limit_ms, f"budget {number(limit_ms)} ms", LIMIT) if limit_ms else []
    chart = alt.layer(dots.add_params(_zoom()), *limit)
    return _finished(chart.properties(width="container", height=200), "latency of every run in the order made")


def _usual_ms(passes: Sequence[PassRow], limit_ms: float | None) -> list[float]:
    """From the fastest run to a third over the slower file's median, and the budget: interrupted runs take many times
    as long."""
    slowest = max(statistics.median(v for one in passes if one.file == file for v in one.samples_ms) for file in FILES)
    return _range([min(min(one.samples_ms) for one in passes), 1.33 * slowest, *([limit_ms] if limit_ms else [])])


def stage_accuracies(stages: Sequence[Stage], metric: str) -> Spec | None:
    """Accuracy after each step with its 95 % interval; the pale bar is the interval of the first."""
    import altair as alt

    rows: list[dict[str, Any]] = [
        {
            "stage": stage.name, "accuracy": 100 * stage.accuracy.top1, "images": stage.accuracy.images,
            "low": 100 * interval[0], "high": 100 * interval[1],
        }
        for stage in stages
        if stage.accuracy is not None and (interval := stage.accuracy.interval) is not None
    ]  # fmt: skip
    if len(rows) < 2:
        return None
    ends = _range([value for row in rows for value in (row["low"], row["high"])], room=0.04)
    domain = [max(0.0, ends[0]), min(100.0, ends[1])]
    split = next(stage.accuracy.split for stage in stages if stage.accuracy is not None)
    title = f"{printable(metric)} on {rows[0]['images']} {split} images, % (bars: 95 % interval)"
    scale = alt.Scale(domain=domain, nice=False)
    x, low, high = (
        alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))
        for field in ("accuracy", "low", "high")
    )
    names = alt.Axis(labelColor=INK, labelPadding=8, ticks=False, domain=False)
    base = alt.Chart(_rows(rows), height=22 * len(rows)).encode(
        y=alt.Y("stage:N", sort=None, title=None, axis=names),
        tooltip=["stage:N", *(alt.Tooltip(f"{f}:Q", format=".1f") for f in ("accuracy", "low", "high")), "images:Q"],
    )  # fmt: skip
    chart = alt.layer(
        alt.Chart(_rows(rows[:1])).mark_rect(color=SHADE).encode(low, x2="high:Q"),
        base.mark_rule(color=SOFT, strokeWidth=1.5).encode(low, x2="high:Q"),
        base.mark_point(filled=True, size=60, color=AFTER, opacity=1).encode(x),
        base.mark_text(align="left", dx=8).encode(high, text=alt.Text("accuracy:Q", format=".1f")),
    )
    return _finished(
        chart.properties(width="container", autosize=FIT_WIDTH, padding=_padding(40)), f"{metric} after each step"
    )


def _file_colour() -> alt.Color:
    import altair as alt

    return alt.Color("file:N", title=None, scale=alt.Scale(domain=FILES, range=[ORIGINAL, AFTER]))


def _zoom() -> alt.Parameter:
    import altair as alt

    return alt.selection_interval("zoom", bind="scales", zoom="wheel![event.shiftKey]")


def search_curve(
    episodes: Sequence[EpisodePoint], budget: AskedBudget | None, band: float | None = None
) -> Spec | None:
    """Above: reward of each episode and the best so far. Below: predicted and measured cost with the budget.

    `band`: plans were held to the budget less this share.
    """
    import altair as alt

    rewards = [(p, p.reward) for p in episodes if _is_finite(p.reward)]
    factor, unit = UNIT_FACTOR[budget.unit if budget else "ms"]
    costs: list[dict[str, Any]] = [
        {"episode": p.episode, "cost": value, "what": what, "policy": p.policy}
        for what, points in (
            ("predicted", [(p, p.predicted * factor) for p in episodes if _is_finite(p.predicted)]),
            ("measured", [(p, p.measured_ms) for p in episodes if _is_finite(p.measured_ms) and unit == "ms"]),
        )
        for p, value in _thinned(points)
    ]
    if not rewards and not costs:
        return None
    first, last = min(p.episode for p in episodes), max(p.episode for p in episodes)
    zoom = alt.selection_interval("zoom", bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]")
    across = alt.Scale(domain=_range([first, max(last, first + 1)], room=0.02), nice=False)
    x = alt.X("episode:Q", scale=across, title="episode",
              axis=alt.Axis(format="d", tickMinStep=1, grid=False))  # fmt: skip
    panels = []
    if rewards:
        # One ruined network must not flatten the curve: the lowest twentieth is drawn at the edge.
        low, high = _range(sorted(reward for _, reward in rewards)[len(rewards) // 20 :])
        y = alt.Y("reward:Q", scale=alt.Scale(domain=[low, high], nice=False, clamp=True), title="reward",
                  axis=_left_axis())  # fmt: skip
        colour = alt.Color("what:N", title=None, scale=alt.Scale(
            domain=["episode", "best so far", "chosen"], range=[STAGES[1], AFTER, CHOSEN],
        ))  # fmt: skip
        tooltip: list[Any] = ["episode:Q", alt.Tooltip("reward:Q", format=".4g"), "policy:N"]

        def drawn(points: Sequence[tuple[EpisodePoint, float]], what: str) -> alt.Chart:
            rows = [{"episode": p.episode, "reward": reward, "policy": p.policy, "what": what} for p, reward in points]
            return alt.Chart(_rows(rows)).encode(x, y, colour)

        dots = drawn(_thinned(rewards), "episode").encode(tooltip=tooltip).mark_circle(size=16, opacity=0.5, clip=True)
        best = drawn(_best_so_far([(p, r) for p, r in rewards if not _is_measured_over(p, budget)]), "best so far")
        ring = drawn([(p, r) for p, r in rewards if p.is_best], "chosen").encode(tooltip=tooltip)
        best = best.mark_line(interpolate="step-after", strokeWidth=2, clip=True)
        ring = ring.mark_point(size=110, strokeWidth=2.5, clip=True)
        panels.append(alt.layer(dots, best, ring).properties(height=150))
    if costs:
        limit = budget.limit * factor if budget else None
        low, high = _range([float(row["cost"]) for row in costs] + ([limit] if limit is not None else []))
        y = alt.Y("cost:Q", scale=alt.Scale(domain=[low, high], nice=False), title=unit, axis=_left_axis())
        colour = alt.Color("what:N", title=None, scale=alt.Scale(
            domain=["predicted", "measured"] if unit == "ms" else ["predicted"], range=[AFTER, MEASURED],
        ))  # fmt: skip
        size = alt.condition("datum.what == 'measured'", alt.value(40), alt.value(16))
        layers = [
            alt.Chart(_rows(costs)).mark_circle(opacity=0.7, clip=True).encode(
                x, y, color=colour, size=size,
                tooltip=["episode:Q", "what:N", alt.Tooltip("cost:Q", title=unit, format=".4g"), "policy:N"],
            )
        ]  # fmt: skip
        if limit is not None:
            layers += _reference(alt.Y("value:Q"), limit, f"budget {number(limit)}", LIMIT)
            if band and unit == "ms":
                layers += _reference(alt.Y("value:Q"), limit / (1 + band), "budget less the band", SOFT)
        panels.append(alt.layer(*layers).properties(height=150))
    chart = alt.vconcat(panels[0].add_params(zoom), *panels[1:], spacing=14).resolve_scale(color="independent")
    return _finished(chart, "reward and cost of each episode of the search")


def finetuning_curve(epochs: Sequence[EpochAccuracy], metric: str = TOP1) -> Spec | None:
    """Accuracy on the held-out images after each epoch; the line across is where fine-tuning began."""
    import altair as alt

    if len(epochs) < 2:
        return None
    images = epochs[0].images if metric == TOP1 else None
    rows = [{"epoch": point.epoch, "accuracy": 100 * point.top1} for point in epochs]
    for row in rows if images else ():
        row["low"], row["high"] = (100 * end for end in wilson_interval(row["accuracy"] / 100, images or 1))
    x = alt.X("epoch:Q", axis=alt.Axis(format="d", tickMinStep=1, grid=False))
    y = alt.Y("accuracy:Q", title=f"{printable(metric)}, %", scale=alt.Scale(zero=False, padding=8), axis=_left_axis())
    tooltip: list[Any] = [
        "epoch:Q",
        *(alt.Tooltip(f"{f}:Q", format=".1f") for f in ("accuracy", "low", "high") if f in rows[0]),
    ]
    base = alt.Chart(_rows(rows)).encode(x, y, tooltip=tooltip)
    band = [base.mark_area(color=BEFORE, opacity=0.45).encode(alt.Y("low:Q"), alt.Y2("high:Q"))] if images else []
    last = alt.Chart(_rows(rows[-1:])).encode(x, y, text=alt.Text("accuracy:Q", format=".1f"))
    chart = alt.layer(
        *band,
        *_reference(alt.Y("value:Q"), 100 * epochs[0].top1, "before", SOFT),
        base.mark_line(color=AFTER, point=alt.OverlayMarkDef(color=AFTER)),
        last.mark_text(align="left", dx=8),
    )
    described = f"accuracy on held-out images after each epoch of fine-tuning: {100 * epochs[-1].top1:.1f} % at the end"
    return _finished(chart.properties(width="container", height=140, padding=_padding(30)), described)


def prediction_scatter(predictions: Predictions) -> Spec | None:
    """Measured over predicted p50 with the line of equality and the band."""
    import altair as alt

    points = [p for p in predictions.points if _is_finite(p.predicted_ms) and _is_finite(p.measured_ms)]
    if not points:
        return None
    low, high = _range([p.predicted_ms for p in points] + [p.measured_ms for p in points])
    scale = alt.Scale(domain=[low, high], nice=False)
    x = alt.X("predicted:Q", title="predicted p50, ms", scale=scale, axis=alt.Axis(grid=False))
    y = alt.Y("measured:Q", title="measured p50, ms", scale=scale, axis=_left_axis())
    kinds = ["calibration", "search", "exported file"]
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[AFTER, MEASURED, CHOSEN]))
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=["circle", "diamond", "square"]))
    rows = [
        {"predicted": p.predicted_ms, "measured": p.measured_ms, "kind": shown}
        for kind, shown in zip(("calibration", "search", "final"), kinds, strict=True)
        for p in _thinned([p for p in points if p.kind == kind])
    ]
    band = predictions.band or 0.0
    ends = [{"predicted": v, "measured": v, "lower": v * (1 - band), "upper": v * (1 + band)} for v in (low, high)]
    line = alt.Chart(_rows(ends)).encode(x)
    dots = alt.Chart(_rows(rows)).mark_point(filled=True, size=55, opacity=0.8, clip=True).encode(
        x, y, colour, shape, tooltip=[
            alt.Tooltip("predicted:Q", title="predicted, ms", format=".4g"),
            alt.Tooltip("measured:Q", title="measured, ms", format=".4g"),
            "kind:N",
        ],
    )  # fmt: skip
    chart = alt.layer(
        line.mark_area(color=BEFORE, opacity=0.55, clip=True).encode(alt.Y("lower:Q", scale=scale), alt.Y2("upper:Q")),
        line.mark_line(color=SOFT, strokeWidth=1, clip=True).encode(y),
        dots.add_params(_zoom()),
    )
    described = "predicted and measured latency of whole networks"
    described += f", with a band of +-{100 * band:.1f} %" if band else ""
    return _finished(chart.properties(width="container", height=320), described)


def group_lines(
    values: Sequence[tuple[str, str, float]], kinds: Mapping[str, str], *, description: str, title: str,
    domain: tuple[float, float] | None = None, reference: tuple[str, float] | None = None,
) -> Spec | None:  # fmt: skip
    """One line per series over the channel groups: the mean, with the lowest and the highest value as a pale bar.

    `values`: series, group, value. `kinds`: of each group, in the order of the network: "residual" (several layers
    write it), "depthwise" (one filters it) or "". More than MOST_TOGETHER series get a panel each, with the others in
    grey behind. `title` and `domain`: of the left axis. `reference`: a named value to draw across.
    """
    import altair as alt
    import pandas as pd

    if not kinds or not values:
        return None
    frame = pd.DataFrame(values, columns=["series", "group", "value"])
    series = list(dict.fromkeys(frame["series"].map(printable)))
    every = (
        frame.groupby(["series", "group"], sort=False)["value"].agg(mean="mean", low="min", high="max").reset_index()
    )
    signs = {"residual": "+", "depthwise": "dw"}
    marked = alt.Chart(_rows([{"group": g, "kind": k, "sign": signs[k]} for g, k in kinds.items() if k in signs]))
    lines = alt.Chart(_frame_rows(every.assign(kind=every["group"].map(kinds))))
    groups = alt.Scale(domain=[printable(group) for group in kinds])
    y = alt.Y("mean:Q", title=title, axis=_left_axis(), scale=alt.Scale(domain=domain or alt.Undefined, zero=False))
    colour, shape, dash = _looks("series", series)
    tooltip = [
        "series:N",
        "group:N",
        "kind:N",
        *(alt.Tooltip(f"{f}:Q", format=".3~f") for f in ("mean", "low", "high")),
    ]

    def panel(shown: Sequence[str], height: int) -> Any:
        is_last = shown[-1] == series[-1]
        named = "channel group, in order of execution" if is_last else None
        x = alt.X("group:N", scale=groups, title=named, axis=alt.Axis(
            labelAngle=-50, labelFont=MONO, labelFontSize=9.5, labelExpr=SHORT_NAME, labelLimit=160, labelOverlap=True,
            labels=is_last,
        ))  # fmt: skip
        mine = lines.encode(x, y, colour).transform_filter(alt.FieldOneOfPredicate("series", list(shown)))
        shade = marked.transform_filter("datum.kind == 'residual'").mark_bar(color=SHADE, width={"band": 1})
        others = lines.encode(x, y, detail="series:N").mark_line(strokeWidth=1, color=OTHERS)
        return alt.layer(
            shade.encode(x, y=alt.value(0), y2=alt.value("height")),
            marked.mark_text(fontSize=9).encode(x, y=alt.value(-7), text="sign:N"),
            *([others] if len(shown) < len(series) else []),
            mine.mark_rule(strokeWidth=4, opacity=0.3).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
            mine.mark_line(strokeWidth=1.8).encode(strokeDash=dash),
            mine.mark_point(filled=True, size=36, opacity=1).encode(shape=shape, tooltip=tooltip),
            *(_reference(alt.Y("value:Q"), reference[1], reference[0], INK) if reference else []),
            height=height,
        )

    if len(series) <= MOST_TOGETHER:
        return _finished(panel(series, 260).properties(width="container"), description)
    return _finished(alt.vconcat(*(panel([name], 70).properties(title=name) for name in series)), description)


def _interval(percentage: float, images: int | None) -> tuple[float, float]:
    """Wilson's, in percent; the value itself where accuracies are no shares of images."""
    if images is None:
        return percentage, percentage
    low, high = wilson_interval(min(max(percentage / 100, 0.0), 1.0), images)
    return 100 * low, 100 * high


def accuracy_bars(
    values: Sequence[tuple[str, str, float]], original: float | None, *, accuracy: str, images: int | None
) -> Spec | None:
    """Bars per policy and stage with the spread over seeds; the original as a line in its 95 % interval.

    `values`: policy, stage and accuracy in [0, 1]. `accuracy`: which and on what, e.g. "top-1 on 360 test images".
    `images`: how many; None where accuracies are no shares of them.
    """
    import altair as alt
    import pandas as pd

    if not values:
        return None
    frame = pd.DataFrame(values, columns=["policy", "stage", "top1"])
    frame["top1"] *= 100
    bars = frame.groupby(["policy", "stage"], sort=False)["top1"].agg(mean="mean", low="min", high="max").reset_index()
    spread = bars.apply(lambda b: f" [{b.low:.1f}-{b.high:.1f}]" if b.high > b.low else "", axis=1)
    bars["shown"] = bars["mean"].map("{:.1f}".format) + spread
    band = _interval(100 * (original or 0.0), images)
    lowest, highest = min(bars["low"].min(), band[0] if original else 100.0), max(bars["high"].max(), band[1])
    start = 10.0 * max(0.0, (lowest - 8) // 10) if lowest > 20 else 0.0
    stages = list(dict.fromkeys(frame["stage"]))
    title = f"{printable(accuracy)}, %" + (f"; the axis starts at {start:.0f}" if start else "")
    domain = [start, min(100.0, highest + (highest - start) * 0.03)]
    scale = alt.Scale(domain=domain, nice=False)
    x = alt.X("mean:Q", title=title, scale=scale)
    tooltip = [alt.Tooltip(f"{name}:Q", title=f"{name}, %", format=".2f") for name in ("mean", "low", "high")]
    colour = alt.Color("stage:N", title=None, sort=None, scale=alt.Scale(domain=stages, range=STAGES))
    names = alt.Axis(labelColor=INK, labelPadding=8, ticks=False, domain=False)
    base = alt.Chart(_frame_rows(bars), height=18 * len(bars)).encode(
        y=alt.Y("policy:N", sort=None, title=None, axis=names),
        yOffset=alt.YOffset("stage:N", sort=None, scale=alt.Scale(domain=stages)),
        tooltip=["policy:N", "stage:N", *tooltip],
    )  # fmt: skip
    shade = alt.Chart(_rows([{"low": band[0], "high": band[1]}] if original else []))
    chart = alt.layer(
        shade.mark_rect(color=SHADE).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q"),
        base.mark_bar().encode(x, x2=alt.datum(start), color=colour),
        base.mark_rule(color=INK, strokeWidth=1.2).encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        base.mark_text(align="left", dx=6).encode(x=alt.value("width"), text="shown:N"),
        *(_reference(alt.X("value:Q"), 100 * original, f"original {100 * original:.1f}", INK) if original else []),
    )  # fmt: skip
    description = f"{accuracy} of each policy before and after fine-tuning"
    return _finished(chart.properties(width="container", autosize=FIT_WIDTH, padding=_padding(110)), description)


def front(
    values: Sequence[tuple[str, str, float, float]], original: tuple[float, float] | None, *, unit: str, accuracy: str,
    images: int | None,
) -> Spec | None:  # fmt: skip
    """Accuracy over cost: a line per policy through its budgets, dots for seeds, the front of all means as steps.

    `values`: policy, budget, cost and accuracy in [0, 1], one per seed. `original`: its cost and accuracy. `images`: as
    for `accuracy_bars`; the means and the original then have their 95 % intervals.
    """
    import altair as alt
    import pandas as pd

    if not values:
        return None
    frame = pd.DataFrame(values, columns=["policy", "budget", "cost", "top1"])
    frame["top1"] *= 100
    means = frame.groupby(["policy", "budget"], sort=False)[["cost", "top1"]].mean().reset_index()
    means["low"], means["high"] = zip(*(_interval(value, images) for value in means["top1"]), strict=True)
    whole = [(original[0], 100 * original[1])] if original else []
    band = _interval(whole[0][1], images) if whole else ()
    best = non_dominated([*zip(means["cost"], means["top1"], strict=True), *whole])
    costs, top1 = ([*frame[key], *(pair[i] for pair in whole)] for i, key in enumerate(("cost", "top1")))
    x = alt.X(
        "cost:Q", title=unit, scale=alt.Scale(domain=_range(costs), nice=False), axis=alt.Axis(grid=False, tickCount=6)
    )
    scale = alt.Scale(domain=_range([*top1, *means["low"], *means["high"], *band]), nice=False)
    title = f"{printable(accuracy)}, %"
    y, low = (alt.Y(f"{field}:Q", title=title, axis=_left_axis(), scale=scale) for field in ("top1", "low"))
    colour, shape, dash = _looks("policy", list(dict.fromkeys(frame["policy"].map(printable))))
    tooltip: list[Any] = ["policy:N", "budget:N", alt.Tooltip("cost:Q", title=unit, format=".4g"),
               alt.Tooltip("top1:Q", title="accuracy, %", format=".2f")]  # fmt: skip
    ends = [
        alt.Tooltip(f"{end}:Q", title=f"95 % interval, {end}, %", format=".1f") for end in ("low", "high") if images
    ]
    mean = alt.Chart(_frame_rows(means)).encode(x, y, colour)
    layers: list[Any] = [
        alt.Chart(_rows([{"low": band[0], "high": band[1]}] if band else [])).mark_rect(color=SHADE).encode(
            low, alt.Y2("high:Q")
        ),
        alt.Chart(_rows([{"cost": c, "top1": t} for c, t in best])).encode(x, y).mark_line(
            interpolate="step-after", color=FRONT, strokeWidth=5, opacity=0.7
        ),
        alt.Chart(_frame_rows(frame)).encode(x, y, colour, tooltip=tooltip).mark_circle(size=16, opacity=0.45),
        mean.mark_rule(opacity=0.5).encode(low, alt.Y2("high:Q")),
        mean.mark_line(strokeWidth=1.8).encode(strokeDash=dash),
        mean.mark_point(filled=True, size=60, opacity=1).encode(shape=shape, tooltip=[*tooltip, *ends]),
    ]  # fmt: skip
    if original:
        shown = f"original {100 * original[1]:.1f} %, {number(original[0], significant=3)}"
        whole_point = alt.Chart(_rows([{"cost": original[0], "top1": 100 * original[1], "shown": shown}])).encode(x, y)
        layers += [
            whole_point.mark_circle(color=INK, size=90),
            whole_point.mark_text(align="right", dx=-9, color=INK).encode(text="shown:N"),
        ]
    layers[-1] = layers[-1].add_params(_zoom())
    return _finished(alt.layer(*layers).properties(width="container", height=310), f"{accuracy} against {unit}")


def non_dominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) pairs to which none is both as cheap and better, or cheaper and as good; by rising cost."""
    best: list[tuple[float, float]] = []
    for _, same_cost in groupby(sorted(points), key=lambda point: point[0]):
        candidate = max(same_cost, key=lambda point: point[1])
        if not best or candidate[1] > best[-1][1]:
            best.append(candidate)
    return best


KINDS = {"profile": "measured by the profile", "probe": "by a probe or a search", "predicted": "predicted"}


def staircase(title: str, panels: Mapping[str, Sequence[tuple[str, float, float, str]]]) -> Spec:
    """Measured points and predicted lines of one kernel, a panel per axis of channels.

    `panels`: by the name of the axis: line, channels, ms and a kind of KINDS. A predicted value holds until the next:
    there is nothing between two numbers of channels.
    """
    import altair as alt

    colour = alt.Color(
        "what:N", title=None, scale=alt.Scale(domain=list(KINDS.values()), range=[MEASURED, SERIES[2], AFTER])
    )
    charts = []
    for axis, points in panels.items():
        rows = [{"line": name, "channels": at, "ms": ms, "what": KINDS[kind]} for name, at, ms, kind in points]
        across = alt.Scale(domain=_range([at for _, at, _, _ in points]), nice=False)
        x = alt.X("channels:Q", title=axis, scale=across, axis=alt.Axis(format="d", tickMinStep=1, grid=False))
        y = alt.Y("ms:Q", title="latency, ms (lowest 20th percentile)", scale=alt.Scale(zero=True), axis=_left_axis())
        predicted = [row for row in rows if row["what"] == KINDS["predicted"]]
        ends = list({row["line"]: row for row in predicted}.values())
        tooltip = [
            alt.Tooltip("line:N", title="at"),
            alt.Tooltip("channels:Q", title=axis),
            alt.Tooltip("ms:Q", format=".4g"),
            "what:N",
        ]
        layers = (
            alt.Chart(_rows(predicted))
            .mark_line(interpolate="step-after", strokeWidth=1.5)
            .encode(x, y, colour, detail="line:N"),
            alt.Chart(_rows([row for row in rows if row not in predicted]))
            .mark_circle(size=42, opacity=1)
            .encode(x, y, colour, tooltip=tooltip),
            alt.Chart(_rows(ends)).mark_text(align="left", dx=8, fontSize=11).encode(x, y, text="line:N"),
        )
        charts.append(alt.layer(*layers).properties(height=260))
    chart = alt.vconcat(*charts, title=printable(title), padding=_padding(90))
    return _finished(chart, f"latency of {title} over its channels")


def _frame_rows(frame: pd.DataFrame) -> alt.InlineData:
    return _rows(frame.to_dict("records"))


def _padding(right: int) -> dict[str, int]:
    """`right`: room for the texts there, in pixels."""
    return {"left": 5, "top": 5, "bottom": 5, "right": right}


def _looks(field: str, names: Sequence[str]) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Colour, marker and dashes of each series, in one legend."""
    import altair as alt

    dashes = [[1, 0] if i < len(SERIES) else [5, 3] for i in range(len(names))]
    return (
        alt.Color(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=SERIES)),
        alt.Shape(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=SHAPES)),
        alt.StrokeDash(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=dashes)),
    )


def _left_axis(**settings: Any) -> alt.Axis:
    """The quantity above its values, where it does not turn a reader's head; panels below each other align."""
    import altair as alt

    return alt.Axis(
        titleAngle=0, titleAlign="left", titleAnchor="end", titleX=-40, titleY=-8, minExtent=42, maxExtent=42,
        tickCount=4, domain=False, ticks=False, **settings,
    )  # fmt: skip


def _reference(
    channel: alt.X | alt.Y, value: float, name: str, colour: str, *, inside: bool = False
) -> list[alt.Chart]:
    """A dashed line across the plot with its name."""
    import altair as alt

    base = alt.Chart(_rows([{"value": value, "name": name}])).encode(channel)
    if isinstance(channel, alt.X) and inside:
        label = base.mark_text(color=colour, align="left", dx=5).encode(y=alt.value(9))
    elif isinstance(channel, alt.X):
        label = base.mark_text(color=colour, align="right").encode(y=alt.value(-7))
    else:
        label = base.mark_text(color=colour, align="left", dx=4, dy=-7).encode(x=alt.value(0))
    return [base.mark_rule(color=colour, strokeDash=[6, 4], strokeWidth=1.4), label.encode(text="name:N")]


def _range(values: Sequence[float], room: float = 0.06) -> list[float]:
    """From the lowest to the highest value, with this share of room on both sides."""
    low, high = min(values), max(values)
    space = (high - low) * room or abs(high) * 0.1 or 1.0
    return [float(f"{end:.6g}") for end in (low - space, high + space)]


def _thinned(points: Sequence[T]) -> Sequence[T]:
    return points[:: -(-len(points) // MOST_DOTS) or 1]


def _is_measured_over(point: EpisodePoint, budget: AskedBudget | None) -> bool:
    """Such a plan scored well by being too slow: it counts for nothing."""
    return budget is not None and budget.unit == "ms" and (point.measured_ms or 0) > budget.limit


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _best_so_far(points: Sequence[tuple[EpisodePoint, float]]) -> list[tuple[EpisodePoint, float]]:
    """Each new best reward, and the last episode with the best of all."""
    best: list[tuple[EpisodePoint, float]] = []
    for point, reward in points:
        if not best or reward > best[-1][1]:
            best.append((point, reward))
    return [*best, (points[-1][0], best[-1][1])] if points else []
