from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from report_example import finished_report

from amc_mobile.channels.structure import KeptGroup
from amc_mobile.report import charts
from amc_mobile.report.content import (
    Accuracy,
    AskedBudget,
    DataFacts,
    EpisodePoint,
    EpochAccuracy,
    FileRow,
    Gate,
    LayerRow,
    ModelColumn,
    PredictionPoint,
    Predictions,
    Report,
    Stage,
)
from amc_mobile.report.pages import render_html, render_text

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


def rows(chart: Any, *columns: str) -> list[dict[str, Any]]:
    """Of the first data set that has these columns."""
    return next(rows for rows in chart["datasets"].values() if rows and set(columns) <= set(rows[0]))


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
    assert page.tags.isdisjoint({"iframe", "link", "img", "object", "form", "foreignobject", "base", "a"})
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src", "xlink:href")]
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


def test_only_the_heaviest_layers_are_drawn_in_the_order_of_the_network() -> None:
    layers = tuple(LayerRow(f"l{i}", ms_before=float(i), ms_after=1.0) for i in range(100))
    assert [row["layer"] for row in rows(charts.layer_ms_bars(layers), "layer")] == [
        f"l{i}" for i in range(100 - charts.MOST_BARS, 100)
    ]


def test_bars_have_the_values_before_and_after() -> None:
    picture = charts.layer_channel_bars((LayerRow("a", channels_before=100, channels_after=25),))
    (row,) = rows(picture, "layer")
    assert (row["before"], row["after"], row["values"]) == (100, 25, "100 → 25")


def test_a_plan_measured_over_the_budget_is_not_the_best_so_far() -> None:
    episodes = [EpisodePoint(0, 0.5, 1.0), EpisodePoint(1, 0.9, 1.0, measured_ms=1.5), EpisodePoint(2, 0.6, 1.0)]

    def best(points: list[EpisodePoint]) -> list[tuple[int, float]]:
        every = charts.search_curve(points, AskedBudget("ms", 1.2))["datasets"].values()
        return [(row["episode"], row["reward"]) for rows in every for row in rows if row.get("what") == "best so far"]

    assert best(episodes) == [(0, 0.5), (2, 0.6), (2, 0.6)]
    assert best(episodes[:2]) == [(0, 0.5), (0, 0.5)]  # nothing better than the first


def test_episodes_without_numbers_are_not_drawn() -> None:
    empty = [EpisodePoint(3, None, None), EpisodePoint(4, float("nan"), float("inf"))]
    assert charts.search_curve(empty, None) is None
    picture = json.dumps(charts.search_curve([*empty, EpisodePoint(5, 0.5, 1.0)], None))
    assert "NaN" not in picture and "Infinity" not in picture


@pytest.mark.parametrize("unit", ["ms", "macs", "parameters"])
def test_the_curve_speaks_the_budgets_unit(unit: str) -> None:
    title = {"ms": "ms", "macs": "million MACs", "parameters": "thousand parameters"}[unit]
    picture = charts.search_curve([EpisodePoint(0, 0.5, 2e6), EpisodePoint(1, 0.6, 3e6)], AskedBudget(unit, 2.5e6))  # type: ignore[arg-type]
    assert f'"title": "{title}"' in json.dumps(picture)


def test_one_point_alone_can_be_drawn() -> None:
    for picture in (
        charts.prediction_scatter(Predictions((PredictionPoint(2.0, 2.0, "final"),))),
        charts.search_curve((EpisodePoint(0, 0.5, 1.0),), None),
    ):
        assert picture is not None and "NaN" not in charts.svg(picture)


def test_the_original_is_shown_before_there_is_a_pruned_network() -> None:
    source = render_html(Report("net", original=ModelColumn(macs=1000)))
    assert "1.00\u00a0k" in source


def test_commands_in_advice_are_set_as_code_and_stay_escaped() -> None:
    source = render_html(replace(finished_report(), flags=("`<b>`",)))
    assert "<code>&lt;b&gt;</code>" in source and "<b>`" not in source


def test_the_accuracy_after_each_epoch_is_drawn_from_where_fine_tuning_began() -> None:
    picture = charts.finetuning_curve(finished_report().finetuning)
    assert [row["accuracy"] for row in rows(picture, "epoch")] == [93.75, 96.09, 96.88, 98.44]
    assert rows(picture, "value") == [{"value": 93.75, "name": "before"}]
    assert charts.finetuning_curve(()) is charts.finetuning_curve((EpochAccuracy(0, 0.5),)) is None


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
