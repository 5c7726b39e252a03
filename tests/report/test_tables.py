from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from report_example import finished_report

from amc_mobile.channels.structure import KeptGroup
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.gate import Gate
from amc_mobile.report.content import (
    Accuracy,
    AskedBudget,
    DataFacts,
    FurtherBudget,
    Latency,
    LayerRow,
    ModelColumn,
    ParityRow,
    PredictionPoint,
    Predictions,
    Report,
    Stage,
)
from amc_mobile.report.pages import (
    render_html,
    render_text,
)
from amc_mobile.report.tables import (
    Clause,
    advice,
    against_limit,
    count,
    layers,
    number,
    prediction_quality,
    printable,
    ran_on,
    render_rows,
    shortened,
    size,
    verdict_line,
)

Golden = Callable[[str, str], None]
REPORT = finished_report()


def with_latency(low: float, p50: float, high: float, *, passed: bool = True, cost: float | None = None) -> Report:
    assert REPORT.pruned is not None and REPORT.budget is not None
    gate = Gate(passed, high if cost is None else cost, 1.2, "what the gate said")
    return replace(
        REPORT,
        pruned=replace(REPORT.pruned, latency=Latency(p50, high * 1.05, low, high)),
        budget=replace(REPORT.budget, gate=gate),
    )


def test_the_gate_decides_and_the_report_only_shows_it() -> None:
    assert with_latency(1.17, 1.18, 1.2).verdict.status == "PASS"
    assert with_latency(1.17, 1.18, 1.19, passed=False).verdict.status == "FAIL"
    assert with_latency(1.17, 1.18, 1.19, cost=1.195).verdict.cost == 1.195


def test_a_cost_just_over_the_budget_is_printed_so_that_it_differs() -> None:
    line = verdict_line(with_latency(1.17, 1.18, 1.19, passed=False, cost=1.20001))
    assert "95 % CI 1.170 to 1.190; at most 1.20001, budget 1.20000 ms" in line


def test_a_speedup_that_other_programs_made_is_advised_to_be_measured_alone() -> None:
    remarks = advice(with_latency(1.1, 1.11, 1.12, passed=False))
    assert remarks[0] == "what the gate said: end the other programs and export again."


def test_every_attempt_of_the_gate_is_shown_with_its_reason() -> None:
    for shown in (render_text(REPORT), render_html(REPORT)):
        assert shown.count("8 of 10 rounds within the budget, 9 needed") == 1
        assert "18 of 20" in shown and "with 97.5" in shown
        assert "BUSY" in shown


def test_a_prediction_alone_does_not_pass_a_latency_budget() -> None:
    assert REPORT.pruned is not None
    guessed = replace(REPORT, pruned=replace(REPORT.pruned, latency=None), speedup=None, budget=AskedBudget("ms", 1.2))
    assert guessed.verdict.status == "NOT MEASURED"
    assert any("amc-mobile export" in remark for remark in advice(guessed))


@pytest.mark.parametrize(
    ("gate", "status"),
    [(Gate(), "PREDICTED, NOT MEASURED"), (Gate(True, 34.9, 35.0), "PASS"), (Gate(False, 35.1, 35.0), "FAIL")],
)
def test_one_plan_passes_only_when_every_budget_does(gate: Gate, status: str) -> None:
    further = FurtherBudget("--also galaxy:35", "ms", 35.0, "galaxy", 33.0, gate)
    report = replace(REPORT, further_budgets=(further,))
    assert REPORT.verdict.status == "PASS"
    assert report.verdict.status == status
    assert "--also galaxy:35 " in verdict_line(report) and "budget 35" in verdict_line(report)
    missed = "--also galaxy:35 is missed: search again with a lower budget for it, or measure again."
    assert (missed in advice(report)) == (status == "FAIL")
    count = FurtherBudget("--macs-ratio 0.5", "macs", 10.0, predicted=11.0, gate=Gate(False, 11.0, 10.0))
    assert replace(report, further_budgets=(further, count)).verdict.status == "FAIL"


def test_a_search_without_the_device_is_predicted_not_measured() -> None:
    assert REPORT.pruned is not None
    unmeasured = replace(REPORT.pruned, latency=None)
    report = replace(REPORT, pruned=unmeasured, speedup=None, offline=True, budget=AskedBudget("ms", 1.2))
    assert verdict_line(report).startswith("PREDICTED, NOT MEASURED  budget")
    assert any("without --offline" in remark for remark in advice(report))


