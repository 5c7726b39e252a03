"""How long a template takes for a whole model, for one kernel and for a kernel's key, against the true exporter.

Prints a table, or with --json one document: name, figures (ms of process time), baselines (seconds of the exporter),
conditions. --quick measures a narrow MobileNetV2 only.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from figures import print_document, process_s

import amc_mobile as amc


def measure(name: str, width: float, size: int, runtime: str) -> tuple[dict[str, float], dict[str, float]]:
    suffix = {"onnxruntime": ".onnx", "tflite": ".tflite"}[runtime]
    with tempfile.TemporaryDirectory() as folder:
        space, device = amc.Workspace(folder), amc.open_device("host", runtime=runtime)
        network = space.network(name, width=width, input_size=size)
        example = torch.zeros(network.input_shape)
        rng = np.random.default_rng(0)
        plan = network.groups.plan({group: int(rng.integers(2, full + 1)) for group, full in
                                    network.groups.channels.items()})  # fmt: skip
        pruned = amc.prune(network.module, plan, example)
        amc.export_module(network.module, example, Path(folder) / f"warm{suffix}")  # the converter's import
        start = time.process_time()
        amc.export_module(pruned, example, Path(folder) / f"true{suffix}")
        export_s = time.process_time() - start
        space.template(network, device)
        start = time.process_time()
        template = space.template(network, device)
        decode_s = time.process_time() - start
    widths = plan.widths
    kept = {group: np.arange(width) for group, width in plan.kept_channels.items()}
    sites = range(len(template.sites))
    rng = np.random.default_rng(0)
    plans = [rng.integers(2, template.sizes + 1) for _ in range(20)]
    start = time.process_time()
    for plan in plans:
        template.kernels(plan)
    fresh_us = (time.process_time() - start) / len(plans) / len(sites) * 1e6
    figures = {
        "ms_per_plan": process_s(lambda: template.model_at(kept), 15) * 1e3,
        "ms_per_kernel": process_s(lambda: [template.cut_at_widths(i, widths) for i in sites], 5) / len(sites) * 1e3,
        "us_per_new_kernel_key": fresh_us,
        "us_per_known_kernel_key": process_s(lambda: template.kernels(widths), 15) / len(sites) * 1e6,
        "s_per_load": decode_s,
        "kernels": float(len(sites)),
    }
    return figures, {"export_s_per_plan": export_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [("mobilenet_v2", 0.5, 32)] if options.quick else [("mobilenet_v2", 1.0, 224), ("resnet50", 1.0, 224)]
    runtimes = ["onnxruntime", *(["tflite"] if find_spec("litert_torch") else [])]
    figures: dict[str, float] = {}
    baselines: dict[str, float] = {}
    for name, width, size in cases:
        for runtime in runtimes:
            found, base = measure(name, width, size, runtime)
            figures |= {f"{name}.{runtime}.{key}": round(value, 3) for key, value in found.items()}
            baselines |= {f"{name}.{runtime}.{key}": round(value, 3) for key, value in base.items()}
    preferred = f"mobilenet_v2.{runtimes[-1]}."
    figures = {key: figures[preferred + key] for key in ("ms_per_plan", "ms_per_kernel")} | figures
    conditions = {
        "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "threads": 1,
        "cases": [f"{name} x{width} @{size}" for name, width, size in cases], "headline": preferred.rstrip("."),
    }  # fmt: skip
    if options.json:
        print_document("template", figures, conditions, baselines)
        return
    for key, value in {**figures, **baselines}.items():
        print(f"{key:55} {value:12.3f}")


if __name__ == "__main__":
    main()
