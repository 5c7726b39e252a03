"""Whether the paper's agent learns: the same search with its updates and without them, over seeds.

Pretrained ResNets on CIFAR-10, half the MACs, widths in steps of 1, residual groups whole (AMC_MOBILE_DATA names the
folder). Printed per policy: the best of its own plans, and the mean reward of its last 50, each as mean [lowest to
highest] over seeds; `uniform`, `shallow`, `deep` and `dp`, which every search tries first, are left out. Goes on where
it was killed. --quick: ResNet-20, two seeds, 30 episodes.

Example: scripts/benchmarks/learning_curves.py --networks resnet20 --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from cifar import data_folder, pretrained
from figures import print_document

import amc_mobile as amc
from amc_mobile.search.ddpg import DdpgAgent

LAST = 50  # episodes


def rewards(
    network: amc.Network, space: amc.Workspace, policy: str, seed: int, episodes: int, *, updates: bool
) -> list[float]:
    """Of the policy's own plans, in the order tried."""
    learn = DdpgAgent.learn
    name = f"{policy}-{'' if updates else 'no-updates-'}{episodes}-s{seed}"
    try:
        if not updates:
            DdpgAgent.learn = lambda *_: None  # type: ignore[method-assign]
        with amc.progress_bars(quiet=False) as progress:
            run = space.search(
                network, amc.Budget(macs_ratio=0.5), policy=policy, episodes=episodes, seed=seed, keep="residual",
                multiple=1, reward_images=256, name=name, progress=progress,
            )  # fmt: skip
    finally:
        DdpgAgent.learn = learn  # type: ignore[method-assign]
    frame = run.episodes()
    return [float(reward) for reward in frame.reward[frame.policy.str.startswith(policy)]]


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} [{min(values):.3f} to {max(values):.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet56")
    parser.add_argument("--policies", default="ddpg-sequential", help="any of ddpg-sequential and ddpg")
    parser.add_argument("--others", default="critic", help="policies without updates to switch off")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ...")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--workspace", type=Path, default=Path("learning-curves"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.seeds, options.episodes, options.others = "resnet20", 2, 30, ""
    torch.set_num_threads(1)
    figures: dict[str, dict[str, list[float]]] = {}
    if not options.json:
        print("| network | policy | best plan | mean of the last 50 |\n|---|---|---|---|")
    for name in options.networks.split(","):
        space = amc.Workspace(options.workspace / name)
        network = pretrained(space, name, data_folder())
        rows = [(policy, updates) for policy in options.policies.split(",") for updates in (True, False)]
        rows += [(policy, True) for policy in options.others.split(",") if policy]
        for policy, updates in rows:
            runs = [
                rewards(network, space, policy, seed, options.episodes, updates=updates)
                for seed in range(options.seeds)
            ]
            row = f"{name} | {policy}{'' if updates else ' without updates'}"
            best, last = [max(run) for run in runs], [statistics.fmean(run[-LAST:]) for run in runs]
            figures[row] = {"best": best, "last": last}
            if not options.json:
                print(f"| {row} | {spread(best)} | {spread(last)} |", flush=True)
    if options.json:
        baselines = {row: found for row, found in figures.items() if "without updates" in row}
        print_document(
            "learning_curves", figures, {"torch": torch.__version__, "episodes": options.episodes}, baselines
        )


if __name__ == "__main__":
    main()