def test_a_budget_of_macs_needs_no_measurement() -> None:
    pruned = ModelColumn(macs=500, parameters=70)
    original = ModelColumn(macs=1000, parameters=100)
    report = Report(
        "net", budget=AskedBudget("macs", 500.0, gate=Gate(True, 500, 500)), original=original, pruned=pruned
    )
    assert report.verdict.status == "PASS"
    assert verdict_line(report).startswith("PASS  MACs 500 (50.0 % of 1.00 k; budget 500)")
    over = replace(report, budget=AskedBudget("parameters", 69.0, gate=Gate(False, 70, 69)))
    assert over.verdict.status == "FAIL" and "70.00 parameters are over the budget of 69.00" in advice(over)[0]


def test_a_budget_of_macs_sends_nobody_to_profile_or_search_for_what_it_does_not_have() -> None:
    budget, stages = AskedBudget("macs", 500.0, gate=Gate(True, 500, 500)), (Stage("refitted", Accuracy(0.9)),)
    text = render_text(Report("net", budget=budget, pruned=ModelColumn(macs=500), stages=stages))
    assert "amc-mobile search" not in text and "amc-mobile profile" not in text
    assert "the plan is in search.json" in text and "Only searches for a latency predict one" in text
    assert "run `amc-mobile search`" in render_text(Report("net"))


def test_without_a_search_there_is_no_plan() -> None:
    report = Report("net", original=ModelColumn(accuracy=Accuracy(0.9)))
    assert report.verdict.status == "NO PLAN"
    assert verdict_line(report) == "NO PLAN  original top-1 90.0 %"


def test_a_failed_budget_advises_a_tighter_one() -> None:
    remarks = advice(with_latency(1.28, 1.3, 1.32, passed=False))
    assert "1.320 ms, which is over the budget of 1.200 ms" in remarks[0]
    assert "--latency-ms 1.091" in remarks[0]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [({}, "no cheaper plan scored better"), ({"max_loss": 0.01}, "no cheaper plan kept the accur")],
)
def test_a_search_that_prunes_nothing_says_what_to_do(settings: dict[str, float], cause: str) -> None:
    whole = ModelColumn(macs=1000, parameters=100)
    budget = AskedBudget("macs", 1000.0, gate=Gate(True, 1000, 1000))
    report = Report("net", budget=budget, original=whole, pruned=whole, settings=settings)
    assert cause in advice(report)[0] and "--" in advice(report)[0]
    cut = replace(report, pruned=ModelColumn(macs=1000, parameters=90))
    assert not any("Nothing is pruned" in remark for remark in advice(cut))


@pytest.mark.parametrize(("kept", "status", "said"), [(True, "PASS", "kept"), (False, "FAIL", "NOT KEPT")])
def test_a_promised_accuracy_is_part_of_the_verdict(kept: bool, status: str, said: str) -> None:
    report = replace(REPORT, accuracy_kept=kept, settings={"max_loss": 0.01})
    assert report.verdict.status == status
    assert f"--max-loss 0.01 {said} (on the reward images)" in verdict_line(report)
    assert any("--max-loss" in remark for remark in advice(report)) == (not kept)


def test_a_finished_run_that_passes_needs_no_advice() -> None:
    assert advice(REPORT) == ()


def test_every_flag_gets_a_next_step() -> None:
    remarks = advice(replace(REPORT, flags=("NOISY", "SOMETHING_NEW")))
    assert [remark.split(":")[0] for remark in remarks] == ["NOISY", "SOMETHING_NEW"]


def test_an_export_that_decides_otherwise_is_named() -> None:
    stage = Stage("tflite", Accuracy(0.9, 100), ParityRow(0.4, 0.93, 200))
    assert "tflite names another class than torch on 7.0 % of 200 images" in advice(replace(REPORT, stages=(stage,)))[0]
    detector = ModelColumn(accuracy=Accuracy(0.9, 100, metric="mAP@0.5"))
    remark = advice(replace(REPORT, stages=(stage,), original=detector))[0]
    assert "tflite names another class than torch on 7.0 % of the anchors of 200 images" in remark


def test_macs_saved_without_time_saved_are_pointed_out() -> None:
    report = Report(
        "net",
        budget=AskedBudget("macs", 500.0),
        original=ModelColumn(Latency(10.0, 11.0, 9.9, 10.1), macs=1000),
        pruned=ModelColumn(Latency(9.0, 11.0, 8.9, 9.1), macs=500),
    )
    assert any("MACs fell by 50.0 % but latency by 10.0 % only" in remark for remark in advice(report))


def test_a_measurement_outside_the_band_asks_for_a_new_profile() -> None:
    remarks = advice(replace(with_latency(1.1, 1.11, 1.12), predictions=Predictions(band=0.02)))
    assert "outside the band of +-2.0 %" in remarks[0]


