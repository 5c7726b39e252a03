"""A whole session in int8 for ONNX Runtime, through the command line, on a device whose speed the test sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Amc = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--latency-ratio", "0.7", "--policy", "random", "--episodes", "6", "--calibration-images", "64",
          "--reward-images", "32")  # fmt: skip


def test_the_whole_job_in_int8(amc: Amc) -> None:
    def document(*words: str) -> dict[str, Any]:
        code, out, err = amc(*words, "--json", *(() if words[0] in ("report", "table") else ("--quiet",)))
        assert code == 0, err
        return dict(json.loads(out))

    assert document("profile", "--int8")["precision"] == "int8"
    labels = {kernel["label"] for entry in document("table", "show")["conditions"] for kernel in entry["kernels"]}
    assert any(label.startswith("Conv 3x3 3->") and label.endswith(" uint8") for label in labels)

    found = document(*SEARCH)
    assert found["run"] == "net.py-build-int8-onnxruntime-latency-ratio-0.7-random-s0"
    assert found["measured_ms"] <= found["budget"]["limit"]
    assert found["predicted_cost"] == pytest.approx(found["measured_ms"], rel=0.02)

    document("finetune", "--epochs", "1")
    (file,) = document("export", "--onnx", "--int8")["files"]
    path, plain = Path(file["path"]), Path(file["float32"]["path"])
    assert (file["precision"], path.name, plain.name) == ("int8", "model_int8.onnx", "model.onnx")
    assert path.stat().st_size < plain.stat().st_size
    assert file["sqnr_db"] > 20
    assert file["not_delegated"] is None  # XNNPACK is TFLite's
    assert file["pair"]["after"]["p50_ms"] == pytest.approx(found["measured_ms"])

    reported = document("report")
    assert "int8" in reported["model"]
    assert [stage["name"] for stage in reported["stages"]][-2:] == ["onnx float32", "onnx int8"]
    assert reported["files"][0]["sqnr_db"] == pytest.approx(file["sqnr_db"])


def test_a_search_that_cannot_succeed_leaves_no_run_behind(amc: Amc) -> None:
    code, _, err = amc("search", "--latency-ms", "0.001", "--quiet")
    assert code == 1
    assert "cannot be reached" in err
    code, _, err = amc("finetune", "--quiet")
    assert code == 2
    assert "no run yet in" in err and "run `amc-mobile search` first" in err
    code, _, err = amc("report", "--run", "net.py-build-latency-ms-0.001-ddpg-s0")
    assert code == 2
    assert "no run 'net.py-build-latency-ms-0.001-ddpg-s0'" in err
