"""Which form prices kernels between measured points: rooflines and steps, or the points alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recorded_tables import SMALL_NET, kernel_ms, opened, phone, small_net

from amc_mobile.channels.plan import PruningPlan
from amc_mobile.device.device import Pass
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.model import ROOFLINE, LatencyModel
from amc_mobile.latency.predictor import LatencyPredictor

Cost = Callable[[Kernel], float]
WholeMs = Callable[[LatencyModel, dict[str, float], np.ndarray], np.ndarray]


def profiled(folder: Path, cost: Cost, whole_ms: WholeMs) -> LatencyModel:
    """A latency model over a table with the kernels of a profile at `cost`, and its whole models at `whole_ms`."""
    space, settings = small_net(folder)
    (folder / "net.py").write_text(SMALL_NET.replace("32", "128"))  # with widths between the measured ones
    latency = opened(space, settings, phone())
    kernels = [latency.template.kernel_at(site, widths) for site, widths in latency.kernel_places().values()]
    costs = {kernel.key: cost(kernel) for kernel in kernels}
    latency.table.add_kernels(kernels)
    timed = [(key, Pass((ms,) * 4)) for key, ms in costs.items()]
    latency.table.add_passes(latency.conditions, [one for one in timed for _ in range(3)], warmup_runs=4)
    requests = latency.calibration_requests()
    wholes = whole_ms(latency, costs, np.array([request.widths for request in requests]))
    latency.table.add_models(requests)
    latency.table.add_passes(
        latency.conditions,
        [(request.key, Pass((float(ms),) * 40)) for request, ms in zip(requests, wholes, strict=True)],
        warmup_runs=5,
    )
    return latency


def between_points(latency: LatencyModel, costs: dict[str, float], widths: np.ndarray) -> np.ndarray:
    """As if latency went straight from each measured point to the next."""
    return LatencyPredictor(latency.template, latency.grids, costs, plain=True).sum_ms(widths)


def of_kernels(latency: LatencyModel, costs: dict[str, float], widths: np.ndarray) -> np.ndarray:
    return np.array([sum(stepped(kernel) for kernel in latency.template.kernels(plan)) for plan in widths])


def smooth(kernel: Kernel) -> float:
    return kernel_ms(kernel, 1.0)


def stepped(kernel: Kernel) -> float:
    """As if output channels were always filled up to the next multiple of 32."""
    out = max(1, kernel.main.out_channels)
    return smooth(kernel) * np.ceil(out / 32) * 32 / out


def ragged(kernel: Kernel) -> float:
    """No roofline describes this: up to a third more or less, by no rule."""
    rng = np.random.default_rng(int(kernel.key[:8], 16))
    return smooth(kernel) * rng.uniform(0.67, 1.33)


def test_where_rooflines_tell_nothing_the_measured_points_are_interpolated(tmp_path: Path) -> None:
    latency = profiled(tmp_path, ragged, between_points)
    assert latency.predictor.plain
    term = latency.calibration.terms[0]
    assert (term.name, term.kept) == (ROOFLINE, False)
    assert term.error_without < term.error_with
    assert latency.calibration.loo_mape == pytest.approx(term.error_without)
    latency.close()


def test_where_kernels_climb_in_steps_these_are_used(tmp_path: Path) -> None:
    latency = profiled(tmp_path, stepped, of_kernels)
    assert not latency.predictor.plain
    term = latency.calibration.terms[0]
    assert (term.name, term.kept) == (ROOFLINE, True)
    latency.close()


def test_a_latency_model_answers_for_a_plan_and_for_many_widths_alike(tmp_path: Path) -> None:
    latency = profiled(tmp_path, stepped, of_kernels)
    plan = PruningPlan.full(dict(zip(latency.template.group_names, latency.template.sizes.tolist(), strict=True)))
    p50_ms = latency.p50_ms(plan)
    assert latency.p50_ms(plan.widths[None]).tolist() == [p50_ms]
    assert latency.safe_p50_ms(plan.widths[None])[0] == p50_ms * (1 + latency.band)
    slower = latency.with_drift(1.5)
    assert slower.p50_ms(plan) == pytest.approx(1.5 * p50_ms)
    assert (latency.drift, slower.profiled_p50_ms) == (1.0, pytest.approx(latency.reference.p50_ms))
    assert [len(grid) for grid in latency.with_grids([grid[-1:] for grid in latency.grids]).grids] == [1, 1]
    latency.close()


def test_the_kernels_of_a_latency_model_are_a_data_frame(tmp_path: Path) -> None:
    latency = profiled(tmp_path, smooth, of_kernels)
    frame = latency.to_frame()
    kernels = latency.table.kernels(latency.conditions)
    assert set(frame.key) == set(kernels)
    assert {"convkxk", "linear"} <= set(frame.operator)
    slowest = frame.iloc[0]
    assert slowest.low_ms == max(kernel.low_ms for kernel in kernels.values()) == slowest.p50_ms
    assert (slowest.passes, slowest.samples, slowest.operator) == (3, 12, "convkxk")
    latency.close()