def test_wilsons_interval_matches_a_published_value() -> None:
    # 81 of 263, R. Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    low, high = Accuracy(81 / 263, 263).interval or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert Accuracy(1.0, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert Accuracy(0.5).interval is None


def test_a_latency_that_is_not_a_positive_number_is_refused() -> None:
    with pytest.raises(InvalidInput, match="p90_ms is nan"):
        Latency(1.0, math.nan, 0.9, 1.1)


def test_prediction_quality_counts_coverage_bias_and_ranks() -> None:
    quality = prediction_quality(REPORT.predictions)
    assert quality is not None
    assert quality.kinds == (("calibration", 12), ("search", 7), ("final", 1))
    assert quality.covered == 1.0
    assert 0 < abs(quality.bias) < quality.mean_error < 0.024
    assert quality.rank_correlation is not None and 0.95 < quality.rank_correlation < 1
    assert prediction_quality(Predictions()) is None


def test_equal_predictions_have_no_rank_correlation() -> None:
    point = REPORT.predictions.points[0]
    quality = prediction_quality(Predictions((point, point, point)))
    assert quality is not None and quality.rank_correlation is None


def test_the_verdict_line_cannot_be_broken_by_a_hostile_condition() -> None:
    line = verdict_line(replace(REPORT, conditions={"device": "a\x1b[2J\nPASS"}, kept_groups=(KeptGroup("g", 1, ""),)))
    assert "\x1b" not in line and "\n" not in line


def test_a_band_that_holds_fewer_models_than_promised_is_pointed_out() -> None:
    inside, outside = PredictionPoint(1.0, 1.01), PredictionPoint(1.0, 1.2)
    (remark,) = advice(replace(REPORT, predictions=Predictions((inside,) * 7 + (outside,) * 2, band=0.1)))
    assert remark.startswith("78 % of 9 whole models are inside the band of +-10.0 % that 90 % should be in")
    assert "`amc-mobile profile`" in remark
    # Of ten models one is left out, and another one by chance.
    assert advice(replace(REPORT, predictions=Predictions((inside,) * 8 + (outside,) * 2, band=0.1))) == ()


def test_one_prediction_is_shown_wherever_it_is_shown() -> None:
    text = render_text(REPORT)
    assert "episode 55, reward 0.9254, predicted 1.183 ms" in text and "predicted 1.183 ms (measured -1.0 %)" in text


def test_the_budget_used_is_the_measured_share_of_the_limit() -> None:
    assert REPORT.verdict.budget_used == pytest.approx(1.171 / 1.2)
    assert "budget used 97.6 % (measured p50 / budget)" in verdict_line(REPORT)
    counted = Report("net", budget=AskedBudget("macs", 500.0), pruned=ModelColumn(macs=450))
    assert "budget used 90.0 % (macs / budget)" in verdict_line(counted)


def test_a_reference_that_moved_is_named_once_and_every_ms_is_on_its_scale() -> None:
    assert REPORT.budget is not None
    moved = replace(REPORT, budget=replace(REPORT.budget, searched_limit=1.0))
    assert moved.budget is not None and moved.budget.search_scale == pytest.approx(1.2)
    assert "took 1.200 times as long at the export as when the search began" in render_text(moved)


def test_what_ran_and_what_the_delegate_left_out_are_in_the_verdict() -> None:
    assert ran_on(REPORT) == Clause("ran on", "CPU", "1 thread; tflite 2.3.0; XNNPACK took every operator")
    left = replace(REPORT, files=(replace(REPORT.files[0], not_delegated=("TOPK_V2",)),))
    assert "XNNPACK did not take TOPK_V2" in str(ran_on(left))
    assert ran_on(Report("net")) is None


def test_channels_up_to_the_next_step_of_the_device_are_unused() -> None:
    assert [LayerRow("a", "", "", 64, n, channel_step=16).unused_channels for n in (40, 48, 63)] == [8, 0, 1]
    assert LayerRow("a", "", "", 45, 40, channel_step=16).unused_channels == 5
    assert LayerRow("a", "", "", 64, 40).unused_channels is None
    section = layers(replace(REPORT, layers=(LayerRow("a", "k", "k", 64, 40, 2.0, 1.0, channel_step=16),)))
    assert section.rows[0][section.headers.index("unused")] == "8 to 48" and "same time" in section.note


def test_newcombes_interval_matches_a_published_value() -> None:
    # 56 of 70 against 48 of 80, R. Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10.
    low, high = Accuracy(56 / 70, 70).change_from(Accuracy(48 / 80, 80)) or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    assert Accuracy(0.5).change_from(Accuracy(0.4, 10)) is None


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
