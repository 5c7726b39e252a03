from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_example import finished_report

from amc_mobile.channels.structure import KeptGroup
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.gate import Attempt, Gate
from amc_mobile.report import charts, content
from amc_mobile.report.content import (
    Accuracy,
    AskedBudget,
    DataFacts,
    EpisodePoint,
    FileRow,
    LayerRow,
    ModelColumn,
    PredictionPoint,
    Predictions,
    Report,
    Stage,
)
from amc_mobile.report.pages import (
    LAYER_COLUMNS,
    WRITTEN,
    layers_csv,
    node_data,
    render_html,
    render_markdown,
    render_text,
    report_document,
    samples_csv,
    write_report,
)
from amc_mobile.store import from_document, to_document

EVIL = "</title></style><script>alert('x')</script>\"' onload=\"x()\" {{ 7*7 }} \x00\u202e&amp;"
VOID = {"meta", "br", "hr", "img"}
MOST_BYTES = 1_900_000  # Vega takes 0.9 MB of them
SCRIPT = re.compile(r"<script.*?</script>|<noscript>.*?</noscript>", re.DOTALL)


class Page(HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evil_report() -> Report:
    return replace(
        finished_report(), model=EVIL, run=EVIL, created=EVIL, program_version=EVIL,
        budget=AskedBudget("ms", 1.2, EVIL),
        stages=(Stage(EVIL, note=EVIL),), layers=(LayerRow(EVIL, EVIL, EVIL, 8, 4, 1.0, 0.5),),
        episodes=(EpisodePoint(0, 0.5, 1.0, policy=EVIL),), conditions={EVIL: EVIL, "device": EVIL}, flags=(EVIL,),
        data=DataFacts(EVIL, {EVIL: 1}), kept_groups=(KeptGroup(EVIL, 1, EVIL),), files=(FileRow(EVIL, EVIL, 1, EVIL),),
        settings={EVIL: EVIL},
    )  # fmt: skip


def huge_report() -> Report:
    name = "block." * 30
    return replace(
        finished_report(),
        layers=tuple(LayerRow(f"{name}{i}", "CONV_2D", "CONV_2D", 512, 8, 1.0 + i, 0.5) for i in range(3000)),
        episodes=tuple(EpisodePoint(i, (i * 7919 % 100) / 100, 1.0 + i % 7, 1.1) for i in range(20_000)),
        predictions=Predictions(tuple(PredictionPoint(1 + i / 9, 1 + i / 9) for i in range(20_000)), 0.02),
    )


DOCS = Path(__file__).parents[2] / "docs" / "report.md"
Golden = Callable[[str, str], None]


def test_the_page_of_a_finished_run_is_as_expected(golden: Callable[[str, str], None]) -> None:
    page = SCRIPT.sub("", render_html(finished_report()))
    golden("report.html", re.sub("sha256-[^&]*", "sha256-...", page))  # Vega's version is not the page's matter


@pytest.mark.parametrize(
    "report",
    [finished_report(), Report("net"), evil_report(), huge_report()],
    ids=["finished", "empty", "evil", "huge"],
)
def test_the_page_is_well_formed_small_and_needs_nothing_from_outside(report: Report) -> None:
    source = render_html(report)
    page = Page(source)
    assert page.open == []
    assert len(source.encode()) < MOST_BYTES
    assert page.tags.isdisjoint({"iframe", "link", "img", "object", "form", "foreignobject", "base"})
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("src", "xlink:href")]
    links = {value for name, value in page.attributes if name == "href"}
    places = {f"#{value}" for name, value in page.attributes if name == "id"}
    assert {link for link in links if link.startswith("#")} <= places
    assert all(re.fullmatch(r"#\w+|[a-z_]+\.(json|csv|md)|\./[\w.%/&;-]*", link) for link in links)
    own = SCRIPT.sub("", source)
    assert "url(" not in own and "@import" not in own
    for svg in re.findall(r"<noscript>(.*?)</noscript>", source, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_only_the_scripts_of_the_page_itself_may_run() -> None:
    source = render_html(evil_report())
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", source, flags=re.DOTALL)
    data, (vega,) = [text for head, text in scripts if head], [text for head, text in scripts if not head]
    assert [json.loads(text)["$schema"] for text in data] and not any("<" in text for text in data)
    digest = base64.b64encode(hashlib.sha256(vega.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in html.unescape(source)


def test_hostile_names_are_shown_as_text() -> None:
    page = Page(render_html(evil_report()))
    shown = "".join(page.texts)
    names = str([charts.layer_ms_bars(evil_report().layers), charts.search_curve(evil_report().episodes, None)])
    assert names.isprintable() and "alert(" in names
    assert "<script>alert('x')</script>" in shown and "{{ 7*7 }}" in shown and "&amp;" in shown
    assert "\x00" not in shown and "\u202e" not in shown and "\\x00\\u202e" in shown


def test_the_verdict_is_ahead_of_everything_else() -> None:
    texts = [text.strip() for text in Page(render_html(finished_report())).texts if text.strip()]
    assert texts.index("PASS") < texts.index("1.171 ms") < texts.index("Original and pruned")


def test_an_empty_report_draws_nothing_and_says_what_to_run() -> None:
    source = render_html(Report("net"))
    assert "<svg" not in SCRIPT.sub("", source) and "application/json" not in SCRIPT.sub("", source)
    assert "amc-mobile search" in source and "NO PLAN" in source


def test_a_failed_budget_is_told_in_words_and_colour() -> None:
    source = render_html(replace(finished_report(), budget=AskedBudget("ms", 1.0, gate=Gate(False, 1.18, 1.0))))
    assert 'class="verdict fail"' in source and "over its budget" in source


def test_the_original_is_shown_before_there_is_a_pruned_network() -> None:
    source = render_html(Report("net", original=ModelColumn(macs=1000)))
    assert "1.00\u00a0k" in source


def test_commands_in_advice_are_set_as_code_and_stay_escaped() -> None:
    source = render_html(replace(finished_report(), flags=("`<b>`",)))
    assert "<code>&lt;b&gt;</code>" in source and "<b>`" not in source


def test_accuracies_on_training_images_say_so_wherever_they_stand() -> None:
    seen = Accuracy(0.84, 300, "training")
    report = replace(
        finished_report(),
        original=replace(finished_report().original, accuracy=seen),
        pruned=ModelColumn(accuracy=replace(seen, top1=0.8)),
        stages=(Stage("original", seen),),
    )
    page = render_html(report)
    assert SCRIPT.sub("", page).count("on training images") == 2  # the verdict and the comparison
    assert "300 training<" in page
    assert "on training images" in render_text(report)


def test_the_json_report_is_as_expected(golden: Golden) -> None:
    golden("report.json", json.dumps(report_document(finished_report()), indent=1, allow_nan=False) + "\n")


def test_the_layers_file_is_as_expected(golden: Golden) -> None:
    golden("layers.csv", layers_csv(finished_report()))


@pytest.mark.parametrize("report", [finished_report(), Report("net")], ids=["finished", "empty"])
def test_a_written_report_reads_back_equal(report: Report, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path)
    assert [path.name for path in paths] == list(WRITTEN)
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


def test_the_markdown_of_a_finished_run_is_as_expected(golden: Golden) -> None:
    golden("report.md", render_markdown(finished_report()))


def test_names_are_text_in_markdown() -> None:
    evil = "](http://x) <img src=x> @team | **x** `y` \n# PASS"
    layers = (LayerRow(evil, evil, evil, 8, 4, 1.0, 0.5),)
    text = render_markdown(replace(finished_report(), model=evil, layers=layers, flags=(evil,), commands=(evil,)))
    shown = [line for line in text.splitlines() if not line.startswith("    ")]  # the commands are code
    assert len(re.findall(r"\\\]\(http", text)) == text.count("](http") - 1
    assert not any(re.search(r"(?<!\\)<img|@team|^# PASS", line) for line in shown)
    (layer,) = [line for line in shown if line.startswith("| \\](http")]
    assert len(re.findall(r"(?<!\\)\|", layer)) == 8  # seven cells


def test_the_node_data_has_a_value_for_each_node_and_two_colours() -> None:
    layers = (LayerRow("a", ms_after=0.123456, nodes=("0", "1")), LayerRow("b", ms_after=None, nodes=("2",)))
    data = node_data(replace(finished_report(), layers=layers))
    assert data["results"] == {"0": {"value": 0.1235}}
    assert [stop["stop"] for stop in data["gradient"]] == [0, 1]


def test_every_run_is_in_the_samples_file() -> None:
    lines = list(csv.DictReader(samples_csv(finished_report()).splitlines()))
    assert len(lines) == 180
    assert lines[9] == {
        "file": "pruned", "round": "1", "run": "1", "ms": lines[9]["ms"], "is_busy": "False", "mean_mhz": "2361.2",
    }  # fmt: skip
    assert samples_csv(Report("net")).splitlines() == ["file,round,run,ms,is_busy,mean_mhz"]


def test_the_documentation_names_every_key_and_no_other() -> None:
    documented = set(re.findall(r"^\| `(\w+)", DOCS.read_text(), flags=re.MULTILINE))
    kinds = [kind for kind in (*vars(content).values(), Attempt) if is_dataclass(kind)]
    assert documented == {f.name for kind in kinds for f in fields(kind)} | {"format_version", "verdict", "line"}
