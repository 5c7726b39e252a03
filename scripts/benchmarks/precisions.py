"""One trained network as float32, float16 and int8 files: size, latency, accuracy and signal-to-noise.

Each file is timed on this computer in rounds that alternate with the float32 file of its format. Ranges for int8 come
from 64 training images; accuracy and signal-to-noise (against torch's logits) are those of the test images. Prints a
table, or with --json one document: name, figures, baselines (the float32 files), conditions. The workspace's trained
network is taken where there is one, else it is trained first. --quick: digits, a narrow network, four epochs.

Example: scripts/benchmarks/precisions.py --data imagefolder:tiny_imagenet_20.zip --workspace precisions
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import amc_mobile as amc

FLOAT32 = "float32"
RUNTIMES = {"tflite": "tflite", "onnx": "onnxruntime"}
PRECISIONS = {"tflite": (FLOAT32, "float16", "int8"), "onnx": (FLOAT32, "int8")}
CALIBRATION_IMAGES = 1500  # held apart as a search does, so that the ranges come from the same images
Figures = dict[str, float]


def file_figures(network: amc.Network, folder: Path, progress: Any, *, cpu_time: bool) -> dict[str, Figures]:
    """`format.precision` -> figures of that file. Formats whose runtime is not installed are left out."""
    data = network.split(calibration=CALIBRATION_IMAGES, reward=None, seed=0)
    images, example = data.test.normalised(), torch.zeros(network.input_shape)
    with torch.no_grad():
        reference = torch.cat([network.module(part) for part in images.split(64)]).numpy()
    installed = {conditions.runtime for conditions in amc.list_devices().hosts}
    forms = {form: all_of for form, all_of in PRECISIONS.items() if RUNTIMES[form] in installed}
    total, found = sum(map(len, forms.values())), dict[str, Figures]()
    for form, precisions in forms.items():
        device = amc.open_device("host", runtime=RUNTIMES[form])
        plain = folder / f"{FLOAT32}.{form}"
        for precision in precisions:
            progress("measure files", len(found), total, f"{form} {precision}")
            path = amc.export_module(
                network.module, example, folder / f"{precision}.{form}", precision=precision,
                images=data.calibration.normalised(),
            )  # fmt: skip
            outputs = amc.run_file(path, images.numpy())
            # float32 against itself: how far from 1 two equal files come.
            pair = amc.measure_pair(plain, path, device, cpu_time=cpu_time)
            low, high = pair.speedup_interval
            noise = np.sum((outputs - reference) ** 2)
            found[f"{form}.{precision}"] = {
                "size_mb": path.stat().st_size / 1e6, "p50_ms": pair.after.p50_ms,
                "p50_ci_high_ms": pair.after.ci_high_ms, "float32_p50_ms": pair.before.p50_ms,
                "speedup": pair.speedup, "speedup_ci_low": low, "speedup_ci_high": high,
                "top1": network.task.accuracy(torch.from_numpy(outputs), data.test.labels),
                "sqnr_db": float(10 * np.log10(np.sum(reference**2) / max(noise, 1e-30))),
            }  # fmt: skip
    progress("measure files", total, total)
    return found


def table(found: dict[str, Figures]) -> str:
    lines = [
        "| file | size, MB | p50, ms | float32 beside it, ms | speed-up (95 % CI) | top-1 | SQNR, dB |",
        "|---" * 7 + "|",
    ]
    for name, one in found.items():
        form, precision = name.split(".")
        lines.append(
            f"| .{form} {precision} | {one['size_mb']:.2f} | {one['p50_ms']:.3f} | {one['float32_p50_ms']:.3f} "
            f"| {one['speedup']:.2f}x ({one['speedup_ci_low']:.2f}-{one['speedup_ci_high']:.2f}) "
            f"| {one['top1']:.1%} | {one['sqnr_db']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="what `amc-mobile train --data` takes")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--workspace", type=Path, default=Path("precisions-workspace"))
    parser.add_argument("--cpu-time", action="store_true", help="count the thread's processor time, on busy machines")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.data, options.width, options.input_size, options.epochs = "digits", 0.25, 32, 4
    space = amc.Workspace(options.workspace)
    model = {"data": options.data, "width": options.width, "input_size": options.input_size}
    with amc.progress_bars(quiet=options.json) as progress, tempfile.TemporaryDirectory() as folder:
        if not space.trained_checkpoint.exists():
            space.train(
                options.model, epochs=options.epochs, learning_rate=0.1, batch_size=128, progress=progress, **model
            )
        network = space.network(options.model, **model)
        found = file_figures(network, Path(folder), progress, cpu_time=options.cpu_time)
    if not options.json:
        print(table(found))
        return
    rounded = {f"{name}.{key}": round(value, 5) for name, one in found.items() for key, value in one.items()}
    conditions: dict[str, Any] = {
        "model": options.model, "width": options.width, "input_size": options.input_size, "data": options.data,
        "clock": "thread CPU time" if options.cpu_time else "wall time",
        **{
            form: amc.open_device("host", runtime=RUNTIMES[form]).conditions().to_document()
            for form in {n.split(".")[0] for n in found}
        },
    }  # fmt: skip
    document = {
        "name": "precisions",
        "figures": {name: value for name, value in rounded.items() if f".{FLOAT32}." not in name},
        "baselines": {name: value for name, value in rounded.items() if f".{FLOAT32}." in name},
        "conditions": conditions,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
