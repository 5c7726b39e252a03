"""A table that another phone of the model filled, or an earlier version that did not say which one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_device import CONDITIONS, Bench

from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.latency.sharing import ANCHORS
from amc_mobile.latency.table import LatencyTable

Amc = Callable[..., tuple[int, str, str]]
SECOND = replace(CONDITIONS, unit="0b")


def profiled(amc: Amc) -> dict[str, Any]:
    code, out, err = amc("profile", "--json", "--quiet")
    assert code == 0, err
    return dict(json.loads(out))


def lows(conditions: Conditions) -> dict[str, float]:
    with LatencyTable(Path("amc-workspace/table.sqlite")) as table:
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
    with LatencyTable(Path("amc-workspace/table.sqlite")) as table:
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
    with LatencyTable(Path("amc-workspace/table.sqlite")) as table:
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
