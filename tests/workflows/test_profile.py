"""Profiles through the command line, on a device whose speed and load the test sets."""

from __future__ import annotations

import csv
import json
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_device import CONDITIONS, Bench

from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.device import Job, Neighbours, Pass
from amc_mobile.latency.calibration import BUSY_ERROR, CONVERTING_BAND_FLOOR, QUICK_BAND_FLOOR, USABLE_BAND
from amc_mobile.latency.sharing import ANCHORS
from amc_mobile.latency.table import LatencyTable

Amc = Callable[..., tuple[int, str, str]]
TABLE = Path("amc-workspace/table.sqlite")
IMAGES = ("--calibration-images", "64", "--reward-images", "32")


def profiled(amc: Amc, *flags: str) -> dict[str, Any]:
    code, out, err = amc("profile", "--json", "--quiet", *flags)
    assert code == 0, err
    return dict(json.loads(out))


# A profile beside other programs: told in text and JSON, in the band, and measured anew on a device left alone.


@pytest.fixture
def profile_anew(amc: Amc) -> Callable[..., str]:
    """profile_anew(*flags) profiles the network again and gives what it prints; the first time with an empty table."""
    TABLE.unlink()

    def run(*flags: str) -> str:
        code, out, err = amc("profile", "--quiet", *flags)
        assert code == 0, err
        return out

    return run


def test_a_busy_profile_warns_widens_the_band_and_is_fixed_by_the_next(
    profile_anew: Callable[..., str], bench: Bench
) -> None:
    bench.others = Neighbours(1.2, "backup (process 9)")
    busy = json.loads(profile_anew("--json"))
    assert busy["busy"]["neighbours"] == {"cores": 1.2, "program": "backup (process 9)"}
    assert busy["busy"]["kernels"] == busy["kernels"]
    assert busy["busy"]["models"] == busy["calibration"]["models"]
    text = profile_anew()
    assert f"Warning: {busy['kernels']} kernels and {busy['calibration']['models']} whole models" in text
    assert "other programs take 1.20 processor cores, most of it backup (process 9) [BUSY]" in text
    assert "the error band is widened" in text
    assert "next: end the other programs" in text
    shown = json.loads(profile_anew("--json"))
    assert shown == busy  # nothing is gained by measuring again beside them

    bench.others = Neighbours(0.1)
    quiet = json.loads(profile_anew("--json"))
    assert quiet["busy"] == {"neighbours": {"cores": 0.1, "program": None}, "kernels": 0, "models": 0}
    assert quiet["calibration"]["band"] == pytest.approx(busy["calibration"]["band"] - BUSY_ERROR)
    assert "Warning" not in profile_anew()


def test_a_device_that_does_not_tell_gives_no_warning(profile_anew: Callable[..., str]) -> None:
    assert json.loads(profile_anew("--json"))["busy"] == {"neighbours": None, "kernels": 0, "models": 0}


# A quick first profile: a part of the work, said so, and completed by a later one that measures nothing twice.


QUICK_SEARCH = (
    *["search", "--policy", "uniform", "--episodes", "2", "--latency-ratio", "0.7", "--untrained", "--quiet"],
    *IMAGES,
)


