"""A budget in milliseconds on a device whose speed has changed since the profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bench_device import CONDITIONS, Bench, conv_ms

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "random", "--episodes", "6", "--calibration-images", "64", "--reward-images", "32")
PROFILE = """
summary = "a phone with ONNX Runtime"
priority = 1
runtime = "onnxruntime"
threads = 1
max_celsius = 35.0

[[match]]
"ro.product.model" = "Abacus"
"""
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
    gate = json.loads(out)["gate"]
    assert gate["limit"] == pytest.approx(0.7 * ORIGINAL_MS * 1.25)
    assert gate["text"].startswith("speed-up at least") and gate["text"].endswith("budget 1.429x")
    assert [(attempt["why"], attempt["rounds"], attempt["passed"]) for attempt in gate["attempts"]] == [
        ("first", 10, True)
    ]
    code, out, err = amc("report", "--json")
    assert code == 0, err
    shown = json.loads(out)["budget"]["gate"]
    assert (shown["passed"], shown["attempts"][0]["why"], shown["text"]) == (True, "first", gate["text"])


@pytest.mark.parametrize(("slowdown", "said"), [(1.37, "37 % slower"), (0.8, "25 % faster"), (1.02, "")])
def test_a_device_of_another_speed_than_its_table_is_named_with_what_to_do(
    amc: Amc, bench: Bench, slowdown: float, said: str
) -> None:
    bench.slowdown = lambda label: slowdown
    code, out, err = amc(*SEARCH, "--latency-ratio", "0.7", "--run", "moved", "--quiet")
    assert code == 0, err
    search = json.loads(Path("amc-workspace/runs/moved/search.json").read_text())
    assert search["budgets"][0]["drift_at_plan"] == pytest.approx(slowdown)
    assert f"{search['measured_ms']:.3f} ms by its measured speed-up" in out
    assert "measured" not in out.replace("by its measured speed-up", "")
    advice = "close other programs and let it cool down, then run the step again; if it stays, `amc-mobile profile`"
    for stage in ("search", "export"):
        code, text, err = amc("report")
        assert code == 0, err
        shown = json.loads(Path("amc-workspace/runs/moved/report.json").read_text())
        assert shown["predictions"]["drift"] == pytest.approx(slowdown)
        assert "the original's p50 over the plan's measured speed-up" in text
        page = Path("amc-workspace/runs/moved/report.html").read_text()
        for told in (text, page, out if stage == "search" else text):
            assert ("er than its" in told) == bool(said) and said in told.replace("\u00a0", " ")
        assert (advice in text) == (advice in out) == bool(said)
        if stage == "search":
            code, _, err = amc("export", "--onnx", "--quiet")
            assert code == 0, err


def test_a_further_device_that_became_slower_is_held_to_its_budget(
    amc: Amc, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = tmp_path / "home/device_profiles"
    profiles.mkdir(parents=True)
    (profiles / "onnx_phone.toml").write_text(PROFILE)
    monkeypatch.setenv("AMC_MOBILE_HOME", str(tmp_path / "home"))
    slowdown, original_ms = 1.25, 2 * ORIGINAL_MS - 0.05
    other = Bench(replace(CONDITIONS, device="another bench"), cost=lambda *channels: 2 * conv_ms(*channels))
    benches = {"host": bench, "onnx_phone": other}
    for module in ("profile", "budgets", "export"):
        monkeypatch.setattr(f"amc_mobile.workflows.{module}.device_of", lambda settings, *_: benches[settings.device])
    code, _, err = amc("profile", "--device", "onnx_phone", "--quiet")
    assert code == 0, err
    other.slowdown = lambda label: slowdown
    limit = 0.7 * original_ms
    search = (*SEARCH, "--device", "host", "--runtime", "onnxruntime", "--latency-ms", "100", "--run", "two",
              "--also", f"onnx_phone:{limit:.6f}", "--quiet")  # fmt: skip
    code, out, err = amc(*search)
    assert code == 0, err
    assert f"within; there the original takes {slowdown:.2f} times as long as at the profile" in out
    found = json.loads(Path("amc-workspace/runs/two/search.json").read_text())
    own, further = found["budgets"]
    assert own["drift"] == found["budget"]["drift"] == pytest.approx(1.0)
    assert further["drift"] == pytest.approx(slowdown)
    assert further["measured_ms"] == pytest.approx(further["predicted_cost"], rel=0.02)
    assert further["measured_ms"] <= limit
    code, out, err = amc("export", "--onnx", "--json", "--quiet")
    assert code == 0, err
    (gate,) = json.loads(out)["gate"]["further"]
    assert gate["passed"]
    assert gate["cost"] == pytest.approx(further["measured_ms"], rel=0.001)
    # The same search again reads what it knows, also of a device that has become fast again.
    other.slowdown = lambda label: 1.0
    code, out, err = amc(*search, "--json")
    assert code == 0, err
    assert json.loads(out)["budgets"] == found["budgets"]
