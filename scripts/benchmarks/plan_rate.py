"""How many plans a second the latency predictor prices, in batches and one at a time, and the memory it holds.

The kernels' latencies are computed from their MACs and bytes: what is timed does not depend on them. Prints a table, or
with --json one document: name, figures, baselines (the same sums by one dictionary look-up per kernel), conditions.
--quick prices a narrow MobileNetV2.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figures import print_document, process_s

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.plan import grid
from amc_mobile.device.host import layout_here
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.kernels.template import load_or_build
from amc_mobile.latency.kernel_fit import kernel_points
from amc_mobile.latency.predictor import LatencyPredictor
from amc_mobile.models.zoo.registry import MODELS

BATCH = 100_000


def roofline_ms(kernel: Kernel) -> float:
    return 0.001 + kernel.macs * 3e-8 + (kernel.weight_bytes + kernel.activation_bytes) * 1e-7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    width, size = (0.35, 32) if options.quick else (1.0, 224)
    model = MODELS["mobilenet_v2"].factory(num_classes=1000, width_multiplier=width, input_size=size).eval()
    groups = find_groups(model, torch.zeros(1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        template = load_or_build(model, groups, "onnxruntime", Path(folder), layout=layout_here("onnxruntime"))
    grids = [grid(int(channels)) for channels in groups.sizes]
    points = kernel_points(template, grids)
    lows = {key: roofline_ms(template.kernel_at(site, widths)) for key, (site, widths) in points.items()}
    start = time.process_time()
    predictor = LatencyPredictor(template, grids, lows)
    build_s = time.process_time() - start
    rng = np.random.default_rng(0)
    plans = np.stack([rng.choice(choices, BATCH) for choices in grids], axis=1)
    one = plans[:1]
    calls = 1000
    sites = [(site, {}) for site in template.sites]
    for plan in plans[:20]:
        for site, known in sites:
            known[tuple(plan[list(site.group_indices)].tolist())] = 0.1

    def by_dictionary() -> None:
        for plan in plans[:20]:
            widths = plan.tolist()
            sum(known[tuple(widths[g] for g in site.group_indices)] for site, known in sites)

    figures = {
        "plans_per_s": BATCH / process_s(lambda: predictor.sum_ms(plans), 9),
        "us_per_plan": process_s(lambda: [predictor.sum_ms(one) for _ in range(calls)], 9) / calls * 1e6,
        "bytes_per_kernel": predictor.held_bytes / len(template.sites),
        "build_s": build_s,
        "kernels_in_network": float(len(template.sites)),
        "kernels_measured": float(len(points)),
    }
    baselines = {"us_per_plan": process_s(by_dictionary, 9) / 20 * 1e6}
    conditions = {
        "machine": platform.machine(), "processor": platform.processor(), "python": platform.python_version(),
        "numpy": np.__version__, "threads": 1, "network": f"mobilenet_v2 x{width} @{size}", "batch": BATCH,
        "clock": "process time",
    }  # fmt: skip
    if options.json:
        print_document("plan_rate", figures, conditions, baselines)
        return
    for key, value in figures.items():
        print(f"{key:24} {value:16,.3f}")
    print(f"{'one look-up per kernel':24} {baselines['us_per_plan']:16,.3f} us_per_plan")


if __name__ == "__main__":
    main()
