"""Draws the README's picture: a run before and after, and why widths matter, in light and in dark.

Reads report.json of the workspace's last run, as `scripts/demo` leaves it, and times one 1x1 convolution at many widths
on this computer with ONNX Runtime, half a minute.

Example: scripts/picture.py demo-workspace
"""

from __future__ import annotations

import argparse
import io
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
THEMES = {  # text, pale bars, strong bars, lines
    "light": ("#1f2328", "#c8ced6", "#1f6feb", "#d0d7de"),
    "dark": ("#e6edf3", "#4a525c", "#58a6ff", "#30363d"),
}


def bars(report: dict[str, Any]) -> pd.DataFrame:
    """A row per quantity and network: the share of the original, and the values as they are read."""
    before, after = report["original"], report["pruned"]
    quantities = {
        "latency (p50)": ("{:.2f} ms", *(side["latency"]["p50_ms"] for side in (before, after))),
        "multiply-accumulates": ("{:.1f} M", *(side["macs"] / 1e6 for side in (before, after))),
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
    """p50 of a 1x1 convolution by its output channels."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            path = Path(folder) / f"{width}.onnx"
            example = torch.zeros(1, INPUTS, SIZE, SIZE)
            buffer = io.BytesIO()
            torch.onnx.export(nn.Conv2d(INPUTS, width, 1).eval(), (example,), buffer, dynamo=False)
            path.write_bytes(buffer.getvalue())
            device = amc.open_device("host", runtime="onnxruntime", waive=["BUSY"])
            rows.append({"channels": width, "us": 1000 * amc.measure(path, device).p50_ms})
    return pd.DataFrame(rows)


def chart(before_after: pd.DataFrame, steps: pd.DataFrame, theme: str) -> alt.HConcatChart:
    ink, pale, strong, rule = THEMES[theme]
    colour = alt.Color("network:N", title=None, scale=alt.Scale(domain=["original", "pruned"], range=[pale, strong]),
                       legend=alt.Legend(orient="top"))  # fmt: skip
    base = alt.Chart(before_after).encode(
        y=alt.Y("network:N", title=None, axis=None, sort=["original", "pruned"]),
        x=alt.X("share:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1.25])),
    )
    rows = (base.mark_bar(height=13).encode(color=colour) + base.mark_text(align="left", dx=5, color=ink).encode(
        text="text:N")).properties(width=300, height=34)  # fmt: skip
    left = rows.facet(
        row=alt.Row(
            "quantity:N", title=None, sort=list(dict.fromkeys(before_after["quantity"])),
            header=alt.Header(labelAngle=0, labelAlign="right", labelPadding=8),
        ),
        spacing=6, title="the demo: half the latency, measured",
    )  # fmt: skip
    x = alt.X("channels:Q", title="output channels", axis=alt.Axis(values=list(range(0, 97, 16)), grid=True))
    y = alt.Y("us:Q", title="p50, µs", axis=alt.Axis(grid=False, tickCount=5))
    right = alt.Chart(steps, title=f"one 1x1 convolution, {INPUTS} inputs at {SIZE}x{SIZE}").encode(x, y)
    right = (
        right.mark_line(interpolate="step-before", color=pale) + right.mark_point(filled=True, color=strong)
    ).properties(width=280, height=190)
    return (
        alt.hconcat(left, right, spacing=40, background="transparent")
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
    report = json.loads((amc.Workspace(options.workspace).run().folder / "report.json").read_text())
    before_after, steps = bars(report), staircase()
    IMAGES.mkdir(exist_ok=True)
    for theme in THEMES:
        path = IMAGES / f"result-{theme}.svg"
        chart(before_after, steps, theme).save(path)
        print(f"wrote {path.relative_to(IMAGES.parents[1])}")
    print(steps.to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
