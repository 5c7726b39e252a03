from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markupsafe import Markup
from report_example import finished_report

from amc_mobile.channels.structure import KeptGroup
from amc_mobile.report import charts
from amc_mobile.report.charts import Scale, scale_over
from amc_mobile.report.content import (
    Accuracy,
    Budget,
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
MOST_BYTES = 1_000_000


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
        finished_report(), model=EVIL, run=EVIL, created=EVIL, program_version=EVIL, budget=Budget("ms", 1.2, EVIL),
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
    golden("report.html", render_html(finished_report()))


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
    assert page.tags.isdisjoint({"script", "iframe", "link", "img", "object", "form", "foreignobject", "base", "a"})
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in ("href", "src", "xlink:href")]
    assert "url(" not in source and "@import" not in source
    for svg in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_hostile_names_are_shown_as_text() -> None:
    page = Page(render_html(evil_report()))
    shown = "".join(page.texts)
    assert "<script>alert('x')</script>" in shown and "{{ 7*7 }}" in shown and "&amp;" in shown
    assert "\x00" not in shown and "\u202e" not in shown and "\\x00\\u202e" in shown


def test_the_verdict_is_ahead_of_everything_else() -> None:
    texts = [text.strip() for text in Page(render_html(finished_report())).texts if text.strip()]
    assert texts.index("PASS") < texts.index("1.171 ms") < texts.index("Original and pruned")


def test_an_empty_report_draws_nothing_and_says_what_to_run() -> None:
    source = render_html(Report("net"))
    assert "<svg" not in source and "amc-mobile search" in source and "NO PLAN" in source


def test_a_failed_budget_is_told_in_words_and_colour() -> None:
    source = render_html(replace(finished_report(), budget=Budget("ms", 1.0, gate=Gate(False, 1.18, 1.0))))
    assert 'class="verdict fail"' in source and "over its budget" in source


def test_only_the_heaviest_layers_are_drawn_in_the_order_of_the_network() -> None:
    layers = tuple(LayerRow(f"l{i}", ms_before=float(i), ms_after=1.0) for i in range(100))
    names = re.findall(r'class="name"[^>]*>(\w+)<', charts.layer_ms_bars(layers))
    assert names == [f"l{i}" for i in range(100 - charts.MOST_BARS, 100)]


def test_bars_are_as_long_as_their_values() -> None:
    picture = charts.layer_channel_bars((LayerRow("a", channels_before=100, channels_after=25),))
    before, after = (float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', picture))
    assert after / before == pytest.approx(0.25, abs=0.01)


def test_a_plan_measured_over_the_budget_is_not_the_best_so_far() -> None:
    episodes = [EpisodePoint(0, 0.5, 1.0), EpisodePoint(1, 0.9, 1.0, measured_ms=1.5), EpisodePoint(2, 0.6, 1.0)]
    budget = Budget("ms", 1.2)

    def best_height(points: list[EpisodePoint]) -> int:
        path = re.search(r'class="best" d="([^"]+)"', charts.search_curve(points, budget))
        return len(path.group(1).split("L")) if path else 0

    assert best_height(episodes) == 4  # start, two corners of the step, end: the rise to 0.6 in the last episode
    assert best_height([episodes[0], episodes[1]]) == 2  # nothing better than the first


def test_episodes_without_numbers_do_not_break_the_curve() -> None:
    picture = charts.search_curve([EpisodePoint(3, None, None), EpisodePoint(4, float("nan"), float("inf"))], None)
    assert picture.startswith("<svg") and "nan" not in picture and "inf" not in picture


@pytest.mark.parametrize("unit", ["ms", "macs", "parameters"])
def test_the_curve_speaks_the_budgets_unit(unit: str) -> None:
    title = {"ms": ">ms<", "macs": ">million MACs<", "parameters": ">thousand parameters<"}[unit]
    picture = charts.search_curve([EpisodePoint(0, 0.5, 2e6), EpisodePoint(1, 0.6, 3e6)], Budget(unit, 2.5e6))  # type: ignore[arg-type]
    assert title in picture


def test_one_point_alone_can_be_drawn() -> None:
    assert "dots large final" in charts.prediction_scatter(Predictions((PredictionPoint(2.0, 2.0, "final"),)))
    assert charts.search_curve((EpisodePoint(0, 0.5, 1.0),), None) != Markup("")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.16, 1.2), (-3.0, 1e6), (0.0003, 0.0004), (99.0, 101.0)])
def test_ticks_are_inside_the_range_and_neither_few_nor_many(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_a_scale_over_equal_values_still_has_a_range() -> None:
    scale = scale_over([5.0, 5.0], 0, 100)
    assert 0 < scale(5.0) < 100


def test_the_original_is_shown_before_there_is_a_pruned_network() -> None:
    source = render_html(Report("net", original=ModelColumn(macs=1000)))
    assert "1.00\u00a0k" in source


def test_commands_in_advice_are_set_as_code_and_stay_escaped() -> None:
    source = render_html(replace(finished_report(), flags=("`<b>`",)))
    assert "<code>&lt;b&gt;</code>" in source and "<b>`" not in source


def test_the_accuracy_after_each_epoch_is_drawn_from_where_fine_tuning_began() -> None:
    drawing = charts.finetuning_curve(finished_report().finetuning)
    root = ElementTree.fromstring(str(drawing))
    curve = next(path for path in root.iter("path") if path.get("class") == "best")
    heights = [float(point.split()[1]) for point in (curve.get("d") or "")[1:].split("L")]
    assert heights == sorted(heights, reverse=True)  # pixels grow downwards: it rises
    assert "98.4" in [text.text for text in root.iter("text")]
    assert drawing in render_html(finished_report())
    assert charts.finetuning_curve(()) == charts.finetuning_curve((EpochAccuracy(0, 0.5),)) == ""


def test_accuracies_on_training_images_say_so_wherever_they_stand() -> None:
    seen = Accuracy(0.84, 300, "training")
    report = replace(
        finished_report(),
        original=replace(finished_report().original, accuracy=seen),
        pruned=ModelColumn(accuracy=replace(seen, top1=0.8)),
        stages=(Stage("original", seen),),
    )
    page = render_html(report)
    assert page.count("on training images") == 2  # the verdict and the comparison
    assert "300 training<" in page
    assert "on training images" in render_text(report)
