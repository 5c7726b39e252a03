"""How far predicted latencies of held-out random plans are from the measured ones, per network and runtime.

Every method is fitted on the same kernels and calibrated on the same whole models, and judged on plans that neither
has seen: mean, 95th percentile and largest absolute relative error, and how many lie within the error band, all in
percent of the quiet machine's latency (lowest 20th percentile over passes). Prints a table, or with --json one
document: name, figures (ours), baselines (the other methods), conditions.

--quick measures one narrow network on few plans. --cpu-time counts the thread's processor time, for busy machines.
--busy profile or --busy plans: a memory-hungry program runs beside while kernels and calibration models, or the
held-out plans, are measured. --precision int8 or float16 quantises the files. --seed draws other plans. --keep FOLDER
holds on to what was measured, and goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from interpolators import all_methods
from numpy.typing import NDArray
from torch import Tensor, nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.plan import grid
from amc_mobile.device.conditions import readable
from amc_mobile.device.host import HostDevice, installed_runtimes
from amc_mobile.device.phone_state import BUSY
from amc_mobile.formats import FLOAT32, PRECISIONS
from amc_mobile.kernels.template import load_or_build
from amc_mobile.latency import calibration
from amc_mobile.latency.calibration import ModelPoint
from amc_mobile.latency.measurement import NOISY, ModelRequest
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.protocol import ProtocolConfig, measure_models
from amc_mobile.latency.table import LatencyTable
from amc_mobile.models.zoo.registry import MODELS
from amc_mobile.workflows.workspace import silent

Widths = NDArray[np.int64]
Floats = NDArray[np.float64]


# Copies a quarter of a gigabyte without end, as a browser or a compiler beside would.
NEIGHBOUR = """
import numpy as np
a = np.ones(1 << 25, np.float32)
b = a.copy()
while True:
    np.copyto(b, a)
    np.copyto(a, b)
