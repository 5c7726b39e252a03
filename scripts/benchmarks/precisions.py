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

import torch

from amc_mobile.cli_options import progress_bars
from amc_mobile.device.host import HostDevice, installed_runtimes
from amc_mobile.export.converters import EXPORTERS, QUANTIZERS, calibration_choice
from amc_mobile.export.parity import file_logits, sqnr_db
from amc_mobile.formats import FLOAT32, FORMATS
from amc_mobile.latency.protocol import ProtocolConfig, measure_pair
from amc_mobile.models.task import logits
from amc_mobile.workflows.network import Network, load_network
from amc_mobile.workflows.training import train_network
from amc_mobile.workflows.workspace import Progress, Settings, Workspace

PRECISIONS = {"tflite": (FLOAT32, "float16", "int8"), "onnx": (FLOAT32, "int8")}
CALIBRATION_IMAGES = 1500  # held apart as a search does, so that the ranges come from the same images
Figures = dict[str, float]


def file_figures(network: Network, folder: Path, config: ProtocolConfig, progress: Progress) -> dict[str, Figures]:
    """`format.precision` -> figures of that file. Formats whose runtime is not installed are left out."""
    data = network.split(calibration=CALIBRATION_IMAGES, reward=None, seed=0)
    ranges = data.calibration.subset(calibration_choice(len(data.calibration))).normalised().numpy()
    images, reference = data.test.normalised().numpy(), logits(network.module, data.test).numpy()
    forms = {form: all_of for form, all_of in PRECISIONS.items() if FORMATS[form].runtime in installed_runtimes()}
    total, found = sum(map(len, forms.values())), dict[str, Figures]()
    for form, precisions in forms.items():
        device = HostDevice(FORMATS[form].runtime)
        plain = folder / f"{FLOAT32}.{form}"
        EXPORTERS[form](network.module, network.input_shape, plain)
        for precision in precisions:
            progress("measure files", len(found), total, f"{form} {precision}")
            path = folder / f"{precision}.{form}"
            if path != plain:
                path.write_bytes(QUANTIZERS[form](plain.read_bytes(), precision, ranges))
            outputs = file_logits(path, images)
            # float32 against itself: how far from 1 two equal files come.
            pair = measure_pair(device, plain.read_bytes(), path.read_bytes(), config)
            low, high = pair.speedup_interval
            found[f"{form}.{precision}"] = {
                "size_mb": path.stat().st_size / 1e6, "p50_ms": pair.after.p50_ms,
                "p50_ci_high_ms": pair.after.ci_high_ms, "float32_p50_ms": pair.before.p50_ms,
                "speedup": pair.speedup, "speedup_ci_low": low, "speedup_ci_high": high,
                "top1": network.task.accuracy(torch.from_numpy(outputs), data.test.labels),
                "sqnr_db": sqnr_db(outputs, reference),
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
    space = Workspace(options.workspace)
    settings = Settings(
        model=options.model, data=options.data, width_multiplier=options.width, input_size=options.input_size
    )
    config = ProtocolConfig(cpu_time=options.cpu_time)
    with progress_bars(options.json) as progress, tempfile.TemporaryDirectory() as folder:
        if not space.trained_checkpoint.exists():
            train_network(space, settings, epochs=options.epochs, learning_rate=0.1, batch_size=128, progress=progress)
        network = load_network(space, settings)
        found = file_figures(network, Path(folder), config, progress)
    if not options.json:
        print(table(found))
        return
    rounded = {f"{name}.{key}": round(value, 5) for name, one in found.items() for key, value in one.items()}
    conditions: dict[str, Any] = {
        "model": options.model, "width": options.width, "input_size": options.input_size, "data": options.data,
        "clock": "thread CPU time" if options.cpu_time else "wall time",
        **{
            form: HostDevice(FORMATS[form].runtime).conditions().to_document()
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
