"""Policies on pretrained CIFAR-10 ResNets at one budget: accuracy before fine-tuning, evaluations and CPU seconds.

Data and weights are read from the folder that AMC_MOBILE_DATA names. Calibration, reward and test images are kept
apart. Each policy and seed has a run folder in the workspace: killed, the same command goes on where it was.
With --latency-ratio this computer is profiled first. --quick: ResNet-20, uniform and critic, 12 episodes, one seed.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch
from cifar import data_folder, pretrained
from figures import print_document

import amc_mobile as amc

# Top-1 before fine-tuning at 50 % MACs that the AMC paper gives for ResNet-56 (of an original with 92.8 %).
PAPER = {"resnet56.uniform": 0.875, "resnet56.deep": 0.884, "resnet56.amc": 0.902}


def compared(model: str, data: Path, options: argparse.Namespace) -> amc.Comparison:
    space = amc.Workspace(options.workspace / model)
    network = pretrained(space, model, data)
    is_latency = options.latency_ratio is not None
    budget = (
        amc.Budget(latency_ratio=options.latency_ratio) if is_latency else amc.Budget(macs_ratio=options.macs_ratio)
    )
    with amc.progress_bars(quiet=options.json) as progress:
        return space.compare(
            network, budget, space.profile(network, progress=progress) if is_latency else None,
            policies=options.policies.split(","), seeds=range(options.seeds), episodes=options.episodes,
            reward_images=options.reward_images, keep=options.keep,
            multiple=options.multiple or (8 if is_latency else 1), progress=progress,
        )  # fmt: skip


def figures_of(model: str, comparison: amc.Comparison) -> dict[str, float]:
    figures: dict[str, float] = {}
    for policy in comparison.policies:
        for key in ("reward", "one_shot_top1", "refitted_top1", "macs", "measured_ms", "evaluations", "cpu_s"):
            if (value := policy.averages[key]) is not None:
                figures[f"{model}.{policy.policy}.{key}"] = round(value.mean, 5)
                figures[f"{model}.{policy.policy}.{key}_std"] = round(value.std, 5)
        for cut in (100, 200, 300):
            if (best := policy.averages[f"best_reward_{cut}"]) is not None:
                figures[f"{model}.{policy.policy}.best_reward_{cut}"] = round(best.mean, 5)
    if comparison.finished:
        figures[f"{model}.original_top1"] = comparison.finished[0].original_top1
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--policies", default="uniform,random,ddpg,evolution,critic,dp")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--macs-ratio", type=float, default=0.5)
    parser.add_argument("--latency-ratio", type=float, help="a budget on measured latency instead")
    parser.add_argument("--reward-images", type=int)
    parser.add_argument("--multiple", type=int, help="of kept channels; default 1 for MACs, 8 for latency")
    parser.add_argument("--keep", default="residual", help="groups that stay whole; the paper cuts inner channels only")
    parser.add_argument("--workspace", type=Path, default=Path("amc-workspace/compare-cifar"))
    options = parser.parse_args()
    root = data_folder()
    if options.quick:
        options.models, options.policies, options.episodes, options.seeds = "resnet20", "uniform,critic", 12, 1
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for model in options.models.split(","):
        comparison = compared(model, root, options)
        figures |= figures_of(model, comparison)
        if not options.json:
            print(comparison.text(), flush=True)
    conditions = {
        "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "threads": 1,
        "test_images": 500, **{k: str(v) for k, v in vars(options).items() if k not in ("json", "workspace")},
    }  # fmt: skip
    if options.json:
        print_document("compare_cifar", figures, conditions, PAPER)


if __name__ == "__main__":
    main()
