from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from report_example import finished_report

from amc_mobile.channels.structure import KeptGroup
from amc_mobile.report.content import AskedBudget, DataFacts, Gate, LayerRow, ModelColumn, Report
from amc_mobile.report.pages import render_text
from amc_mobile.report.tables import against_limit, count, number, printable, render_rows, shortened, size

Golden = Callable[[str, str], None]


def test_the_text_of_a_finished_run_is_as_expected(golden: Golden) -> None:
    golden("report.txt", render_text(finished_report()) + "\n")


def test_the_text_of_a_run_that_only_searched_is_as_expected(golden: Golden) -> None:
    report = replace(
        finished_report(),
        budget=AskedBudget("macs", 8_000_000, "--macs-ratio 0.3", Gate(True, 7_900_000, 8_000_000)),
        original=ModelColumn(macs=27_400_000, parameters=1_326_000),
        pruned=ModelColumn(macs=7_900_000, parameters=468_210),
        speedup=None,
        stages=finished_report().stages[:2],
        layers=tuple(replace(layer, ms_before=None, ms_after=None) for layer in finished_report().layers[:3]),
        episodes=tuple(replace(p, predicted=7.9e6, measured_ms=None) for p in finished_report().episodes),
        predictions=Report("").predictions,
        conditions={},
        files=(),
    )
    golden("report_macs_budget.txt", render_text(report) + "\n")


def test_the_verdict_comes_first_and_every_section_says_why_it_is_empty() -> None:
    text = render_text(Report("net"))
    assert text.startswith("NO PLAN")
    for title in ("Layers", "Search", "Predicted against measured", "Device and conditions", "Files"):
        assert f"\n{title}\n  " in text


@pytest.mark.parametrize(
    ("conditions", "how"),
    [
        ({"os": "Android 15 google/shiba", "cores": "4-5"}, "a process of adb's shell ran the network back to back, "
         "pinned to cores 4-5, with no other work"),
        ({"os": "Android 15 google/shiba", "cores": "any"}, "on any cores, with no other work"),
        ({"os": "Linux 6.1.0", "cores": "0-1"}, "here one process ran the network back to back, with no other work"),
    ],
)  # fmt: skip
def test_the_conditions_say_how_measuring_differs_from_an_app(conditions: dict[str, str], how: str) -> None:
    text = render_text(replace(finished_report(), conditions=conditions))
    assert how in text
    assert "`amc-mobile measure FILE --cadence-fps 30`" in text


def test_long_networks_are_cut_and_the_rest_is_counted() -> None:
    text = render_text(Report("net", layers=tuple(LayerRow(f"layer{i}", ms_before=1.0) for i in range(100))))
    assert "layer59" in text and "layer60" not in text and "40 more in layers.csv" in text


def test_names_cannot_send_control_codes_to_the_terminal() -> None:
    evil = "\x1b[31mevil\x1b[0m\nPASS\u202e"
    report = Report(
        evil, run=evil, layers=(LayerRow(evil),), kept_groups=(KeptGroup(evil, 1, evil),),
        data=DataFacts(evil, {evil: 1}),
        conditions={evil: evil}, flags=(evil,), budget=AskedBudget("ms", 1.0, evil), pruned=ModelColumn(),
        settings={evil: evil},
    )  # fmt: skip
    text = render_text(report)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert not any(line.startswith("PASS") for line in text.splitlines())


def test_rows_are_aligned_with_numbers_to_the_right() -> None:
    assert render_rows(["name", "ms"], [["conv", "1.25"], ["dw 幅", "10.00"]]).splitlines() == [
        "name      ms",
        "-----  -----",
        "conv    1.25",
        "dw 幅  10.00",
    ]


def test_rows_without_data_still_show_their_headers() -> None:
    assert render_rows(["device", "runtime"], []) == "device  runtime\n------  -------"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 headers"):
        render_rows(["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(568_740_000), "569 M"),
        (count(999_700), "1.00 M"),
        (count(475), "475"),
        (count(1e12), "1000 G"),
        (size(1_902_116), "1.90 MB"),
        (size(999), "999 B"),
        (number(0.0042311), "0.004231"),
        (number(312.44), "312.4"),
        (number(27.6, like=9.0), "27.600"),
        (number(None), "-"),
        (shortened("features.denseblock1.denselayer1.conv1", 20), "feature…layer1.conv1"[:20]),
        (printable("a\u202eb\ud800"), "a\\u202eb\\ud800"),
    ],
)
def test_quantities_are_shown_shortly(shown: str, expected: str) -> None:
    assert shown == expected


def test_equal_cost_and_limit_are_printed_alike() -> None:
    assert against_limit(30.0, 30.0) == ("30.00", "30.00")
    assert against_limit(30.0004, 30.0) == ("30.0004", "30.0000")
