"""A profile beside other programs: told in text and JSON, in the band, and measured anew on a device left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_device import Bench

from amc_mobile.device.device import Neighbours
from amc_mobile.latency.calibration import BUSY_ERROR

Amc = Callable[..., tuple[int, str, str]]
TABLE = Path("amc-workspace/table.sqlite")


@pytest.fixture
def profile(amc: Amc) -> Callable[..., str]:
    """profile(*flags) profiles the network again and gives what it prints; the first time with an empty table."""
    TABLE.unlink()

    def run(*flags: str) -> str:
        code, out, err = amc("profile", "--quiet", *flags)
        assert code == 0, err
        return out

    return run


def test_a_busy_profile_warns_widens_the_band_and_is_mended_by_the_next(
    profile: Callable[..., str], bench: Bench
) -> None:
    bench.others = Neighbours(1.2, "backup (process 9)")
    busy = json.loads(profile("--json"))
    assert busy["busy"]["neighbours"] == {"cores": 1.2, "program": "backup (process 9)"}
    assert busy["busy"]["kernels"] == busy["kernels"]
    assert busy["busy"]["models"] == busy["calibration"]["models"]
    text = profile()
    assert f"Warning: {busy['kernels']} kernels and {busy['calibration']['models']} whole models" in text
    assert "other programs take 1.20 processor cores, most of it backup (process 9) [BUSY]" in text
    assert "the error band is widened" in text
    assert "next: end the other programs" in text
    shown = json.loads(profile("--json"))
    assert shown == busy  # nothing is gained by measuring again beside them

    bench.others = Neighbours(0.1)
    quiet = json.loads(profile("--json"))
    assert quiet["busy"] == {"neighbours": {"cores": 0.1, "program": None}, "kernels": 0, "models": 0}
    assert quiet["calibration"]["band"] == pytest.approx(busy["calibration"]["band"] - BUSY_ERROR)
    assert "Warning" not in profile()


def test_a_device_that_does_not_tell_gives_no_warning(profile: Callable[..., str]) -> None:
    assert json.loads(profile("--json"))["busy"] == {"neighbours": None, "kernels": 0, "models": 0}
