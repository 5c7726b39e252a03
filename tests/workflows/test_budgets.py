"""Several budgets at once: joined, measured together, and through the command line with a second device's table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from in_process import CommandLine
from recorded_tables import record, record_two_phones, small_net

from amc_mobile.device.host import HostDevice
from amc_mobile.errors import InvalidConfig
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.reward import MeasuredCost
from amc_mobile.workflows.budgets import Part, measured_together
from amc_mobile.workflows.search_config import SearchConfig, asked_devices

QUICK = ("--episodes", "6", "--calibration-images", "16", "--reward-images", "8", "--quiet", "--json")
GRIDS = (np.array([8, 16, 24, 32]),)


def part(limit: float, ci_high_ms: float | None) -> Part:
    budget = CostLimit(lambda widths: widths[:, 0] * 1.0, limit, GRIDS, "ms", f"also d{limit}:{limit:g}")
    if ci_high_ms is None:
        return Part(budget)
    return Part(budget, measurer=lambda _: MeasuredCost(1.0, ci_high_ms * 0.9, ci_high_ms))


@pytest.mark.parametrize(
    ("highs", "expected"),
    [((9.0, 30.0), 9.0), ((9.0, 44.0), 11.0), ((12.0, 44.0), 12.0), ((9.0, 40.0), 10.0), ((9.0, None), 9.0)],
)
def test_the_device_nearest_to_its_limit_decides_what_was_measured(
    highs: tuple[float, float | None], expected: float
) -> None:
    measure = measured_together([part(10.0, highs[0]), part(40.0, highs[1])])
    assert measure is not None
    cost = measure(np.array([8]))
    assert (cost.ci_high, cost.measured) == (pytest.approx(expected), highs[0] * 0.9)
    assert (cost.ci_high <= 10.0) == (highs[0] <= 10.0 and (highs[1] is None or highs[1] <= 40.0))


def test_without_the_own_device_nothing_is_measured_together() -> None:
    assert measured_together([part(10.0, None), part(40.0, 30.0)]) is None


def test_budgets_are_read_and_named_as_they_were_asked_for() -> None:
    wanted = SearchConfig(latency_ms=30, macs_ratio=0.6, also="galaxy:35,pixel_4:60.5")
    assert wanted.asked == "latency-ms 30 macs-ratio 0.6 also galaxy:35 also pixel_4:60.5"
    assert (wanted.unit, wanted.asked_of_model[0]) == ("ms", "latency-ms 30")
    assert SearchConfig(macs_ratio=0.5, params_ratio=0.4).unit == "macs"
    assert asked_devices(" galaxy:35 ") == [("galaxy", 35.0)]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"latency_ms": 30, "also": "galaxy"}, "not DEVICE:MS"), ({"latency_ms": 30, "also": "galaxy:-1"}, "DEVICE:MS"),
        ({"latency_ms": 30, "also": "g:1,g:2"}, "twice"), ({"macs_ratio": 0.5, "also": "g:1"}, "none for --device"),
        ({"latency_ms": 30, "latency_ratio": 0.5}, "both limit"), ({}, "no budget"),
        ({"macs_ratio": 0.5, "params_ratio": 1.5}, "params-ratio 1.5"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_are_refused(flags: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        SearchConfig(**flags)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_phones")
    record_two_phones(folder)
    return folder


@pytest.fixture
def amc(recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(recorded, monkeypatch, capsys)


def searching(amc: CommandLine, *flags: str) -> tuple[int, str, str]:
    net = ("--model", f"{amc.folder / 'net.py'}:build", "--data", "digits", "--input-size", "32")
    return amc("search", "--device", "pixel", "--offline", *flags, *net, *QUICK)


@pytest.mark.parametrize("policy", ["dp", "netadapt", "ddpg"])
@pytest.mark.parametrize(
    ("budgets", "binding"),
    [
        (("--latency-ms", "3", "--also", "galaxy:3", "--macs-ratio", "0.9"), "also galaxy:3"),
        (("--latency-ms", "2", "--also", "galaxy:9", "--params-ratio", "0.3"), "params-ratio 0.3"),
    ],
)
def test_every_policy_meets_all_budgets(amc: CommandLine, policy: str, budgets: tuple[str, ...], binding: str) -> None:
    code, out, err = searching(amc, *budgets, "--policy", policy)
    assert code == 0, err
    rows = {row["asked"]: row for row in json.loads(out)["budgets"]}
    assert list(rows) == [f"{a[2:]} {b}" for a, b in sorted(zip(budgets[::2], budgets[1::2], strict=True), key=_order)]
    assert all(row["predicted_cost"] <= row["limit"] for row in rows.values())
    assert {row["verdict"] for row in rows.values()} == {"within", "predicted within, not measured"}
    used = {asked: row["predicted_cost"] / row["limit"] for asked, row in rows.items()}
    assert max(used, key=lambda asked: used[asked]) == binding
    assert used[binding] > 0.75


def _order(pair: tuple[str, str]) -> int:
    return ["--latency-ms", "--macs-ratio", "--params-ratio", "--also"].index(pair[0])


def test_the_report_and_the_export_show_every_budget(amc: CommandLine) -> None:
    flags = ("--latency-ms", "3", "--also", "galaxy:3", "--macs-ratio", "0.9", "--policy", "uniform")
    assert searching(amc, *flags)[0] == 0
    code, out, err = amc("export", "--onnx", "--offline", "--quiet")
    assert code == 4, err
    assert "macs-ratio 0.9:" in out and "also galaxy:3: predicted" in err and "not measured" in err
    code, out, err = amc("report")
    assert code == 0, err
    assert out.startswith("PREDICTED, NOT MEASURED  budget 3.000 ms")
    assert "--also galaxy:3 2." in out.splitlines()[0] and "--macs-ratio 0.9" in out.splitlines()[0]
    report = json.loads(next(amc.folder.glob("amc-workspace/runs/*galaxy*uniform*/report.json")).read_text())
    assert [(row["device"], row["gate"]["passed"]) for row in report["further_budgets"]] == [
        ("", True),
        ("galaxy", None),
    ]


@pytest.mark.parametrize(
    ("budgets", "named", "smallest"),
    [
        (("--latency-ms", "3", "--also", "galaxy:0.1"), "0.1 ms (also galaxy:0.1)", " ms"),
        (("--latency-ms", "0.01", "--also", "galaxy:5"), "0.01 ms (latency-ms 0.01)", " ms"),
        (("--latency-ms", "3", "--params-ratio", "0.01"), "parameters (params-ratio 0.01)", " M parameters"),
    ],
)
def test_a_budget_that_no_plan_can_meet_is_named(
    amc: CommandLine, budgets: tuple[str, ...], named: str, smallest: str
) -> None:
    code, _, err = searching(amc, *budgets)
    assert code == 1
    assert named in err and "cannot be reached" in err and smallest in err.split("smallest plan allowed costs")[1]


def test_the_device_itself_is_no_further_device(amc: CommandLine) -> None:
    code, _, err = searching(amc, "--latency-ms", "3", "--also", "pixel:3")
    assert code == 2 and "--also pixel is the --device itself" in err


def test_a_latency_ratio_is_of_the_device_that_it_was_asked_for(amc: CommandLine) -> None:
    found = {}
    for device in ("pixel", "galaxy"):
        code, out, err = searching(amc, "--latency-ratio", "0.7", "--policy", "uniform", "--device", device)
        assert code == 0, err
        found[device] = json.loads(out)
        assert found[device]["budget"]["limit"] == pytest.approx(0.7 * found[device]["budget"]["reference_ms"])
    assert found["galaxy"]["budget"]["limit"] > 2.5 * found["pixel"]["budget"]["limit"]
    assert "-galaxy-latency-ratio-0.7-" in found["galaxy"]["run"] and found["galaxy"]["run"] != found["pixel"]["run"]
    code, _, err = searching(amc, "--latency-ratio", "0.7", "--policy", "uniform", "--run", found["galaxy"]["run"])
    assert code == 1
    assert "has its latency budget on galaxy, not on pixel" in err and "another name with --run" in err


def test_a_device_that_is_there_is_measured_and_one_that_is_not_stays_predicted(amc: CommandLine) -> None:
    space, settings = small_net(amc.folder)
    record(space, settings, HostDevice("onnxruntime", 1).conditions())
    net = ("--model", settings.model, "--data", "digits", "--input-size", "32", "--runtime", "onnxruntime")
    flags = ("--latency-ms", "1000", "--also", "galaxy:3", "--policy", "uniform", *net, *QUICK)
    code, out, err = amc("search", "--device", "host", *flags)
    assert code == 0, err
    own, galaxy = json.loads(out)["budgets"]
    assert own["measured_ms"] > 0 and own["verdict"] == "within"
    assert (galaxy["measured_ms"], galaxy["verdict"]) == (None, "predicted within, not measured")
    code, out, err = amc("export", "--onnx", "--quiet", "--json")
    gate = json.loads(out)["gate"]
    assert code == 4, err
    assert gate["own_passed"] is True and [one["passed"] for one in gate["further"]] == [None]
    assert "also galaxy:3: predicted" in err and "the device is not attached" in err
