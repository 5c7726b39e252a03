"""A table that predicts too badly for a search: named by the profile, refused by the search, flagged in the report."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_device import Bench

from amc_mobile.latency.calibration import USABLE_BAND

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "uniform", "--episodes", "2", "--calibration-images", "64", "--reward-images", "32",
          "--latency-ratio", "0.7", "--run", "wild", "--quiet")  # fmt: skip


def wild(label: str) -> float:
    """Whole models take up to five times as long, whatever their widths are."""
    return 1.0 + 4.0 * (zlib.crc32(label.encode()) % 100) / 100 if "whole model" in label else 1.0


@pytest.fixture
def profiled(amc: Amc, bench: Bench) -> Amc:
    Path("amc-workspace/table.sqlite").unlink()
    bench.slowdown = wild
    return amc


def test_an_unusable_table_is_named_and_a_search_refuses_it_unless_waived(profiled: Amc) -> None:
    code, out, err = profiled("profile", "--json", "--quiet")
    assert code == 0, err
    profile = json.loads(out)
    assert profile["calibration"]["band"] > USABLE_BAND and profile["flags"] == ["WIDE_BAND"]
    code, out, _ = profiled("profile", "--quiet")
    assert "[WIDE_BAND]" in out and "next: close other programs, let the device cool down" in out
    code, _, err = profiled(*SEARCH)
    assert code == 1
    assert "the latency table of host is of no use: predictions of whole models are up to" in err
    assert "--waive WIDE_BAND" in err
    code, _, err = profiled(*SEARCH, "--waive", "WIDE_BAND")
    assert code == 0, err
    code, out, err = profiled("report", "--json")
    assert code == 0, err
    assert "WIDE_BAND" in json.loads(out)["flags"]
    code, out, _ = profiled("report")
    assert "Next: WIDE_BAND: the latency table predicts too badly to tell plans apart" in out


def test_a_usable_table_says_nothing(amc: Amc) -> None:
    code, out, _ = amc("profile", "--json", "--quiet")
    assert code == 0 and json.loads(out)["flags"] == []
    code, out, _ = amc("profile", "--quiet")
    assert "Warning" not in out
