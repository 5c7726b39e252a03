"""A budget in milliseconds on a device whose speed has changed since the profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_device import Bench, conv_ms

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "random", "--episodes", "6", "--calibration-images", "64", "--reward-images", "32")
ORIGINAL_MS = 0.05 + conv_ms(3, 32) + conv_ms(32, 64)


def test_the_plan_found_meets_the_budget_as_the_gate_reads_it(amc: Amc, bench: Bench) -> None:
    slowdown = 1.25
    bench.slowdown = lambda label: slowdown
    limit = 0.7 * ORIGINAL_MS
    code, out, err = amc(*SEARCH, "--latency-ms", f"{limit:.6f}", "--run", "drifted", "--quiet")
    assert code == 0, err
    assert f"the original takes {slowdown:.2f} times as long as at the profile" in out
    found = json.loads(Path("amc-workspace/runs/drifted/search.json").read_text())
    assert found["budget"]["drift"] == pytest.approx(slowdown)
    assert found["budget"]["reference_ms"] == pytest.approx(ORIGINAL_MS * slowdown)
    assert found["measured_ms"] <= limit
    code, out, err = amc("export", "--onnx", "--json", "--quiet")
    assert code == 0, err
    gate = json.loads(out)["gate"]
    assert gate["passed"]
    assert gate["cost"] == pytest.approx(found["measured_ms"], rel=0.001)
    # The same search again reads what it knows.
    code, out, err = amc(*SEARCH, "--latency-ms", f"{limit:.6f}", "--run", "drifted", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["budget"] == found["budget"]


def test_a_ratio_is_of_the_original_at_any_speed(amc: Amc, bench: Bench) -> None:
    bench.slowdown = lambda label: 1.25
    code, out, err = amc(*SEARCH, "--latency-ratio", "0.7", "--run", "ratio", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["budget"]["drift"] == 1.0
    code, out, err = amc("export", "--onnx", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["gate"]["limit"] == pytest.approx(0.7 * ORIGINAL_MS * 1.25)
