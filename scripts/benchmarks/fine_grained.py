"""Fine-grained pruning of the pretrained ResNet-56 on CIFAR-10, before any fine-tuning.

At each density: the same density in every layer, and what a search finds with some episodes; accuracies with the
batch norms re-estimated on calibration images where reward images agree. The smallest density at equal accuracy is
chosen on the reward images (at most half a point below the original's top-1 on them); the test images then say once
what it has on them. Writes an SVG of that plan's densities per layer. Data and weights are read from the folder that
AMC_MOBILE_DATA names. Runs are kept in the workspace: killed, the same command goes on. --quick: ResNet-20, one
density, 12 episodes.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from cifar import WEIGHTS, data_folder, pretrained
from figures import print_document

import amc_mobile as amc

EQUAL = 0.005  # top-1 that may be lost on the reward images


def measured(
    space: amc.Workspace, network: amc.Network, images: Any, density: float, policy: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One finished search: what it found, and the final network's top-1 on the reward `images`."""
    name = f"{options.model}-{density:g}-{policy}"
    run = space.search(
        network, amc.Budget(params_ratio=density), policy=policy, episodes=options.episodes, granularity="weight",
        min_keep_ratio=options.min_density, reward_images=options.reward_images, reward=options.reward, name=name,
    )  # fmt: skip
    search, reward_top1 = run.search(), amc.evaluate(run.module("pruned"), images)
    print(f"{name}: {dict(search.test_top1)}, reward images {reward_top1:.4f}", file=sys.stderr, flush=True)
    return {"density": density, "policy": policy, "final_reward_top1": reward_top1, **vars(search), "plan": run.plan()}


def draw(plan: Any, path: Path) -> None:
    """The share of its weights that each layer keeps."""
    rows = [{"layer": name, "density": kept / plan.weights[name]} for name, kept in plan.kept_weights.items()]
    x = alt.X("density:Q", title="share of weights that stay", axis=alt.Axis(format="%"))
    path.parent.mkdir(parents=True, exist_ok=True)
    alt.Chart(pd.DataFrame(rows)).mark_bar().encode(x, alt.Y("layer:N", sort=None, title=None)).save(path)


def smallest_equal(runs: list[dict[str, Any]], policy: str) -> dict[str, Any] | None:
    """The run of the smallest density that keeps the accuracy on reward images."""
    equal = [r for r in runs if r["policy"] == policy and r["final_reward_top1"] >= r["original_reward_top1"] - EQUAL]
    return min(equal, key=lambda r: float(r["density"])) if equal else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="resnet56", choices=WEIGHTS)
    parser.add_argument("--densities", default="0.7,0.6,0.5,0.4,0.3,0.25")
    parser.add_argument("--policies", default="uniform,dp,critic")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--min-density", type=float, default=0.1, help="of convolutions; the paper's searches: 0.2")
    parser.add_argument("--reward", default="fidelity")
    parser.add_argument("--reward-images", type=int, default=1000)
    parser.add_argument("--svg", type=Path, default=Path("amc-workspace/fine-grained.svg"))
    parser.add_argument("--workspace", type=Path, default=Path("amc-workspace/fine-grained"))
    options = parser.parse_args()
    root = data_folder()
    if options.quick:
        options.model, options.densities, options.episodes = "resnet20", "0.5", 12
    torch.set_num_threads(1)
    space = amc.Workspace(options.workspace)
    network = pretrained(space, options.model, root)
    images = network.split(calibration=1500, reward=options.reward_images, seed=0).reward
    policies = options.policies.split(",")
    runs = [
        measured(space, network, images, float(density), policy, options)
        for density in options.densities.split(",")
        for policy in policies
    ]
    figures: dict[str, float] = {"original.test_top1": runs[0]["test_top1"]["original"]}
    for run in runs:
        key = f"density_{run['density']:g}.{run['policy']}"
        figures |= {f"{key}.{stage}": top1 for stage, top1 in run["test_top1"].items() if stage != "original"}
        figures[f"{key}.reward_images"] = run["final_reward_top1"]
    for policy in policies:
        if (best := smallest_equal(runs, policy)) is not None:
            figures[f"equal_accuracy.{policy}.density"] = best["parameters"] / best["original_parameters"]
            figures[f"equal_accuracy.{policy}.test_top1"] = best["test_top1"]["refitted"]
    drawn = next((run for p in reversed(policies) if (run := smallest_equal(runs, p)) is not None), runs[-1])
    draw(drawn["plan"], options.svg)
    if options.json:
        conditions = {
            "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
            "threads": 1, **{k: str(v) for k, v in vars(options).items() if k not in ("json", "workspace", "svg")},
        }  # fmt: skip
        print_document("fine_grained", figures, conditions)
        return
    rows = [
        [
            f"{run['density']:.0%}", run["policy"], str(run["evaluations"]), f"{run['test_top1']['one-shot']:.1%}",
            f"{run['test_top1']['refitted']:.1%}", f"{run['final_reward_top1']:.1%}",
        ]
        for run in runs
    ]  # fmt: skip
    print(f"{options.model}, fine-grained, original {runs[0]['test_top1']['original']:.1%} on test images, "
          f"{runs[0]['original_reward_top1']:.1%} on reward images")  # fmt: skip
    columns = ["density", "policy", "plans", "masked", "+ batch norms", "reward images"]
    print(pd.DataFrame(rows, columns=columns).to_string(index=False))
    for policy in policies:
        if (best := smallest_equal(runs, policy)) is None:
            print(f"{policy}: no density keeps the accuracy")
        else:
            ratio = best["parameters"] / best["original_parameters"]
            print(f"{policy}: {ratio:.1%} of the parameters at equal accuracy, {best['test_top1']['refitted']:.1%}")
    print(f"wrote {options.svg}: {drawn['policy']} at {drawn['density']:.0%}")


if __name__ == "__main__":
    main()
