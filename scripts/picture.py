"""Draws pictures of a run in light and in dark: before and after, why widths matter (README), and how it was found.

Reads the workspace's last run, as `scripts/demo` leaves it, and times one 1x1 convolution at many widths on this
computer with ONNX Runtime, two minutes.

Example: scripts/picture.py demo-workspace
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from torch import nn

import amc_mobile as amc

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
INPUTS, SIZE = 64, 28  # of the convolution that is timed
WIDTHS = range(4, 100, 4)
PASSES = 4  # other programs slow some of them
THIRD = "#d97706"
LEGEND = alt.Legend(orient="top", title=None)
THEMES = {  # text, pale bars, strong bars, lines
    "light": ("#1f2328", "#c8ced6", "#1f6feb", "#d0d7de"),
    "dark": ("#e6edf3", "#4a525c", "#58a6ff", "#30363d"),
}


def bars(report: dict[str, Any]) -> pd.DataFrame:
    """A row per quantity and network: the share of the original, and the values as they are read."""
    before, after = report["original"], report["pruned"]
    quantities = {
        "latency (p50)": ("{:.2f} ms", *(side["latency"]["p50_ms"] for side in (before, after))),
        "MACs": ("{:.1f} M", *(side["macs"] / 1e6 for side in (before, after))),
        "file": ("{:.2f} MB", *(side["file_bytes"] / 1e6 for side in (before, after))),
        "top-1 accuracy": ("{:.1f} %", *(side["accuracy"]["top1"] * 100 for side in (before, after))),
    }
    return pd.DataFrame(
        {
            "quantity": name, "network": network, "share": value / original, "text": form.format(value),
        }
        for name, (form, original, pruned) in quantities.items()
        for network, value in (("original", original), ("pruned", pruned))
    )  # fmt: skip


def staircase() -> pd.DataFrame:
    """The lowest p50 of several passes of a 1x1 convolution, by its output channels."""
    device = amc.open_device("host", runtime="onnxruntime", waive=["BUSY"])
    example = torch.zeros(1, INPUTS, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        paths = {width: Path(folder) / f"{width}.onnx" for width in WIDTHS}
        for width, path in paths.items():
            torch.onnx.export(
                nn.Conv2d(INPUTS, width, 1).eval(), (example,), path, dynamo=True, verbose=False, external_data=False
            )
        rows = [
            {"channels": width, "us": 1000 * amc.measure(path, device).p50_ms}
            for _ in range(PASSES)
            for width, path in paths.items()
        ]
    return pd.DataFrame(rows).groupby("channels", as_index=False).min()


def chart(before_after: pd.DataFrame, steps: pd.DataFrame, theme: str) -> alt.HConcatChart:
    ink, pale, strong, _ = THEMES[theme]
    colour = alt.Color("network:N", title=None, scale=alt.Scale(domain=["original", "pruned"], range=[pale, strong]),
                       legend=LEGEND)  # fmt: skip
    base = alt.Chart(before_after, title="the demo: half the latency, measured").encode(
        alt.X("share:Q", axis=None, scale=alt.Scale(domain=[0, 1.25])),
        alt.Y("quantity:N", title=None, sort=None, axis=alt.Axis(domain=False, ticks=False, labelPadding=8)),
        alt.YOffset("network:N", sort=["original", "pruned"]),
    )
    left = (
        base.mark_bar().encode(color=colour) + base.mark_text(align="left", dx=5, color=ink).encode(text="text:N")
    ).properties(width=300, height=190)
    x = alt.X("channels:Q", title="output channels", axis=alt.Axis(values=list(range(0, 97, 16)), grid=True))
    y = alt.Y("us:Q", title="p50, µs", axis=alt.Axis(grid=False, tickCount=5))
    right = alt.Chart(steps, title=f"one 1x1 convolution, {INPUTS} inputs at {SIZE}x{SIZE}").encode(x, y)
    right = (
        right.mark_line(interpolate="step-before", color=pale) + right.mark_point(filled=True, color=strong)
    ).properties(width=280, height=190)
    return styled(alt.hconcat(left, right, spacing=40), theme)


def search_chart(run: amc.Run, theme: str) -> alt.HConcatChart:
    """The rewards of the plans that were tried, in order, and the widths of the one that was chosen."""
    _, pale, strong, _ = THEMES[theme]
    plan, tried = run.plan(), run.episodes()
    tried["best"] = tried["reward"].cummax()
    tried["proposed by"] = tried["policy"].where(tried["policy"] == "critic", "fixed rules")
    x = alt.X("episode:Q", title="plan", axis=alt.Axis(grid=False))
    zoomed = {"title": "reward", "scale": alt.Scale(zero=False), "axis": alt.Axis(grid=False, tickCount=5)}
    proposed_by = alt.Color(
        "proposed by:N", scale=alt.Scale(domain=["fixed rules", "critic"], range=[THIRD, strong]), legend=LEGEND
    )
    left = (
        alt.Chart(tried)
        .mark_line(interpolate="step-after", color=pale, strokeWidth=2)
        .encode(x, alt.Y("best:Q", **zoomed))
        + alt.Chart(tried).mark_point(filled=True).encode(x, alt.Y("reward:Q", **zoomed), proposed_by)
    ).properties(width=360, height=190, title="the plans tried, and the best so far")
    uniform = tried.loc[tried["policy"] == "uniform", "widths"].iloc[0]
    kept = pd.DataFrame(
        {"group": number, "plan": name, "share": width / channels}
        for number, (channels, *widths) in enumerate(
            zip(plan.channels.values(), uniform, plan.kept_channels.values(), strict=True), 1
        )
        for name, width in zip(("uniform", "chosen"), widths, strict=True)
    )
    right = (
        alt.Chart(kept, title="the share of channels kept, from input to output")
        .mark_bar()
        .encode(
            alt.X("group:O", title="channel group", axis=alt.Axis(labelAngle=0)),
            alt.Y("share:Q", title=None, axis=alt.Axis(format="%", grid=False, tickCount=5)),
            alt.Color("plan:N", scale=alt.Scale(domain=["uniform", "chosen"], range=[pale, strong]), legend=LEGEND),
            alt.XOffset("plan:N", sort=["uniform", "chosen"]),
        )
        .properties(width=360, height=190)
    )
    return styled(alt.hconcat(left, right, spacing=40).resolve_scale(color="independent"), theme)


def styled(chart: alt.HConcatChart, theme: str) -> alt.HConcatChart:
    ink, _, _, rule = THEMES[theme]
    return (
        chart.properties(background="transparent", padding={"left": 16, "right": 8, "top": 4, "bottom": 4})
        .configure(font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=ink, titleColor=ink, gridColor=rule, domainColor=rule, tickColor=rule, titleFontWeight="normal"
        )
        .configure_header(labelColor=ink)
        .configure_legend(labelColor=ink)
        .configure_title(color=ink, anchor="start", fontSize=13)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, nargs="?", default=Path("demo-workspace"))
    options = parser.parse_args()
    run = amc.Workspace(options.workspace).run()
    before_after, steps = bars(json.loads((run.folder / "report.json").read_text())), staircase()
    IMAGES.mkdir(exist_ok=True)
    for theme in THEMES:
        for name, drawn in (("result", chart(before_after, steps, theme)), ("search", search_chart(run, theme))):
            path = IMAGES / f"{name}-{theme}.svg"
            drawn.save(path)
            print(f"wrote {path.relative_to(IMAGES.parents[1])}")
    print(steps.to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
