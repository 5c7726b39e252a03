"""How far the runner's latency of a model is from that of this package's own Python session, on this computer.

Both load the same file with the same version of the runtime, on the same core, in alternating passes of one run; the
figure is the median over the rounds of runner / Python - 1, each side of a round being the median of its samples. The
goal is 0.05. Prints a table, or with --json one document: name, figures, baselines (Python's milliseconds), conditions.
--quick measures a small network only.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from figures import print_document
from host_runner import build_host_runner, locate_library, run_on_host

from amc_mobile.device.device import Timing, time_session
from amc_mobile.device.host import HostDevice
from amc_mobile.device.runner import BenchManifest, BenchModel
from amc_mobile.errors import DeviceError
from amc_mobile.export.converters import to_onnx
from amc_mobile.models.zoo.registry import MODELS

TIMING = Timing(samples=20, min_sample_ms=0.25, warmup_runs=4, max_s=1.0)


@dataclass(frozen=True)
class Case:
    name: str
    runtime: str  # of the runner; Python's LiteRT is called tflite
    model: Path


def export(folder: Path, name: str, width: float, size: int) -> list[Case]:
    network = MODELS[name].factory(num_classes=1000, width_multiplier=width, input_size=size).eval()
    label = f"{name}_{width:g}_{size}"
    cases = [Case(label, "onnxruntime", folder / f"{label}.onnx")]
    to_onnx(network, (1, 3, size, size), cases[0].model)
    if find_spec("litert_torch"):
        from amc_mobile.export.converters import to_tflite

        cases.append(Case(label, "litert", folder / f"{label}.tflite"))
        to_tflite(network, (1, 3, size, size), cases[1].model)
    return cases


def python_p50_ms(case: Case) -> float:
    device = HostDevice("tflite" if case.runtime == "litert" else case.runtime, threads=1)
    with device.open(case.model.read_bytes()) as session:
        return statistics.median(time_session(session, TIMING))


def runner_p50_ms(case: Case, runner: Path, core: int) -> float:
    library = locate_library(case.runtime)
    manifest = BenchManifest(
        case.runtime, str(library.path), 1, 120, (BenchModel(case.name, str(case.model)),), TIMING,
        runtime_version=library.version, cores=str(core),
    )  # fmt: skip
    run = run_on_host(runner, manifest, case.model.parent)
    if len(run.results) != 1:
        raise DeviceError(f"the runner did not measure {case.name}: {run.errors or run.end}")
    return statistics.median(run.results[0].samples_ms)


def compare(case: Case, runner: Path, core: int, rounds: int) -> tuple[dict[str, float], float]:
    """The figures of one case, and Python's milliseconds."""
    sides: tuple[Callable[[], float], Callable[[], float]] = (
        lambda: python_p50_ms(case),
        lambda: runner_p50_ms(case, runner, core),
    )
    measured: tuple[list[float], list[float]] = ([], [])
    for done in range(rounds):
        for side in (0, 1) if done % 2 == 0 else (1, 0):
            measured[side].append(sides[side]())
    ratios = [ours / python for python, ours in zip(*measured, strict=True)]
    figures = {
        "difference_fraction": statistics.median(ratios) - 1,
        "runner_p50_ms": statistics.median(measured[1]),
        "runner_lowest_ms": min(measured[1]),
        "python_lowest_ms": min(measured[0]),
    }
    return figures, statistics.median(measured[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [("mobilenet_v2", 0.5, 32)] if options.quick else [("mobilenet_v2", 0.5, 32), ("mobilenet_v2", 1.0, 224)]
    rounds = 10 if options.quick else 20
    core = max(os.sched_getaffinity(0))
    figures: dict[str, float] = {}
    baselines: dict[str, float] = {}
    runner = build_host_runner()
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for shape in shapes for case in export(Path(folder), *shape)]
        os.sched_setaffinity(0, {core})
        for case in cases:
            found, python_ms = compare(case, runner, core, rounds)
            figures |= {f"{case.runtime}.{case.name}.{key}": round(value, 5) for key, value in found.items()}
            baselines[f"{case.runtime}.{case.name}.python_p50_ms"] = round(python_ms, 5)
    differences = [abs(value) for key, value in figures.items() if key.endswith("difference_fraction")]
    figures = {"largest_difference_fraction": max(differences)} | figures
    versions = {case.runtime: locate_library(case.runtime).version for case in cases}
    conditions = {
        "machine": platform.machine(), "python": platform.python_version(), "threads": 1, "core": core,
        "rounds": rounds, "samples": TIMING.samples, "versions": versions,
    }  # fmt: skip
    if options.json:
        print_document("runner_agreement", figures, conditions, baselines)
        return
    for key, value in {**figures, **baselines}.items():
        print(f"{key:60} {value:12.5f}")


if __name__ == "__main__":
    main()
