"""Channel choices on pretrained CIFAR-10 ResNets: top-1 of the uniform plan at half the MACs, before any fine-tuning.

Every choice without and with reconstruction: cut (weights left as they are), one-shot (least squares on the original
network's inputs), sequential (each layer refitted on the pruned network's own inputs). Calibration, reward and test
images are kept apart; the top-1 is on all test images. The residual groups stay whole, as in the paper. Data and
weights are read from the folder that AMC_MOBILE_DATA names. --quick: ResNet-20, three choices.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cifar import data_folder, pretrained
from figures import print_document

from amc_mobile.channels import surgery
from amc_mobile.channels.plan import CHANNEL_CHOICES
from amc_mobile.channels.structure import CostModel
from amc_mobile.models.task import evaluate
from amc_mobile.pruning.channel_choice import channel_order
from amc_mobile.pruning.gram import collect_gram
from amc_mobile.pruning.reconstruction import Reconstructor, refit
from amc_mobile.report.tables import render_rows
from amc_mobile.search.budget import CostLimit
from amc_mobile.workflows.network import default_grids, load_network
from amc_mobile.workflows.workspace import Workspace

STAGES = ("cut", "one_shot", "sequential")


def measured(model: str, data: Path, choices: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By choice: top-1 of each stage, the CPU seconds of ordering; "original" has its top-1 alone."""
    settings = pretrained(model, data)
    with tempfile.TemporaryDirectory() as space:
        network = load_network(Workspace(Path(space)), settings)
    images = network.split(calibration=options.calibration_images, reward=128, seed=options.seed)
    calibration, labels = images.calibration.normalised(), images.calibration.labels
    gram = collect_gram(network.module, network.groups, calibration, seed=options.seed)
    costs = CostModel(network.module, network.groups)
    limit = options.macs_ratio * float(costs.macs(network.groups.sizes))
    widths = CostLimit(costs.macs, limit, tuple(default_grids(network, multiple=1, keep="residual")), "macs").uniform()
    found = {"original": {"top1": evaluate(network.module, images.test)}}
    for choice in choices:
        started = time.process_time()
        if choice == "random":
            rng = np.random.default_rng(options.seed)
            order = {group.name: rng.permutation(group.channels) for group in network.groups.groups}
        else:
            order = channel_order(
                network.groups, network.module, gram, method=choice, labelled=(calibration, labels)
            )  # fmt: skip
        seconds = time.process_time() - started
        reconstructor = Reconstructor(network.module, network.groups, gram, order)
        final = refit(network.module, network.groups, reconstructor.kept(widths), calibration, seed=options.seed)
        nets = (
            surgery.apply(network.module, network.groups, reconstructor.kept(widths)).eval(),
            reconstructor.build(widths),
            final,
        )
        top1 = {stage: evaluate(net, images.test) for stage, net in zip(STAGES, nets, strict=True)}
        found[choice] = {**top1, "order_cpu_s": seconds}
        print(f"{model} {choice}: {found[choice]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--choices", default=",".join((*CHANNEL_CHOICES, "random")))
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
            rows = [
                [c, *(f"{v[stage]:.1%}" for stage in STAGES), f"{v['order_cpu_s']:.1f}"]
                for c, v in found.items()
                if c != "original"
            ]
            print(f"{model}, uniform plan at {options.macs_ratio:.0%} MACs, original {found['original']['top1']:.1%}")
            print(render_rows(["choice", "cut", "one-shot", "sequential", "order CPU s"], rows), flush=True)
    if options.json:
        conditions = {
            "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
            "threads": 1, **{k: str(v) for k, v in vars(options).items() if k != "json"},
        }  # fmt: skip
        print_document("channel_choices", figures, conditions)


if __name__ == "__main__":
    main()
