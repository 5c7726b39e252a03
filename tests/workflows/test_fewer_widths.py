"""Searches over fewer widths than those that were profiled."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_device import Bench

from amc_mobile.latency.calibration import CONVERTING_BAND_FLOOR

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--latency-ratio", "0.9", "--policy", "random", "--episodes", "4", "--calibration-images", "64",
          "--reward-images", "32", "--run", "few")  # fmt: skip


@pytest.mark.parametrize("fewer", [("--multiple", "32"), ("--keep", "0"), ("--min-keep-ratio", "0.75")])
def test_the_first_plan_is_predicted_as_it_is_measured(amc: Amc, bench: Bench, fewer: tuple[str, str]) -> None:
    bench.cost = lambda inputs, outputs: 0.05 + inputs * outputs * 1e-3  # without steps: nothing is left to learn
    code, _, err = amc("profile", "--quiet")
    assert code == 0, err
    code, _, err = amc(*SEARCH, *fewer, "--quiet")
    assert code == 0, err
    with Path("amc-workspace/runs/few/episodes.csv").open() as file:
        first = next(csv.DictReader(file))
    predicted = float(first["predicted_cost"]) / (1 + CONVERTING_BAND_FLOOR)  # the least error band is on top of it
    assert predicted == pytest.approx(float(first["measured_ms"]), rel=0.02)
