"""Reports and comparisons as files: HTML pages, JSON, CSV and text for a terminal."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from amc_mobile.report import charts, tables
from amc_mobile.report.content import FORMAT_VERSION, Report
from amc_mobile.report.tables import (
    NOTHING,
    Section,
    advice,
    clauses,
    device_line,
    is_numeric_column,
    printable,
    render_rows,
    validity,
    verdict_line,
)
from amc_mobile.store import to_document, write_json, write_text

MOST_LAYERS = 60  # rows; more belong into a file


def render_text(report: Report) -> str:
    """The verdict line, what to do next, then one table per section. No markup, no colours, no trailing newline."""
    heading = " | ".join(
        part for part in (report.model, f"run {report.run}" if report.run else "", report.created) if part
    )
    parts = [verdict_line(report), printable(heading)]
    remarks = advice(report)
    if remarks:
        parts.append("\n".join(f"Next: {remark}" for remark in remarks))
    for section in (
        tables.comparison(report),
        *([gate] if (gate := tables.gate(report)).rows else []),
        tables.stages(report),
        tables.layers(report, most=MOST_LAYERS),
        tables.search(report),
        tables.predictions(report),
        tables.conditions(report),
        tables.data(report),
        tables.kept_groups(report),
        tables.files(report),
    ):
        parts.append(_section(section))
    return "\n\n".join(parts)


def _section(section: tables.Section) -> str:
    if not section.rows:
        return f"{section.title}\n  {section.empty}"
    if any(section.headers):
        body = render_rows(section.headers, section.rows)
    else:
        label_width = max(len(printable(row[0])) for row in section.rows)
        body = "\n".join(f"{printable(label):{label_width}}  {printable(value)}" for label, value in section.rows)
    lines = [section.title, *(f"  {line}" for line in body.splitlines())]
    if section.note:
        lines.append(f"  {printable(section.note)}")
    return "\n".join(lines)


INTERVAL = re.compile(r"([^()]+) \((95.% CI [-+\d. to]+)\)")
NUMBER_AND_UNIT = re.compile(r"(\d) (ms|%|points|B|[kMG]B?)(?!\w)")
MOST_STILL_BYTES = 60_000  # of a picture for readers without JavaScript
COMMAND = re.compile(r"`([^`]+)`")
STATUS_CLASS = {
    "PASS": "pass", "FAIL": "fail", "NOT MEASURED": "open", "PREDICTED, NOT MEASURED": "open", "NO PLAN": "open",
}  # fmt: skip
SAID = {
    "PASS": "The pruned network is within its budget.",
    "FAIL": "The pruned network is over its budget.",
    "NOT MEASURED": "A plan is chosen; only a measurement can pass the budget.",
    "PREDICTED, NOT MEASURED": "By the latency table, without the device; only a measurement can pass the budget.",
    "NO PLAN": "No plan has been searched yet.",
}


def _shown(value: Any) -> Any:
    """What the template prints: names lose their control characters before they are escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _with_signs(cell: str) -> Markup:
    """Typographic signs for the plain ones of the terminal, units kept with their numbers, intervals on their own."""
    value = NUMBER_AND_UNIT.sub("\\1\u00a0\\2", printable(cell).replace(" -> ", " → ").replace("+-", "±"))
    found = INTERVAL.fullmatch(value)
    return Markup("{} <small>{}</small>").format(*found.groups()) if found else escape(value)


def _with_commands(remark: str) -> Markup:
    """Advice with its commands set as code."""
    return Markup(COMMAND.sub(r"<code>\1</code>", str(_with_signs(remark))))


def _figure(chart: charts.Spec) -> Markup:
    """The place of a chart, with its data behind it; without JavaScript a picture, where that is small."""
    data = json.dumps(chart, separators=(",", ":")).replace("<", "\\u003c")  # no name can end the script element
    place = Markup('<div class="chart" role="img" aria-label="{}"></div>').format(chart["description"])
    picture = charts.svg(chart)
    still = f"<noscript>{picture}</noscript>" if len(picture) < MOST_STILL_BYTES else ""
    return place + Markup(f'<script type="application/json">{data}</script>{still}')


