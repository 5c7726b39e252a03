"""Two runs compared, as a pull request needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from report_example import finished_report

from amc_mobile.errors import InvalidConfig, InvalidInput, ToleranceExceeded
from amc_mobile.report.content import Accuracy, LayerRow, Report
from amc_mobile.report.pages import FORMAT_VERSION, report_document
from amc_mobile.store import write_json
from amc_mobile.workflows.report import ReportComparison, compare_reports
from amc_mobile.workflows.workspace import Workspace

REPORT = finished_report()
Compare = Callable[..., ReportComparison]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """compare(report, **options) compares it with the finished one, both from their files."""

    def compared(after: Report, **options: float) -> ReportComparison:
        paths = [tmp_path / "before.json", tmp_path / "after.json"]
        for path, report in zip(paths, (REPORT, after), strict=True):
            write_json(path, report_document(report), format_version=FORMAT_VERSION)
        return compare_reports(Workspace(tmp_path / "space"), *map(str, paths), **options)  # type: ignore[arg-type]

    return compared


def scaled(factor: float, *, both: bool = False) -> Report:
    """The pruned file, or both files, slower by `factor`."""
    passes = tuple(
        replace(one, samples_ms=tuple(ms * factor for ms in one.samples_ms)) if both or one.file == "pruned" else one
        for one in REPORT.passes
    )
    return replace(REPORT, run="later", passes=passes)


def test_a_run_is_no_worse_than_itself(compare: Compare) -> None:
    same = compare(REPORT)
    assert (same.status, same.latency.value, same.worse) == ("WITHIN TOLERANCE", 0.0, ())
    assert same.latency.ci_low < 0 < same.latency.ci_high
    same.raise_if_worse()


@pytest.mark.parametrize(
    ("factor", "tolerance", "status"),
    [(1.1, 0.05, "WORSE"), (1.1, 0.2, "WITHIN TOLERANCE"), (1.03, 0.05, "WITHIN TOLERANCE"), (0.8, 0.05, "BETTER")],
)
def test_a_slower_file_is_worse_beyond_the_tolerance(
    compare: Compare, factor: float, tolerance: float, status: str
) -> None:
    compared = compare(scaled(factor), tolerance=tolerance)
    assert compared.latency.value == pytest.approx(factor - 1)
    assert compared.text().startswith(f"{status}  later against digits-half: p50 {100 * (factor - 1):+.1f} %")
    assert compared.document()["verdict"] == status
    if status == "WORSE":
        with pytest.raises(ToleranceExceeded, match=r"slower by 10\.0 %, more than --tolerance 0\.05") as raised:
            compared.raise_if_worse()
        assert raised.value.exit_code == 3


def test_a_device_that_became_slower_for_both_files_cancels_out(compare: Compare) -> None:
    assert compare(scaled(1.5, both=True)).latency.value == pytest.approx(0.0)
    other = replace(scaled(1.5, both=True), hashes={**REPORT.hashes, "weights of the original": "00" * 32})
    unpaired = compare(other)
    assert unpaired.latency.value == pytest.approx(0.5) and "not paired" in unpaired.text()


def test_noise_alone_is_not_worse(compare: Compare) -> None:
    passes = tuple(
        replace(one, samples_ms=tuple(ms * (1.2 if i % 4 == 1 else 0.95) for ms in one.samples_ms))
        if one.file == "pruned"
        else one
        for i, one in enumerate(REPORT.passes)
    )
    noisy = compare(replace(REPORT, passes=passes), tolerance=0.0)
    assert noisy.latency.ci_low < 0 < noisy.latency.ci_high and noisy.worse == ()


def test_accuracy_counts_where_it_falls_by_more_than_the_tolerance_and_chance(compare: Compare) -> None:
    assert REPORT.pruned is not None

    def less(top1: float) -> Report:
        return replace(REPORT, pruned=replace(REPORT.pruned, accuracy=Accuracy(top1, 360)))

    assert compare(less(0.90)).worse == ("8.3 points of top-1 lost",)
    assert compare(less(0.975), tolerance=0.0).worse == ()  # three images


def test_unlike_conditions_are_refused_and_named_when_forced(compare: Compare) -> None:
    phone = replace(REPORT, conditions={**REPORT.conditions, "device": "pixel", "threads": 4})
    with pytest.raises(InvalidInput, match="cannot be compared: device host and pixel; threads 1 and 4") as raised:
        compare(phone)
    assert "--force" in raised.value.next_step
    assert "Unlike: device host and pixel" in compare(phone, force=True).text()
    with pytest.raises(InvalidInput, match="test images"):
        compare(replace(REPORT, hashes={**REPORT.hashes, "test images": "11" * 32}))


def test_what_cannot_be_compared_is_refused(compare: Compare, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no measured file"):
        compare(replace(REPORT, passes=()))
    with pytest.raises(InvalidConfig, match="--tolerance 5"):
        compare(REPORT, tolerance=5)
    (tmp_path / "wrong.json").write_text('{"format_version": 1, "model": 3}')
    with pytest.raises(InvalidInput, match="model"):
        compare_reports(Workspace(tmp_path), str(tmp_path / "wrong.json"), str(tmp_path / "wrong.json"))


def test_layers_are_matched_by_name_the_largest_difference_first(compare: Compare) -> None:
    layers = (
        *(replace(row, ms_after=(row.ms_after or 0) * 2) if i == 3 else row for i, row in enumerate(REPORT.layers)),
        LayerRow("new", ms_after=0.1),
        LayerRow("new", ms_after=0.2),
    )
    frame = compare(replace(REPORT, layers=layers)).layers()
    assert frame.index[0] == REPORT.layers[3].name and len(frame) == len(layers)
    assert frame["difference_ms"].iloc[0] == pytest.approx(REPORT.layers[3].ms_after)
    assert frame["ms_before"].isna().sum() == 2
    text = compare(replace(REPORT, layers=layers)).text()
    assert REPORT.layers[3].name in text and REPORT.layers[4].name not in text
