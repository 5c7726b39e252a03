"""The main job on real images: the default search beside the paper's agent and the uniform plan, stage by stage.

Runs `train`, `profile`, and for each policy `search`, `finetune`, `export` and `report` in one workspace, then prints
latency and accuracy as the README's table, or with --json one document: name, figures, baselines (the other policies),
conditions. Goes on where it was killed. --quick: digits and a few episodes.

Example: scripts/benchmarks/main_job.py --data imagefolder:tiny_imagenet_20.zip --workspace tiny
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

POLICIES = ("critic", "ddpg", "uniform")  # the first is the default
FULL = {"width": "0.5", "size": "64", "epochs": "24", "episodes": "300", "finetune": "10"}
QUICK = {"width": "0.25", "size": "32", "epochs": "4", "episodes": "12", "finetune": "1"}


def amc(workspace: Path, *arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, "-m", "amc_mobile", *arguments]
    print(f"$ amc-mobile {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run([*command, "--workspace", str(workspace)], stdout=sys.stderr)
    if done.returncode not in allowed:
        raise SystemExit(done.returncode)


def run_all(workspace: Path, data: str, budget: str, plan: dict[str, str]) -> None:
    network = ("--model", "mobilenet_v1", "--width", plan["width"], "--input-size", plan["size"], "--data", data)
    if not (workspace / "trained.safetensors").exists():
        amc(workspace, "train", *network, "--epochs", plan["epochs"], "--batch-size", "128", "--bf16")
    amc(workspace, "profile", "--device", "host", *network)
    for policy in POLICIES:
        folder = workspace / "runs" / policy
        budget_flags = ("--latency-ratio", budget)
        if not (folder / "search.json").exists():
            amc(workspace, "search", *budget_flags, "--policy", policy, "--episodes", plan["episodes"], "--run", policy)
        if not (folder / "finetune.json").exists():
            amc(workspace, "finetune", "--run", policy, "--epochs", plan["finetune"], "--bf16")
        if not (folder / "export.json").exists():
            # 3: the budget is not met. The table shows it.
            amc(workspace, "export", "--tflite", "--onnx", "--run", policy, allowed=(0, 3))
        amc(workspace, "report", "--run", policy)


def figures(folder: Path) -> dict[str, Any]:
    search, finetune, export = (
        json.loads((folder / f"{n}.json").read_text()) for n in ("search", "finetune", "export")
    )
    files = {file["format"]: file for file in export["files"]}
    pair = files["tflite"]["pair"]
    return {
        "top1_original": search["test_top1"]["original"],
        "top1_one_shot": search["test_top1"]["one-shot"],
        "top1_refitted": search["test_top1"]["refitted"],
        "top1_finetuned": finetune["test_top1"],
        "top1_tflite": files["tflite"]["test_top1"],
        "top1_onnx": files["onnx"]["test_top1"],
        "test_images": search["test_images"],
        "original_p50_ms": pair["before"]["p50_ms"],
        "p50_ms": pair["after"]["p50_ms"],
        "p50_ci_high_ms": pair["after"]["ci_high_ms"],
        "budget_ms": export["gate"]["limit"],
        "passed": export["gate"]["passed"],
        "speedup": pair["speedup"],
        "predicted_ms": search["predicted_cost"],
        "macs": search["macs"],
        "original_macs": search["original_macs"],
        "episodes": search["episodes"],
        "conditions": pair["after"]["conditions"],
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    any_run = results[POLICIES[0]]
    names = ("one-shot", "refitted", "fine-tuned", ".tflite", ".onnx")
    keys = ("top1_one_shot", "top1_refitted", "top1_finetuned", "top1_tflite", "top1_onnx")
    lines = [
        f"| | p50, ms | budget, ms | speed-up | MACs, M | {' | '.join(names)} |",
        "|---" * (5 + len(names)) + "|",
        f"| original | {any_run['original_p50_ms']:.3f} | | | {any_run['original_macs'] / 1e6:.1f} | "
        f"{any_run['top1_original']:.1%} |" + " |" * (len(names) - 1),
    ]
    for policy, run in results.items():
        accuracies = " | ".join(f"{run[key]:.1%}" for key in keys)
        verdict = "" if run["passed"] else " (missed)"
        lines.append(
            f"| `{policy}` | {run['p50_ms']:.3f} (CI up to {run['p50_ci_high_ms']:.3f}) "
            f"| {run['budget_ms']:.3f}{verdict} | {run['speedup']:.2f}x | {run['macs'] / 1e6:.1f} | {accuracies} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="what `amc-mobile train --data` takes")
    parser.add_argument("--workspace", type=Path, default=Path("main-job-workspace"))
    parser.add_argument("--latency-ratio", default="0.5")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    run_all(chosen.workspace, chosen.data, chosen.latency_ratio, QUICK if chosen.quick else FULL)
    results = {policy: figures(chosen.workspace / "runs" / policy) for policy in POLICIES}
    conditions = {policy: run.pop("conditions") for policy, run in results.items()}
    document = {
        "name": "main_job",
        "figures": results[POLICIES[0]],
        "baselines": {policy: results[policy] for policy in POLICIES[1:]},
        "conditions": {"data": chosen.data, "latency_ratio": float(chosen.latency_ratio), **conditions[POLICIES[0]]},
    }
    print(json.dumps(document, indent=1) if chosen.json else table(results))


if __name__ == "__main__":
    main()