def _sha256(script: str) -> str:
    """Of a script that the page may run, as its content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _numeric_columns(section: tables.Section) -> list[bool]:
    return [is_numeric_column([row[i] for row in section.rows]) for i in range(len(section.headers))]


def environment() -> Environment:
    """Templates with escaping, and the filters that the pages share."""
    environment = Environment(
        loader=PackageLoader("amc_mobile.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signs"] = _with_signs
    environment.filters["commands"] = _with_commands
    environment.globals["numeric_columns"] = _numeric_columns
    environment.globals["nothing"] = NOTHING
    environment.globals["figure"] = _figure
    environment.globals["chart_style"] = charts.dark_style
    environment.globals["vega"] = charts.script
    environment.globals["sha256"] = _sha256
    return environment


def render_html(report: Report) -> str:
    """The whole page. Names are escaped; long lists are cut where layers.csv and report.json have the rest."""
    limit_ms = report.budget.limit if report.budget and report.budget.unit == "ms" else None
    return environment().get_template("report.html.j2").render(
        report=report,
        status=report.verdict.status,
        status_class=STATUS_CLASS[report.verdict.status],
        said=SAID[report.verdict.status],
        clauses=clauses(report),
        device=device_line(report),
        ran_on=tables.ran_on(report),
        validity=validity(report),
        explanations=(tables.VALID_MEANING, tables.BAND_MEANING, *tables.MEANINGS),
        advice=advice(report),
        comparison=tables.comparison(report),
        gate=tables.gate(report),
        stages=tables.stages(report),
        layers=tables.layers(report),
        search=tables.search(report),
        predictions=tables.predictions(report),
        reproduce=tables.reproduce(report),
        others=(
            tables.conditions(report),
            tables.data(report),
            tables.kept_groups(report),
            tables.files(report),
            tables.settings(report),
        ),
        written=WRITTEN[1:],
        charts={
            "ecdf": charts.sample_ecdf(report.passes, limit_ms),
            "order": charts.run_order(report.passes, limit_ms),
            "stages": charts.stage_accuracies(report.stages, report.metric),
            "ms": charts.layer_ms_bars(report.layers),
            "channels": charts.layer_channel_bars(report.layers),
            "finetuning": charts.finetuning_curve(report.finetuning, report.metric),
            "search": charts.search_curve(report.episodes, report.budget, report.predictions.band),
            "predictions": charts.prediction_scatter(report.predictions),
        },
    )  # fmt: skip


LAYER_COLUMNS = (
    "name", "kernel_before", "kernel_after", "channels_before", "channels_after", "keep_ratio",
    "ms_before", "ms_after", "macs_before", "macs_after", "unused_channels",
)  # fmt: skip


def report_document(report: Report) -> dict[str, Any]:
    """The content of report.json without its format_version; the keys are explained in docs/report.md."""
    verdict = {**to_document(report.verdict), "line": verdict_line(report)}
    return {"verdict": verdict, **to_document(report)}


def layers_csv(report: Report) -> str:
    """One line per layer under LAYER_COLUMNS; an empty cell where a value is not known."""
    import pandas as pd

    rows = [[_shown(getattr(layer, column)) for column in LAYER_COLUMNS] for layer in report.layers]
    frame = pd.DataFrame(rows, columns=LAYER_COLUMNS, dtype=object).convert_dtypes()
    return str(frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def samples_csv(report: Report) -> str:
    """One line per timed run, in the order made; `ms` may be a mean of several runs of a short network."""
    import pandas as pd

    rows = [
        (one.file, number // 2 + 1, run, ms, one.is_busy, one.mean_mhz)
        for number, one in enumerate(report.passes)
        for run, ms in enumerate(one.samples_ms, start=1)
    ]
    frame = pd.DataFrame(rows, columns=["file", "round", "run", "ms", "is_busy", "mean_mhz"])
    return str(frame.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&$])")
MENTION = re.compile(r"@(?=[A-Za-z])")


def _markdown(text: str) -> str:
    """As text: no name can become a link, a picture or HTML, nor call a user by @."""
    return MENTION.sub("@\u2060", MARKUP.sub(r"\\\1", printable(text)))


def _markdown_table(section: Section) -> str:
    rows = [["---"] * len(section.headers), *([_markdown(cell) for cell in row] for row in section.rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [section.headers, *rows])
    return table + (f"\n\n{_markdown(section.note)}" if section.note else "")


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def render_markdown(report: Report) -> str:
    """The verdict for a pull request: what changed at what cost, measured on what, and how to make it again."""
    parts = [f"### {report.verdict.status}: {_markdown(report.model)}"]
    for clause in clauses(report):
        note = f" ({_markdown(clause.note)})" if clause.note else ""
        parts.append(f"- {_markdown(clause.label)} **{_markdown(clause.value)}**{note}")
    parts += [f"- next: {_markdown(remark.replace('`', ''))}" for remark in advice(report)]
    if about := " · ".join(filter(None, (device_line(report), validity(report)))):
        parts.append(f"\n{_markdown(about)}")
    if (comparison := tables.comparison(report)).rows:
        parts.append(f"\n{_markdown_table(comparison)}")
    for section in (tables.layers(report, most=MOST_LAYERS), tables.files(report)):
        if section.rows:
            parts.append(f"\n{_folded(section.title, _markdown_table(section))}")
    if report.commands:
        lines = "\n".join(f"    {printable(command)}" for command in report.commands)  # indented, it is code
        parts.append(f"\n{_folded('Make the run again', lines)}")
    return "\n".join(parts) + "\n"


COLD, WARM = "#d8e6f3", "#c2410c"


def node_data(report: Report) -> dict[str, Any]:
    """Custom node data of Model Explorer for the exported graph: ms of each kernel, at the first of its nodes.

    The form for one graph, whatever its name: `results` by a node's number or the name of its output, and the colours
    of the lowest and the highest value.
    """
    results = {
        layer.nodes[0]: {"value": float(f"{layer.ms_after:.4g}")}
        for layer in report.layers
        if layer.nodes and layer.ms_after is not None
    }
    return {"results": results, "gradient": [{"stop": 0, "bgColor": COLD}, {"stop": 1, "bgColor": WARM}]}


WRITTEN = ("report.html", "report.json", "report.md", "layers.csv", "samples.csv", "node_data.json")


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Writes the files of WRITTEN, each whole or not at all; returns their paths."""
    write_text(folder / "report.html", render_html(report))
    write_json(folder / "report.json", report_document(report), format_version=FORMAT_VERSION)
    write_text(folder / "layers.csv", layers_csv(report))
    write_text(folder / "report.md", render_markdown(report))
    write_text(folder / "samples.csv", samples_csv(report))
    write_text(folder / "node_data.json", json.dumps(node_data(report), indent=1) + "\n")
    return tuple(folder / name for name in WRITTEN)


@dataclass(frozen=True)
class Picture:
    """`key` is the SVG file's name without its ending; without a chart, nothing is shown."""

    key: str
    title: str
    caption: str
    chart: charts.Spec | None


@dataclass(frozen=True)
class SeriesPage:
    """`notes` come under the title, the tables after the pictures."""

    title: str
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Section, ...]


def render_series_page(page: SeriesPage) -> str:
    return environment().get_template("series_page.html.j2").render(page=page)


def write_series_page(page: SeriesPage, path: Path) -> list[Path]:
    """Writes the page and an SVG file per picture beside it; returns their paths."""
    write_text(path, render_series_page(page))
    paths = [path]
    for picture in page.pictures:
        if picture.chart is not None:
            paths.append(path.with_name(f"{picture.key}.svg"))
            write_text(paths[-1], charts.svg(picture.chart))
    return paths
