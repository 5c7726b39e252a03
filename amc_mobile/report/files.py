"""The report's files: report.html for people, report.json and layers.csv for programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.report.content import FORMAT_VERSION, Report
from amc_mobile.report.details import LayerRow
from amc_mobile.report.document import from_document, to_document
from amc_mobile.report.html import render_html
from amc_mobile.report.quantities import printable
from amc_mobile.report.verdict import verdict_line
from amc_mobile.store import read_json, write_json, write_text

LAYER_COLUMNS = (
    "name", "kernel_before", "kernel_after", "channels_before", "channels_after", "keep_ratio",
    "ms_before", "ms_after", "macs_before", "macs_after",
)  # fmt: skip


def report_document(report: Report) -> dict[str, Any]:
    """The content of report.json without its format_version; the keys are explained in docs/report.md."""
    verdict = {**to_document(report.verdict), "line": verdict_line(report)}
    return {"verdict": verdict, **to_document(report)}


def report_from_document(document: dict[str, Any]) -> Report:
    """The verdict is derived anew. Raises InvalidInput for missing, unknown and wrong values."""
    kept = {key: value for key, value in document.items() if key not in ("verdict", "format_version")}
    return from_document(Report, kept)


def read_report(path: Path) -> Report:
    """Raises CorruptFile."""
    try:
        return report_from_document(read_json(path, format_version=FORMAT_VERSION))
    except InvalidInput as error:
        raise CorruptFile(path, error.message, next_step=error.next_step) from error


def layers_csv(report: Report) -> str:
    """One line per layer under LAYER_COLUMNS; an empty cell where a value is not known."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(LAYER_COLUMNS)
    writer.writerows([_cell(layer, column) for column in LAYER_COLUMNS] for layer in report.layers)
    return out.getvalue()


def _cell(layer: LayerRow, column: str) -> str:
    value = getattr(layer, column)
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else printable(str(value))


def write_report(report: Report, folder: Path) -> tuple[Path, Path, Path]:
    """Writes report.html, report.json and layers.csv, each whole or not at all; returns their paths."""
    paths = (folder / "report.html", folder / "report.json", folder / "layers.csv")
    write_text(paths[0], render_html(report))
    write_json(paths[1], report_document(report), format_version=FORMAT_VERSION)
    write_text(paths[2], layers_csv(report))
    return paths
