from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from amc_mobile.errors import CorruptFile, InvalidInput

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "benchmarks" / "pixel1.py"
HEADER = "model,run,layer,kind,cin,cout,hin,stride,hout,macs,tflite_op,avg_ms\n"


@pytest.fixture(scope="module")
def pixel1() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pixel1_benchmark", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pixel1_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def invented(scale: float = 1.0) -> str:
    """Four widths of a network of two pointwise layers whose latency is launch and MACs."""
    rows = []
    for model, channels in (("w16", 16), ("w32", 32), ("w48", 48), ("w64", 64)):
        for layer, size in (("pw1", 28), ("pw2", 14)):
            macs = channels * channels * size * size
            ms = scale * (0.1 + macs * 2e-7)
            rows.append(f"{model},1,{layer},pw,{channels},{channels},{size},1,{size},{macs},CONV_2D,{ms}\n")
    return HEADER + "".join(rows)


def test_a_roofline_phone_is_predicted_from_its_other_widths(pixel1: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(invented())
    figures, layers = pixel1.judge(pixel1.read(path), pixel1.predict)
    assert figures["max_error"] < 0.5
    assert abs(figures["w64.error"]) < 0.5
    assert set(layers["w32"]) == {"pw1", "pw2"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEADER, "three networks"), ("a,b\n1,2\n", "no model"), (invented().replace("pw,16", "pw,wide"), "line 2"),
        (invented(scale=-1), "not possible"), (invented() + invented().splitlines()[1] + "\n", "twice in run 1"),
    ],
)  # fmt: skip
def test_logs_that_cannot_be_used_are_refused(pixel1: ModuleType, tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(CorruptFile, match=why):
        pixel1.read(path)
    with pytest.raises(InvalidInput, match="missing"):
        pixel1.read(tmp_path / "missing.csv")


def test_a_real_pixel_is_predicted_within_two_percent(pixel1: ModuleType) -> None:
    data = os.environ.get("AMC_MOBILE_DATA")
    if not data:
        pytest.skip("AMC_MOBILE_DATA is not set")
    figures, _ = pixel1.judge(pixel1.read(Path(data) / pixel1.FILE), pixel1.predict)
    assert figures["max_error"] <= 2.0
