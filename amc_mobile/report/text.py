"""The report as plain text for a terminal."""

from __future__ import annotations

from amc_mobile.report import sections
from amc_mobile.report.advice import advice
from amc_mobile.report.content import Report
from amc_mobile.report.quantities import printable
from amc_mobile.report.tables import render_rows
from amc_mobile.report.verdict import verdict_line

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
        sections.comparison(report),
        *([gate] if (gate := sections.gate(report)).rows else []),
        sections.stages(report),
        sections.layers(report, most=MOST_LAYERS),
        sections.search(report),
        sections.predictions(report),
        sections.conditions(report),
        sections.data(report),
        sections.kept_groups(report),
        sections.files(report),
    ):
        parts.append(_section(section))
    return "\n\n".join(parts)


def _section(section: sections.Section) -> str:
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