"""


@contextmanager
def neighbour(runs: bool) -> Iterator[None]:
    if not runs:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) as process:
        try:
            yield
        finally:
            process.kill()


class Excited(nn.Module):
    """Inverted residual block with squeeze-and-excite and hard swish."""

    def __init__(self, channels: int, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.Hardswish())
        squeezed = max(8, wide // 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, wide, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Conv2d(wide, out, 1)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        inner = self.depthwise(self.expand(x))
        outer = self.project(inner * self.gate(inner))
        return x + outer if self.adds else outer


def squeeze_excite() -> nn.Module:
    blocks = [
        Excited(16, 64, 24, 2), Excited(24, 96, 24, 1), Excited(24, 96, 40, 2), Excited(40, 160, 40, 1),
        Excited(40, 240, 80, 2), Excited(80, 320, 80, 1), Excited(80, 480, 112, 1),
    ]  # fmt: skip
    head = [nn.Conv2d(112, 480, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(480, 1000)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish(), *blocks, *head)


def built_in(name: str, width: float, size: int, classes: int) -> nn.Module:
    return MODELS[name].factory(num_classes=classes, width_multiplier=width, input_size=size)


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v2": (partial(built_in, "mobilenet_v2", 1.0, 96, 1000), 96),
    "resnet56": (partial(built_in, "resnet56", 1.0, 32, 10), 32),
    "squeeze_excite": (squeeze_excite, 96),
}
QUICK = {"mobilenet_v2_x0.35": (partial(built_in, "mobilenet_v2", 0.35, 64, 10), 64)}


def random_plans(sizes: Widths, grids: list[Widths], count: int, seed: int) -> list[Widths]:
    """On the grid; a quarter of them pruned strongly."""
    rng = np.random.default_rng(seed)
    plans = []
    for number in range(count):
        middle = rng.uniform(0.2, 0.4) if number % 4 == 0 else rng.uniform(0.3, 1.0)
        wanted = sizes * np.clip(middle + rng.uniform(-0.25, 0.25, len(sizes)), 0.0, 1.0)
        plans.append(np.array([g[np.abs(g - w).argmin()] for g, w in zip(grids, wanted, strict=True)], dtype=np.int64))
    return plans


def judged(predicted: Floats, true: Floats, band: float) -> dict[str, float]:
    errors = np.abs(predicted / true - 1) * 100
    return {
        "mape": float(errors.mean()),
        "p95": float(np.percentile(errors, 95)),
        "max_error": float(errors.max()),
        "coverage": float((errors <= band * 100).mean() * 100),
        "band": band * 100,
    }


def measure(
    build: Callable[[], nn.Module],
    size: int,
    runtime: str,
    plans: int,
    seed: int,
    config: ProtocolConfig,
    folder: Path,
    busy: str,
    precision: str,
) -> tuple[dict[str, dict[str, float]], dict[str, float | str]]:
    """Method -> figures, and facts of the measuring."""
    torch.manual_seed(0)
    model = build().eval()
    groups = find_groups(model, torch.zeros(1, 3, size, size))
    grids = [grid(int(channels)) for channels in groups.sizes]
    held_out = random_plans(groups.sizes, grids, plans, 1000 + seed)
    # What is predicted and what is true are measured beside the same programs, unless the question is another.
    device = HostDevice(runtime, waived=() if busy else (BUSY,))
    template = load_or_build(model, groups, runtime, folder, precision=precision, layout=device.conditions().layout)
    suffix = "" if precision == FLOAT32 else f" {precision}"
    with LatencyTable(folder / f"{'cpu' if config.cpu_time else 'wall'}.sqlite") as table:
        latency = LatencyModel(template, device, table, grids, grids, f"benchmark{suffix}", config)
        requests = [
            ModelRequest(f"held out{suffix}", tuple(plan.tolist()), partial(latency.file_at, plan)) for plan in held_out
        ]
        # In one shuffled run with the models of the calibration: the machine's state must not tell the two apart,
        # unless that is the question.
        together = [*latency.calibration_requests(), *requests] if not busy else requests
        with neighbour(busy == "plans"):
            measured = measure_models(device, {r.key: r for r in together}, table=table, config=config)
        with neighbour(busy == "profile"):
            kernels = latency.measure_missing(silent)
        true = np.array([measured[request.key].low_ms for request in requests])
        points = latency.points()
        stored = latency.table.kernels(latency.conditions)
        widths = np.array(held_out)
        known = np.array([point.widths for point in points])
        fitted, predictor = latency.calibration, latency.predictor
        found = {"ours": judged(latency.p50_ms(widths) / fitted.p50_ratio, true, fitted.band)}
        for method, total in all_methods(template, predictor).items():
            sums = total(known)
            # The same robust fit on the same models; MACs are brought to the size of a latency first.
            unit = float(np.median([p.low_ms for p in points]) / np.median(sums)) if method == "macs_only" else 1.0
            zeros = np.zeros(len(points))
            other = calibration.fit(
                [ModelPoint(p.widths, p.low_ms, p.low_ms) for p in points], sums * unit, zeros, zeros
            )
            found[method] = judged(other.low_ms(total(widths) * unit), true, other.band)
        facts: dict[str, float | str] = {
            "processor": latency.conditions.soc,
            "layout": str(readable(latency.conditions.to_document()).get("layout", "")),
            "corrections": ", ".join(f"{term.name}: {'used' if term.kept else 'not used'}" for term in fitted.terms),
            "kernels": float(kernels),
            "kernel_passes": float(sum(len(k.passes) for k in stored.values())),
            "noisy_kernels": float(sum(NOISY in k.flags for k in stored.values())),
            "neighbour_cores": most.cores if (most := device.most_neighbours()) else 0.0,
            "busy_passes": float(sum(one.busy for k in stored.values() for one in k.passes)),
            "noisy_models": float(sum(NOISY in measured[r.key].flags for r in requests)),
            "fastest_ms": float(true.min()), "slowest_ms": float(true.max()),
        }  # fmt: skip
    return found, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--busy", choices=["profile", "plans"], default="")
    parser.add_argument("--plans", type=int, default=0, help="held-out plans per network and runtime")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one network by name")
    parser.add_argument("--runtime", help="one runtime by name")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, default=FLOAT32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = replace(ProtocolConfig(), cpu_time=options.cpu_time)
    count = options.plans or (12 if options.quick else 40)
    cases = QUICK if options.quick else {k: v for k, v in CASES.items() if options.only in (None, k)}
    figures: dict[str, float] = {}
    baselines: dict[str, float] = {}
    facts: dict[str, dict[str, float | str]] = {}
    for name, (build, size) in cases.items():
        for runtime in [r for r in installed_runtimes() if options.runtime in (None, r)]:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(options.keep or temporary) / name
                found, facts[f"{name}.{runtime}"] = measure(
                    build, size, runtime, count, options.seed, config, folder, options.busy, options.precision
                )
            for method, numbers in found.items():
                into, prefix = (figures, "") if method == "ours" else (baselines, f"{method}.")
                into |= {f"{name}.{runtime}.{prefix}{key}": round(value, 3) for key, value in numbers.items()}
            if not options.json:
                show(f"{name} {runtime}", found, facts[f"{name}.{runtime}"])
    worst = {key: max(v for k, v in figures.items() if k.endswith(key)) for key in ("mape", "p95", "max_error")}
    worst["coverage"] = min(v for k, v in figures.items() if k.endswith("coverage"))
    conditions = {
        "device": HostDevice(installed_runtimes()[0]).conditions().soc, "machine": platform.machine(),
        "python": platform.python_version(), "threads": 1, "plans": count, "seed": options.seed, "unit": "percent",
        "precision": options.precision,
        "clock": "thread CPU time" if options.cpu_time else "wall time", "nice": os.nice(0),
        "busy": options.busy, "load_average": os.getloadavg()[0],
        "statistic": "lowest 20th percentile over passes", "cases": facts,
    }  # fmt: skip
    if options.json:
        document = {
            "name": "latency_prediction", "figures": worst | figures, "baselines": baselines, "conditions": conditions,
        }  # fmt: skip
        print(json.dumps(document, indent=1))


def show(title: str, found: dict[str, dict[str, float]], facts: dict[str, float | str]) -> None:
    told = [f"{key} {value if isinstance(value, str) else format(value, 'g')}" for key, value in facts.items()]
    print(f"{title}: {', '.join(told)}")
    print(f"  {'%':16}" + "".join(f"{key:>10}" for key in found["ours"]))
    for method, numbers in found.items():
        print(f"  {method:16}" + "".join(f"{value:10.2f}" for value in numbers.values()))


if __name__ == "__main__":
    main()
