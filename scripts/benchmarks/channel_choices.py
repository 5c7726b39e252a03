"""Channel choices on pretrained CIFAR-10 ResNets: top-1 of the uniform plan at half the MACs, before any fine-tuning.

Every choice without and with reconstruction: cut (weights left as they are), one-shot (least squares on the original
network's inputs), sequential (each layer refitted on the pruned network's own inputs; the one-shot network where that
is nearer to the original). Random channels are cut, and refitted without one-shot. Calibration, reward and test images
are kept apart; the top-1 is on all test images. The residual groups stay whole, as in the paper. Data and
weights are read from the folder that AMC_MOBILE_DATA names. --quick: ResNet-20, three choices.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cifar import data_folder, pretrained
from figures import print_document

import amc_mobile as amc

STAGES = ("cut", "one_shot", "sequential")


def measured(model: str, data: Path, choices: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By choice: top-1 of each stage; "original" has its top-1 alone."""
    with tempfile.TemporaryDirectory() as folder:
        space = amc.Workspace(folder)
        network = pretrained(space, model, data)
        example = torch.zeros(network.input_shape)
        images = network.split(calibration=options.calibration_images, reward=None, seed=options.seed)

        def top1(module: torch.nn.Module) -> float:
            return amc.evaluate(module, images.test)

        figures = {"original": {"top1": top1(network.module)}}
        for choice in [choice for choice in choices if choice != "random"] or ["l1"]:  # the plan is the same for all
            run = space.search(
                network, amc.Budget(macs_ratio=options.macs_ratio), policy="uniform", episodes=1, multiple=1,
                keep="residual", channel_choice=choice, calibration_images=options.calibration_images,
                seed=options.seed, name=choice,
            )  # fmt: skip
            plan, found = run.plan(), run.search().test_top1
            cut = top1(amc.prune(network.module, plan, example))
            figures[choice] = {"cut": cut, "one_shot": found["one-shot"], "sequential": found["refitted"]}
            print(f"{model} {choice}: {figures[choice]}", file=sys.stderr, flush=True)
        if "random" in choices:
            rng = np.random.default_rng(options.seed)
            kept = {
                group: tuple(sorted(rng.permutation(plan.channels[group])[:count].tolist()))
                for group, count in plan.kept_channels.items()
            }
            drawn = amc.PruningPlan(plan.channels, plan.kept_channels, kept)
            refitted = amc.prune(network.module, drawn, example, images=images.calibration)
            figures["random"] = {"cut": top1(amc.prune(network.module, drawn, example)), "sequential": top1(refitted)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--choices", default=",".join((*amc.CHANNEL_CHOICES, "random")))
    parser.add_argument("--macs-ratio", type=float, default=0.5)
    parser.add_argument("--calibration-images", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = data_folder()
    if options.quick:
        options.models, options.choices = "resnet20", "backward,lasso,l1"
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for model in options.models.split(","):
        found = measured(model, root, options.choices.split(","), options)
        figures |= {f"{model}.{c}.{k}": round(v, 5) for c, values in found.items() for k, v in values.items()}
        if not options.json:
            print(f"{model}, uniform plan at {options.macs_ratio:.0%} MACs, original {found['original']['top1']:.1%}")
            rows = [
                [choice, *(found[choice].get(stage) for stage in STAGES)] for choice in found if choice != "original"
            ]
            frame = pd.DataFrame(rows, columns=["choice", *STAGES])
            print(frame.to_string(index=False, float_format="{:.1%}".format, na_rep=""), flush=True)
    if options.json:
        conditions = {
            "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
            "threads": 1, **{k: str(v) for k, v in vars(options).items() if k != "json"},
        }  # fmt: skip
        print_document("channel_choices", figures, conditions)


if __name__ == "__main__":
    main()