@pytest.fixture
def made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Passes by the key of what was measured, without anchors."""
    counts: Counter[str] = Counter()

    def passes(jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        for job, timed in zip(jobs, Bench.passes(bench, jobs), strict=True):
            counts[job.key] += job.label != "the anchor"
            yield timed

    monkeypatch.setattr(bench, "passes", passes)
    return counts


def test_a_quick_profile_says_so_and_a_full_one_completes_it(amc: Amc, made: Counter[str]) -> None:

    TABLE.unlink()
    whole = profiled(amc)
    alone = Counter(made)
    assert whole["quick"] is None
    TABLE.unlink()
    made.clear()

    quick = profiled(amc, "--quick")
    assert quick["kernels"] < whole["kernels"] / 1.5
    models = whole["calibration"]["models"] - quick["calibration"]["models"]
    assert models > 0
    assert quick["quick"] == {"lacking_kernels": whole["kernels"] - quick["kernels"], "lacking_models": models}
    assert quick["calibration"]["band"] >= QUICK_BAND_FLOOR > whole["calibration"]["band"]
    assert made.total() < alone.total() / 2
    code, out, _ = amc("profile", "--quick", "--quiet")
    assert code == 0 and "Quick profile: " in out
    assert "next: run `amc-mobile profile` without --quick, which measures the rest" in out

    code, _, err = amc(*QUICK_SEARCH, "--run", "early")
    assert code == 0, err
    code, out, _ = amc("report", "--json")
    assert code == 0 and json.loads(out)["predictions"]["quick"] is True
    code, out, _ = amc("report")
    assert "The latency table is from a quick profile" in out

    before = Counter(made)
    completed = profiled(amc)
    assert completed["calibration"]["scale"] == pytest.approx(whole["calibration"]["scale"])
    assert completed["calibration"]["band"] == whole["calibration"]["band"]
    assert all(completed[key] == whole[key] for key in ("kernels", "quick", "flags", "busy"))
    added = made - before
    assert added.total() > 0
    code, out, _ = amc("profile", "--quick", "--quiet")
    assert "Quick profile" not in out  # nothing lacks any more
    code, out, err = amc(*QUICK_SEARCH, "--run", "late")
    assert code == 0, err
    code, out, _ = amc("report", "--json")
    assert json.loads(out)["predictions"]["quick"] is False


def test_what_a_quick_profile_measured_is_not_measured_again(amc: Amc, made: Counter[str]) -> None:

    TABLE.unlink()
    profiled(amc)
    alone = Counter(made)
    TABLE.unlink()
    made.clear()
    profiled(amc, "--quick")
    profiled(amc)
    assert +made == +alone


# A table that another phone of the model filled, or an earlier version that did not say which one.


SECOND = replace(CONDITIONS, unit="0b")


def lows(conditions: Conditions) -> dict[str, float]:
    with LatencyTable(TABLE) as table:
        return {key: kernel.low_ms for key, kernel in table.kernels(conditions).items()}


def test_kernels_are_taken_over_where_the_phones_differ_by_one_factor(amc: Amc, bench: Bench) -> None:
    first = profiled(amc)
    bench.now, bench.slowdown = SECOND, lambda label: 1.1
    jobs: list[str] = []
    bench.ms, usual = lambda job: jobs.append(job.key) or usual(job), bench.ms  # type: ignore[method-assign]
    second = profiled(amc)
    assert second["original_p50_ms"] == pytest.approx(1.1 * first["original_p50_ms"])
    (compared,) = second["other_units"]
    assert compared["ratio"] == pytest.approx(1.1)
    before, now = lows(CONDITIONS), lows(SECOND)
    assert now == pytest.approx({key: 1.1 * low for key, low in before.items()})
    # The anchors, and no kernel that was taken over; the whole models are this phone's.
    assert len(set(jobs) & set(now)) == ANCHORS
    assert compared["kernels"] == len(now) - ANCHORS
    with LatencyTable(TABLE) as table:
        assert list(table.adoptions().values()) == [compared["ratio"]]
    assert profiled(amc)["other_units"] == []


def test_phones_that_differ_from_kernel_to_kernel_have_a_table_each(amc: Amc, bench: Bench) -> None:
    first = profiled(amc)
    bench.now, bench.slowdown = SECOND, lambda label: 1.3 if "3x3/2" in label else 1.0
    second = profiled(amc)
    (compared,) = second["other_units"]
    assert compared["ratio"] is None
    assert "1.000 to 1.300 times as long" in compared["why"]
    assert second["kernels"] == first["kernels"] == len(lows(SECOND)) == len(lows(CONDITIONS))
    with LatencyTable(TABLE) as table:
        assert table.adoptions() == {}
    code, out, _ = amc("profile", "--quiet")
    assert (code, "unit 0b" in out) == (0, True)
    assert profiled(amc)["other_units"] == []


def test_a_search_on_another_phone_asks_for_its_profile(amc: Amc, bench: Bench) -> None:
    bench.now = SECOND
    code, out, err = amc("search", "--latency-ratio", "0.7", "--quiet")
    assert (code, out) == (1, "")
    assert "measured when unit was unknown, is 0b" in err
    assert "next: run `amc-mobile profile`" in err


def test_conditions_of_earlier_versions_keep_their_key() -> None:
    assert "unit" not in CONDITIONS.to_document()
    assert Conditions.from_document(CONDITIONS.to_document()) == CONDITIONS
    assert Conditions.from_document(SECOND.to_document()) == SECOND
    assert SECOND.key != CONDITIONS.key
    assert SECOND.is_of_other_unit(CONDITIONS)
    assert not replace(SECOND, cores="1").is_of_other_unit(CONDITIONS)
    assert len(unit_of("R58M12")) == 8
    assert "R58M12" not in unit_of("R58M12")


# A table that predicts too badly for a search: named by the profile, refused by the search, flagged in the report.


WILD_SEARCH = (
    *["search", "--policy", "uniform", "--episodes", "2", "--latency-ratio", "0.7", "--run", "wild", "--quiet"],
    *IMAGES,
)


def wild(label: str) -> float:
    """Whole models take up to five times as long, whatever their widths are."""
    return 1.0 + 4.0 * (zlib.crc32(label.encode()) % 100) / 100 if "whole model" in label else 1.0


@pytest.fixture
def wild_amc(amc: Amc, bench: Bench) -> Amc:
    TABLE.unlink()
    bench.slowdown = wild
    return amc


def test_an_unusable_table_is_named_and_a_search_refuses_it_unless_waived(wild_amc: Amc) -> None:
    code, out, err = wild_amc("profile", "--json", "--quiet")
    assert code == 0, err
    profile = json.loads(out)
    assert profile["calibration"]["band"] > USABLE_BAND and profile["flags"] == ["WIDE_BAND"]
    code, out, _ = wild_amc("profile", "--quiet")
    assert "[WIDE_BAND]" in out and "next: close other programs, let the device cool down" in out
    code, _, err = wild_amc(*WILD_SEARCH)
    assert code == 1
    assert "the latency table of host is of no use: predictions of whole models are up to" in err
    assert "--waive WIDE_BAND" in err
    code, _, err = wild_amc(*WILD_SEARCH, "--waive", "WIDE_BAND")
    assert code == 0, err
    code, out, err = wild_amc("report", "--json")
    assert code == 0, err
    assert "WIDE_BAND" in json.loads(out)["flags"]
    code, out, _ = wild_amc("report")
    assert "Next: WIDE_BAND: the latency table predicts too badly to tell plans apart" in out


def test_a_usable_table_says_nothing(amc: Amc) -> None:
    code, out, _ = amc("profile", "--json", "--quiet")
    assert code == 0 and json.loads(out)["flags"] == []
    code, out, _ = amc("profile", "--quiet")
    assert "Warning" not in out


# Searches over fewer widths than those that were profiled.


FEWER_SEARCH = ("search", "--latency-ratio", "0.9", "--policy", "random", "--episodes", "4", *IMAGES, "--run", "few")


@pytest.mark.parametrize("fewer", [("--multiple", "32"), ("--keep", "0"), ("--min-keep-ratio", "0.75")])
def test_the_first_plan_is_predicted_as_it_is_measured(amc: Amc, bench: Bench, fewer: tuple[str, str]) -> None:
    bench.cost = lambda inputs, outputs: 0.05 + inputs * outputs * 1e-3  # without steps: nothing is left to learn
    code, _, err = amc("profile", "--quiet")
    assert code == 0, err
    code, _, err = amc(*FEWER_SEARCH, *fewer, "--quiet")
    assert code == 0, err
    with Path("amc-workspace/runs/few/episodes.csv").open() as file:
        first = next(csv.DictReader(file))
    predicted = float(first["predicted_cost"]) / (1 + CONVERTING_BAND_FLOOR)  # the least error band is on top of it
    assert predicted == pytest.approx(float(first["measured_ms"]), rel=0.02)
