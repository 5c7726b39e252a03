"""A quick first profile: a part of the work, said so, and completed by a later one that measures nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench_device import Bench

from amc_mobile.device.device import Job, Pass
from amc_mobile.latency.calibration import QUICK_BAND_FLOOR

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--policy", "uniform", "--episodes", "2", "--calibration-images", "64", "--reward-images", "32",
          "--latency-ratio", "0.7", "--untrained", "--quiet")  # fmt: skip


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


def profile(amc: Amc, *flags: str) -> dict[str, Any]:
    code, out, err = amc("profile", "--json", "--quiet", *flags)
    assert code == 0, err
    return json.loads(out)


def test_a_quick_profile_says_so_and_a_full_one_completes_it(amc: Amc, made: Counter[str]) -> None:
    table = Path("amc-workspace/table.sqlite")
    table.unlink()
    whole = profile(amc)
    alone = Counter(made)
    assert whole["quick"] is None
    table.unlink()
    made.clear()

    quick = profile(amc, "--quick")
    assert quick["kernels"] < whole["kernels"] / 1.5
    models = whole["calibration"]["models"] - quick["calibration"]["models"]
    assert models > 0
    assert quick["quick"] == {"lacking_kernels": whole["kernels"] - quick["kernels"], "lacking_models": models}
    assert quick["calibration"]["band"] >= QUICK_BAND_FLOOR > whole["calibration"]["band"]
    assert made.total() < alone.total() / 2
    code, out, _ = amc("profile", "--quick", "--quiet")
    assert code == 0 and "Quick profile: " in out
    assert "next: run `amc-mobile profile` without --quick, which measures the rest" in out

    code, _, err = amc(*SEARCH, "--run", "early")
    assert code == 0, err
    code, out, _ = amc("report", "--json")
    assert code == 0 and json.loads(out)["predictions"]["quick"] is True
    code, out, _ = amc("report")
    assert "The latency table is from a quick profile" in out

    before = Counter(made)
    completed = profile(amc)
    assert completed["calibration"]["scale"] == pytest.approx(whole["calibration"]["scale"])
    assert completed["calibration"]["band"] == whole["calibration"]["band"]
    assert all(completed[key] == whole[key] for key in ("kernels", "quick", "flags", "busy"))
    added = made - before
    assert added.total() > 0
    code, out, _ = amc("profile", "--quick", "--quiet")
    assert "Quick profile" not in out  # nothing lacks any more
    code, out, err = amc(*SEARCH, "--run", "late")
    assert code == 0, err
    code, out, _ = amc("report", "--json")
    assert json.loads(out)["predictions"]["quick"] is False


def test_what_a_quick_profile_measured_is_not_measured_again(amc: Amc, made: Counter[str]) -> None:
    table = Path("amc-workspace/table.sqlite")
    table.unlink()
    profile(amc)
    alone = Counter(made)
    table.unlink()
    made.clear()
    profile(amc, "--quick")
    profile(amc)
    assert +made == +alone
