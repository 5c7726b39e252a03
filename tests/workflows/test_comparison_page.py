"""The comparison's page: what it shows, where each number leads, and that nothing lies on top of another."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from compared_runs import GROUPS, compared_run

from amc_mobile.report.charts import FrontPoint, apart, front, non_dominated
from amc_mobile.report.pages import render_series_page, svg_file, write_series_page
from amc_mobile.workflows.compare import Comparison, comparison_page, summaries

POLICIES = ("uniform", "random", "ddpg", "critic")
SVG = "{http://www.w3.org/2000/svg}"


def comparison(*budgets: float, measured: bool = True, finetuned: bool = True) -> Comparison:
    runs = [
        compared_run(policy, seed, budget, measured=measured, finetuned=finetuned)
        for budget in budgets
        for policy in POLICIES
        for seed in (0, 1)
    ]
    failed = {"run": "compare-failed", "budget": "latency-ratio 0.3", "policy": "random", "seed": 2, "unit": "ms",
              "error": "no plan <fits>"}  # fmt: skip
    return Comparison((*runs, failed), tuple(summaries(runs)), "net, 100 episodes")


def picture(found: Comparison, key: str) -> ElementTree.Element:
    drawing = next(p.drawing for p in comparison_page(found).pictures if p.key == key)
    return ElementTree.fromstring(svg_file(drawing))


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def markers(svg: ElementTree.Element, index: int) -> list[tuple[float, float]]:
    """The centres of one series' marks, those of labels and legends left out."""
    found = []
    for path in svg.iter(f"{SVG}path"):
        if path.get("class") == f"mark s{index}":
            numbers = [float(n) for n in re.findall(r"[-\d.]+", path.get("d") or "")]
            found.append((sum(numbers[::2]) / (len(numbers) / 2), sum(numbers[1::2]) / (len(numbers) / 2)))
    return found


def test_every_run_is_linked_and_a_failed_one_says_why() -> None:
    found = comparison(0.5)
    page = render_series_page(comparison_page(found))
    for run in found.runs:
        assert f'<a href="runs/{run["run"]}/search.json">{run["run"]}</a>' in page
    assert "no plan &lt;fits&gt;" in page
    assert "on 500 test images" in page
    assert "<script" not in page
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page).replace("http-equiv", "")


def test_files_are_the_page_and_one_svg_per_picture(tmp_path: Path) -> None:
    paths = write_series_page(comparison_page(comparison(0.3, 0.7)), tmp_path / "compare.html")
    assert {path.name for path in paths} == {
        "compare.html", "compare-front.svg",
        *(f"compare-{kind}-latency-ratio-{b}.svg" for kind in ("accuracy", "keep-ratios") for b in ("0.3", "0.7")),
    }  # fmt: skip
    for path in paths[1:]:
        assert ElementTree.parse(path).getroot().get("role") == "img"
        assert "prefers-color-scheme" in path.read_text()


def test_keep_ratios_are_drawn_at_their_height_over_their_group() -> None:
    svg = picture(comparison(0.5), "compare-keep-ratios-latency-ratio-0.5")
    points = markers(svg, 0)[: len(GROUPS)]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    # The axis runs from 0 at y = 290 to 1 at y = 30; uniform keeps 0.55 of the stem on average, 0.02 more each group.
    assert [(290 - y) / 260 for _, y in points] == pytest.approx([0.55 + 0.02 * i for i in range(8)], abs=0.01)
    assert texts(svg).count("+") == 1
    assert texts(svg).count("dw") == 3
    assert {"stem", "block5.conv1", "keep ratio", *POLICIES} <= set(texts(svg))


def test_bars_tell_mean_and_spread_of_each_stage_and_the_original() -> None:
    said = texts(picture(comparison(0.5), "compare-accuracy-latency-ratio-0.5"))
    for value in ("70.3 [70.0-70.5]", "80.2 [80.0-80.5]", "83.2 [83.0-83.5]", "original 92.0"):
        assert value in said
    assert any("axis starts at 60" in text and "500 test images, %" in text for text in said)


def test_a_stage_that_no_run_had_is_not_in_the_bars() -> None:
    said = texts(picture(comparison(0.5, finetuned=False), "compare-accuracy-latency-ratio-0.5"))
    assert "refitted" in said
    assert "fine-tuned" not in said


@pytest.mark.parametrize(
    ("measured", "unit"), [(True, "original's p50 / measured speed-up, ms"), (False, "MACs of one image, millions")]
)
def test_the_front_is_over_measured_latency_where_every_run_has_one(measured: bool, unit: str) -> None:
    svg = picture(comparison(0.3, 0.5, 0.7, measured=measured), "compare-front")
    assert unit in texts(svg)
    points = markers(svg, 3)[1:]  # the legend's mark comes first
    assert len(points) == 3
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))  # dearer is better


def test_more_policies_than_fit_one_panel_get_a_panel_each() -> None:
    runs = [{**compared_run("critic", 0), "policy": f"p{i}"} for i in range(9)]
    found = Comparison(tuple(runs), tuple(summaries(runs)), "net")
    svg = picture(found, "compare-keep-ratios-latency-ratio-0.5")
    assert sum(path.get("class") == "other" for path in svg.iter(f"{SVG}path")) == 9 * 8
    assert {f"p{i}" for i in range(9)} <= set(texts(svg))
    classes = {path.get("class") for path in svg.iter(f"{SVG}path")}
    assert "curve s0 again" in classes  # the ninth series: the first colour, dashed


@pytest.mark.parametrize("wanted", [[50.0] * 6, [31, 32, 288, 289, 290], [10, 10, 400]])
def test_labels_are_kept_apart_and_inside(wanted: list[float]) -> None:
    places = apart(sorted(wanted), 30, 290)
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(places))
    assert 30 <= min(places) <= max(places) <= 290


def test_the_front_holds_what_nothing_else_beats() -> None:
    points = [(1.0, 0.5), (1.0, 0.6), (2.0, 0.55), (3.0, 0.7), (4.0, 0.7)]
    assert non_dominated(points) == [(1.0, 0.6), (3.0, 0.7)]
    assert front([], None, unit="ms", accuracy="top-1 on test images") == ""
    assert "ddpg" in front([FrontPoint("ddpg", 1.0, 0.5)], None, unit="ms", accuracy="top-1 on test images")
