"""How many plans a second the latency predictor prices, in batches and one at a time, and the memory it holds.

A narrow MobileNetV2, whose kernels are as many as a wide one's, is profiled first, quickly; the speed does not depend
on its latencies. Prints a table, or with --json one document: name, figures, baselines (the same sums by one dictionary
look-up per kernel), conditions. --quick prices a tenth of the plans.
"""

from __future__ import annotations

import argparse
import platform
import tempfile

import numpy as np
import torch
from figures import print_document, process_s

import amc_mobile as amc

BATCH = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = BATCH // 10 if options.quick else BATCH
    with tempfile.TemporaryDirectory() as folder:
        space = amc.Workspace(folder)
        network = space.network("mobilenet_v2", width=0.35, input_size=32)
        device = amc.open_device("host", runtime="onnxruntime", waive=["BUSY"])
        latency = space.profile(network, device, quick=True)
        template, predictor, grids = latency.template, latency.predictor, latency.sampled
        measured = len(latency.to_frame())
        latency.close()
    rng = np.random.default_rng(0)
    plans = np.stack([rng.choice(choices, batch) for choices in grids], axis=1)
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
        "plans_per_s": batch / process_s(lambda: predictor.sum_ms(plans), 9),
        "us_per_plan": process_s(lambda: [predictor.sum_ms(one) for _ in range(calls)], 9) / calls * 1e6,
        "bytes_per_kernel": predictor.held_bytes / len(template.sites),
        "kernels_in_network": float(len(template.sites)),
        "kernels_measured": float(measured),
    }
    baselines = {"us_per_plan": process_s(by_dictionary, 9) / 20 * 1e6}
    conditions = {
        "machine": platform.machine(), "processor": platform.processor(), "python": platform.python_version(),
        "numpy": np.__version__, "threads": 1, "network": "mobilenet_v2 x0.35 @32", "batch": batch,
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
