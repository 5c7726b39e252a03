from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from report_example import finished_report

from amc_mobile.errors import InvalidInput
from amc_mobile.report import content
from amc_mobile.report.content import EpisodePoint, LayerRow, Report
from amc_mobile.report.pages import (
    LAYER_COLUMNS,
    layers_csv,
    report_document,
    write_report,
)
from amc_mobile.store import from_document, to_document

DOCS = Path(__file__).parents[2] / "docs" / "report.md"
Golden = Callable[[str, str], None]


def test_the_json_report_is_as_expected(golden: Golden) -> None:
    golden("report.json", json.dumps(report_document(finished_report()), indent=1, allow_nan=False) + "\n")


def test_the_layers_file_is_as_expected(golden: Golden) -> None:
    golden("layers.csv", layers_csv(finished_report()))


@pytest.mark.parametrize("report", [finished_report(), Report("net")], ids=["finished", "empty"])
def test_a_written_report_reads_back_equal(report: Report, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path)
    assert [path.name for path in paths] == ["report.html", "report.json", "layers.csv"]
    document = json.loads((tmp_path / "report.json").read_text())
    assert (document.pop("format_version"), document.pop("verdict")["status"]) == (1, report.verdict.status)
    assert from_document(Report, document, "report") == report


def test_a_number_that_is_not_finite_becomes_null() -> None:
    report = Report("net", episodes=(EpisodePoint(0, math.nan, math.inf),))
    (point,) = report_document(report)["episodes"]
    assert (point["reward"], point["predicted"]) == (None, None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": 3}, "report.model is '3', not str"),
        ({"nonsense": 1}, "unknown keys nonsense"),
        ({"budget": {"unit": "parsecs", "limit": 1}}, "report.budget.unit is 'parsecs', not ms or macs or parameters"),
        ({"budget": {"unit": "ms"}}, "report.budget: unknown keys none; missing keys limit"),
        ({"layers": {}}, "report.layers is '{}', not a list"),
        ({"settings": {"a": []}}, "report.settings.a is"),
        ({"kept_groups": [{"name": "a", "channels": True, "reason": ""}]}, r"kept_groups\[0\].channels is 'True'"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_value_is_named_with_its_place(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        from_document(Report, {**to_document(finished_report()), **change}, "report")


def test_the_layers_file_keeps_names_with_commas_quotes_and_line_breaks_on_one_line() -> None:
    report = Report("net", layers=(LayerRow('a,"b"\nc', channels_before=1_234_567_890_123),))
    rows = list(csv.reader(layers_csv(report).splitlines()))
    assert rows[1][0] == 'a,"b"\\nc'
    assert rows[1][LAYER_COLUMNS.index("channels_before")] == "1234567890123"
    assert rows[1][LAYER_COLUMNS.index("ms_before")] == ""


def test_the_layers_file_gives_the_keep_ratio() -> None:
    report = replace(finished_report(), layers=finished_report().layers[:1])
    assert next(csv.DictReader(layers_csv(report).splitlines()))["keep_ratio"] == "0.5"


def test_the_documentation_names_every_key_and_no_other() -> None:
    documented = set(re.findall(r"^\| `(\w+)", DOCS.read_text(), flags=re.MULTILINE))
    kinds = [kind for module in (content, content) for kind in vars(module).values() if is_dataclass(kind)]
    assert documented == {f.name for kind in kinds for f in fields(kind)} | {"format_version", "verdict", "line"}
