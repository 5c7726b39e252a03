"""The report as one HTML page: no script, no link to anything outside, light and dark, readable on a phone."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from amc_mobile.report import charts, sections
from amc_mobile.report.advice import advice
from amc_mobile.report.content import Report
from amc_mobile.report.quantities import NOTHING, printable
from amc_mobile.report.tables import is_numeric_column
from amc_mobile.report.verdict import clauses, device_line, validity

INTERVAL = re.compile(r"([^()]+) \((95.% CI [-\d. to]+)\)")
NUMBER_AND_UNIT = re.compile(r"(\d) (ms|%|points|B|[kMG]B?)(?!\w)")
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


def _numeric_columns(section: sections.Section) -> list[bool]:
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
    return environment


def render_html(report: Report) -> str:
    """The whole page. Names are escaped; long lists are cut where layers.csv and report.json have the rest."""
    return environment().get_template("report.html.j2").render(
        report=report,
        status=report.verdict.status,
        status_class=STATUS_CLASS[report.verdict.status],
        said=SAID[report.verdict.status],
        clauses=clauses(report),
        device=device_line(report),
        validity=validity(report),
        advice=advice(report),
        comparison=sections.comparison(report),
        gate=sections.gate(report),
        stages=sections.stages(report),
        layers=sections.layers(report),
        search=sections.search(report),
        predictions=sections.predictions(report),
        others=(
            sections.conditions(report),
            sections.data(report),
            sections.kept_groups(report),
            sections.files(report),
            sections.settings(report),
        ),
        ms_bars=charts.layer_ms_bars(report.layers),
        channel_bars=charts.layer_channel_bars(report.layers),
        finetuning_curve=charts.finetuning_curve(report.finetuning, report.metric),
        search_curve=charts.search_curve(report.episodes, report.budget),
        scatter=charts.prediction_scatter(report.predictions),
    )  # fmt: skip
