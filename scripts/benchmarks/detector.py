"""A detector through the whole job: SSDLite trained on drawn shapes, half its MACs cut, fine-tuned, exported, measured.

Prints mAP at an overlap of one half (VOC, all points) of the original and after every step, the MACs, and the p50 of
the exported files on this computer. With --latency-ratio the kernels are profiled first and the latency of one runtime
is the budget: its limit, the prediction and the verdict are printed too. Killed, the same command goes on where it was;
another budget in the same workspace shares the trained network. --quick: one epoch and two plans.

Example: scripts/benchmarks/detector.py --latency-ratio 0.5 --runtime onnxruntime
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import amc_mobile as amc

BATCH_SIZE = 16  # the training set is small: more steps an epoch


def figures(options: argparse.Namespace) -> dict[str, float]:
    space = amc.Workspace(options.workspace)
    model = {"width": options.width, "input_size": options.input_size, "data": "shapes"}
    is_latency = options.latency_ratio is not None
    budget = (
        amc.Budget(latency_ratio=options.latency_ratio) if is_latency else amc.Budget(macs_ratio=options.macs_ratio)
    )
    device = amc.open_device("host", runtime=options.runtime)
    with amc.progress_bars(quiet=options.json) as progress:
        if not space.trained_checkpoint.exists():
            space.train(
                "ssdlite_mobilenet_v2", epochs=options.epochs, batch_size=BATCH_SIZE, progress=progress, **model
            )
        network = space.network("ssdlite_mobilenet_v2", **model)
        latency = space.profile(network, device, progress=progress) if is_latency else device
        name = f"detector-{'-'.join(budget.asked_of_model).replace(' ', '-')}-{options.runtime}"
        run = space.search(network, budget, latency, episodes=options.episodes, name=name, progress=progress)
        search = run.search()
        tuned = run.finetune(epochs=options.finetune_epochs, batch_size=BATCH_SIZE, progress=progress).result
        exported = run.export("tflite", "onnx", progress=progress).record
        run.report()
    found = {f"map50_{stage.replace('-', '_')}": value for stage, value in search.test_top1.items()}
    found |= {"map50_finetuned": tuned.test_top1, "original_mmacs": search.original_macs / 1e6,
              "pruned_mmacs": search.macs / 1e6}  # fmt: skip
    if is_latency:
        gate = exported.gate
        found |= {"budget_ms": gate.limit, "predicted_ms": search.predicted_cost, "ci_high_ms": gate.cost,
                  "is_within_budget": float(gate.passed)}  # fmt: skip
    for file in exported.files:
        found |= {f"{file.format}.map50": file.test_top1, f"{file.format}.parity_max_abs": file.parity.max_abs,
                  f"{file.format}.parity_same_class": file.parity.top1_agreement}  # fmt: skip
        if file.pair is not None:
            found |= {f"{file.format}.original_p50_ms": file.pair.before.p50_ms,
                      f"{file.format}.pruned_p50_ms": file.pair.after.p50_ms,
                      f"{file.format}.speedup": file.pair.speedup}  # fmt: skip
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--finetune-epochs", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--macs-ratio", type=float, default=0.5)
    parser.add_argument("--latency-ratio", type=float, help="instead of --macs-ratio, e.g. 0.5")
    parser.add_argument("--runtime", default="tflite", help="whose latency is limited: tflite or onnxruntime")
    parser.add_argument("--width", type=float, default=0.35)
    parser.add_argument("--input-size", type=int, default=48)
    parser.add_argument("--workspace", type=Path, default=Path("detector-workspace"))
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.finetune_epochs, options.episodes = 1, 1, 2
    found = figures(options)
    if options.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "figures": found}, indent=1))
        return
    for name, value in found.items():
        print(f"{name:28} {value:10.4g}")


if __name__ == "__main__":
    main()
