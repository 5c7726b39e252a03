"""Which fine-tuning recipe is worth its CPU time: the same pruned networks, one setting changed at a time.

ResNet-20 on CIFAR-10 (AMC_MOBILE_DATA names the folder), the uniform plan at three tenths of the MACs, refitted as a
search leaves it. Printed per recipe: accuracy on the test images, mean [lowest to highest] over seeds, the difference
to the recipe of `finetune` with its 95 % interval (paired by seed and test image), epochs, and CPU seconds. Goes on
where it was killed: a finished cell is a line of cells.jsonl. --quick: one seed, two epochs.

Example: scripts/benchmarks/finetuning_recipes.py --seeds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from after_finetuning import Cell, difference, right
from cifar import data_folder, pretrained
from figures import print_document

import amc_mobile as amc
from amc_mobile.models.training import TrainConfig, train
from amc_mobile.workflows.training import DISTILL_WEIGHT, SLOWER

USUAL = "usual"
RECIPES: dict[str, dict[str, Any]] = {
    USUAL: {},
    "no distillation": {"distill_weight": 0.0},
    "distillation 0.5": {"distill_weight": 0.5},
    "distillation 0.9": {"distill_weight": 0.9},
    "temperature 1": {"temperature": 1.0},
    "temperature 2": {"temperature": 2.0},
    "averaged 0.99": {"ema_decay": 0.99},
    "not augmented": {"augment": False},
    "decay of weights 1e-4": {"weight_decay": 1e-4},
    "rate 0.05": {"learning_rate": 0.05},
    "rate 0.005": {"learning_rate": 0.005},
    "auto": {"epochs": "auto"},
}


def cell(network: amc.Network, run: amc.Run, recipe: str, seed: int, epochs: int) -> Cell:
    data = network.split(calibration=2000, reward=256, seed=seed)
    usual = TrainConfig(
        epochs=epochs, learning_rate=network.task.learning_rate / SLOWER, batch_size=64, distill_weight=DISTILL_WEIGHT,
        seed=seed, threads=1,
    )  # fmt: skip
    started, module = time.process_time(), run.module("pruned")
    reports = train(
        module, data.train, replace(usual, **RECIPES[recipe]), task=network.task, teacher=network.module,
        validate=data.reward, keep_best=True,
        on_epoch=lambda report: print(f"{recipe} {seed}: {report}", file=sys.stderr, flush=True),
    )  # fmt: skip
    cpu_s = time.process_time() - started
    return Cell("resnet20", len(reports), recipe, seed, 0.3, None, None, right(network, module), cpu_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...: of search, refit and fine-tuning")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workspace", type=Path, default=Path("finetuning-recipes"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = 1, 2
    torch.set_num_threads(1)
    space = amc.Workspace(options.workspace)
    network = pretrained(space, "resnet20", data_folder())
    record = options.workspace / f"cells-{options.epochs}.jsonl"
    cells = [Cell(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []
    for seed in range(options.seeds):
        run = space.search(
            network, amc.Budget(macs_ratio=0.3), policy="uniform", episodes=1, seed=seed, keep="", multiple=1,
            min_keep_ratio=0.1, calibration_images=2000, reward_images=256, name=f"uniform-s{seed}",
        )  # fmt: skip
        for recipe in options.recipes.split(","):
            if not any((done.row, done.seed) == (recipe, seed) for done in cells):
                cells.append(cell(network, run, recipe, seed, options.epochs))
                with record.open("a") as stream:
                    stream.write(json.dumps(asdict(cells[-1])) + "\n")
    rows = figures(cells)
    if options.json:
        print_document("finetuning_recipes", {"rows": rows}, {"torch": torch.__version__}, {"usual": rows[0]})
        return
    print("| recipe | top-1 [lowest to highest] | to the usual, points (paired, 95 %) | epochs | CPU s |")
    print("|---" * 5 + "|")
    for row in rows:
        print(
            f"| {row['recipe']} | {row['top1']:.1%} [{row['lowest']:.1%} to {row['highest']:.1%}] "
            f"| {100 * row['gain']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}) "
            f"| {row['epochs']:.0f} | {row['cpu_s']:.0f} |"
        )


def figures(cells: list[Cell]) -> list[dict[str, Any]]:
    by_recipe = {recipe: [done for done in cells if done.row == recipe] for recipe in RECIPES}
    rows = []
    for recipe, own in by_recipe.items():
        if not own:
            continue
        gain, low, high = difference(own, by_recipe[USUAL])
        top1 = [done.top1 for done in own]
        rows.append({
            "recipe": recipe, "seeds": len(own), "top1": statistics.fmean(top1), "lowest": min(top1),
            "highest": max(top1), "gain": gain, "low": low, "high": high,
            "epochs": statistics.fmean(done.budget for done in own),
            "cpu_s": statistics.fmean(done.cpu_s for done in own),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
