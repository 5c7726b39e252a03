"""The published Pixel 1 table, imported as a user would: how well it predicts, and what fits its budget."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from amc_mobile.latency.predictor import ShapeFit, timed_shapes
from amc_mobile.latency.table import LatencyTable
from amc_mobile.latency.table_files import foreign_conditions, from_csv
from amc_mobile.workflows.workspace import Workspace

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "benchmarks" / "pixel1_budget.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pixel1_budget_benchmark", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pixel1_budget_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(script: ModuleType) -> Path:
    data = os.environ.get("AMC_MOBILE_DATA")
    if not data:
        pytest.skip("AMC_MOBILE_DATA is not set")
    return Path(data) / script.FILE


def test_each_published_width_is_predicted_from_the_others(script: ModuleType, log: Path, tmp_path: Path) -> None:
    phone = foreign_conditions("pixel_1")
    contents = from_csv(
        log, log.read_text(), phone, kernel=["model", "layer"], ms="avg_ms", run="run", shape=script.SHAPE,
        network="model",
    )  # fmt: skip
    with LatencyTable(tmp_path / "table.sqlite") as table:
        table.add_contents(contents)
        fit = ShapeFit(timed_shapes(table.kernels(phone), table.kernel_documents()))
    errors = {network: error for network, (error, _) in fit.left_out().items()}
    assert abs(errors.pop("mobilenet")) < 0.05  # the widest: extrapolated from the others
    assert max(map(abs, errors.values())) < 0.02
    assert fit.calibration().band < 0.04


@pytest.mark.slow
def test_as_many_macs_as_published_fit_the_published_budget(script: ModuleType, log: Path, tmp_path: Path) -> None:
    network, costs, latency = script.latency_of(Workspace(tmp_path), log, "onnxruntime")
    with latency.table:
        figures, _ = script.searched(network, costs, latency, episodes=100)
    assert figures["evolution.macs_m"] >= script.PUBLISHED_MACS / 1e6
    assert figures["evolution.predicted_ms"] <= script.BUDGET_MS
