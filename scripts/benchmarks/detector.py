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

from amc_mobile.cli_options import progress_bars
from amc_mobile.workflows.export import export_run
from amc_mobile.workflows.profile import profile_device
from amc_mobile.workflows.report import report_run
from amc_mobile.workflows.runs import run_name
from amc_mobile.workflows.search import search_plan
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.training import finetune_run, train_network
from amc_mobile.workflows.workspace import Settings, Workspace

BATCH_SIZE = 16  # the training set is small: more steps an epoch


def figures(options: argparse.Namespace) -> dict[str, float]:
    space = Workspace(options.workspace)
    settings = Settings(
        model="ssdlite_mobilenet_v2", data="shapes", width_multiplier=options.width, input_size=options.input_size,
        runtime=options.runtime,
    )  # fmt: skip
    budget = {"latency_ratio": options.latency_ratio} if options.latency_ratio else {"macs_ratio": options.macs_ratio}
    search = SearchConfig(**budget, policy="critic", episodes=options.episodes)
    run = run_name("detector", search.asked, options.runtime)
    with progress_bars(options.json) as progress:
        if not space.trained_checkpoint.exists():
            train_network(space, settings, epochs=options.epochs, batch_size=BATCH_SIZE, progress=progress)
        if options.latency_ratio:
            profile_device(space, settings, progress=progress)
        found = search_plan(space, settings, search, run=run, progress=progress).document()
        tuned = finetune_run(
            space, run=run, epochs=options.finetune_epochs, batch_size=BATCH_SIZE, progress=progress
        ).document()
        exported = export_run(space, run=run, formats=["tflite", "onnx"], progress=progress).document()
        report_run(space, run=run)
    figures = {f"map50_{stage.replace('-', '_')}": value for stage, value in found["test_top1"].items()}
    figures |= {"map50_finetuned": tuned["test_top1"], "original_mmacs": found["original_macs"] / 1e6,
                "pruned_mmacs": found["macs"] / 1e6}  # fmt: skip
    if options.latency_ratio:
        gate = exported["gate"]
        figures |= {"budget_ms": gate["limit"], "predicted_ms": found["predicted_cost"], "ci_high_ms": gate["cost"],
                    "is_within_budget": float(gate["passed"])}  # fmt: skip
    for file in exported["files"]:
        name, pair = file["format"], file["pair"]
        figures |= {f"{name}.map50": file["test_top1"], f"{name}.parity_max_abs": file["parity"]["max_abs"],
                    f"{name}.parity_same_class": file["parity"]["top1_agreement"]}  # fmt: skip
        if pair:
            figures[f"{name}.original_p50_ms"] = pair["before"]["p50_ms"]
            figures[f"{name}.pruned_p50_ms"] = pair["after"]["p50_ms"]
            figures[f"{name}.speedup"] = pair["speedup"]
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


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
