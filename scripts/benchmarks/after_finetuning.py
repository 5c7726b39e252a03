"""Accuracy after fine-tuning at equal budgets: what a search is worth against what one would do without it.

Rows: the original; plans of several policies, each fine-tuned by the same recipe; and the uniform plan trained from
scratch, random weights, for as many epochs as the original and its fine-tuning together (only where the original is
trained here). All rows of a network see the same test images. Differences to `uniform` are paired: a bootstrap draws
test images and seeds, 95 % interval. A second table says how well reward and accuracy before fine-tuning rank plans.
Goes on where it was killed: a finished cell is a line of cells.jsonl.

The ResNets are trained networks of CIFAR-10 (AMC_MOBILE_DATA names the folder), the MobileNets are trained here, on
Tiny-ImageNet-20. --quick: a small MobileNet on digits, uniform and critic, two seeds, three tenths of the MACs.

Example: scripts/benchmarks/after_finetuning.py --networks resnet20 --budgets 0.5,0.3 --unit macs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import WEIGHTS, data_folder, pretrained
from figures import print_document
from scipy.stats import spearmanr
from torch import nn

import amc_mobile as amc

ORIGINAL, UNIFORM, SCRATCH = "original", "uniform", "from scratch"
RESAMPLES = 4000


@dataclass(frozen=True)
class Trained:
    """A network that is trained here."""

    model: str
    width: float
    input_size: int
    data: str
    epochs: int


@dataclass(frozen=True)
class Cell:
    """One trained network. `right`: a 1 for each test image that it gets right. `cost`: of the budget's unit."""

    network: str
    budget: float
    row: str
    seed: int
    cost: float
    reward: float | None
    top1_before: float | None  # fine-tuning
    right: str
    cpu_s: float

    @property
    def top1(self) -> float:
        return self.right.count("1") / len(self.right)


class Judge:
    def __init__(self, options: argparse.Namespace, progress: Any) -> None:
        self.options, self.progress = options, progress
        self.folder: Path = options.workspace
        self.record = self.folder / "cells.jsonl"
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        self.cells = [Cell(**json.loads(line)) for line in lines]

    def run(self, name: str) -> None:
        """All cells of one network that are not there yet."""
        options, space = self.options, amc.Workspace(self.folder / name)
        trained = trained_here(name, options)
        network = pretrained(space, name, data_folder()) if trained is None else self.trained(space, trained)
        device = amc.open_device("host", waive=["BUSY"] if options.busy else [])
        latency = space.profile(network, device, progress=self.progress) if options.unit == "latency" else None
        if not self.has(name, 1.0, ORIGINAL, 0):
            self.add(Cell(name, 1.0, ORIGINAL, 0, 1.0, None, None, right(network, network.module), 0.0))
        # Breadth first: complete rows of one seed before the next.
        for budget in options.budgets:
            for seed in range(options.seeds):
                for policy in dict.fromkeys((UNIFORM, *options.policies)):
                    if not self.has(name, budget, policy, seed):
                        self.add(self.pruned(space, name, network, latency, budget, policy, seed))
                if trained is not None and not self.has(name, budget, SCRATCH, seed):
                    self.add(self.from_scratch(space, name, trained, budget, seed))

    def has(self, network: str, budget: float, row: str, seed: int) -> bool:
        wanted = (network, budget, row, seed)
        return any((cell.network, cell.budget, cell.row, cell.seed) == wanted for cell in self.cells)

    def add(self, cell: Cell) -> None:
        with self.record.open("a") as stream:
            stream.write(json.dumps(asdict(cell)) + "\n")
        self.cells.append(cell)
        print(
            f"{cell.network} {cell.budget:g} {cell.row} seed {cell.seed}: {cell.top1:.1%}, {cell.cpu_s:.0f} CPU s",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def trained(self, space: amc.Workspace, trained: Trained) -> amc.Network:
        settings = {"width": trained.width, "input_size": trained.input_size, "data": trained.data}
        if not space.trained_checkpoint.exists():
            space.train(
                trained.model,
                epochs=trained.epochs,
                batch_size=self.options.batch_size,
                progress=self.progress,
                **settings,
            )
        return space.network(trained.model, **settings)

    def pruned(
        self, space: amc.Workspace, name: str, network: amc.Network, latency: Any, budget: float, policy: str,
        seed: int,
    ) -> Cell:  # fmt: skip
        options, started = self.options, time.process_time()
        run = space.search(
            network, amc.Budget(**{f"{options.unit}_ratio": budget}), latency, episodes=options.episodes, policy=policy,
            seed=seed, name=self.run_name(policy, budget, seed), keep=options.keep,
            min_keep_ratio=min(0.2, budget / 2), multiple=8 if latency else 1, progress=self.progress,
        )  # fmt: skip
        found = run.search()
        run.finetune(epochs=options.finetune_epochs, batch_size=options.batch_size, progress=self.progress)
        cost = (found.measured_ms or found.predicted_cost) / found.budget.limit * budget
        return Cell(
            name, budget, policy, seed, cost, found.reward, found.test_top1["refitted"],
            right(network, run.module("finetuned")), time.process_time() - started,
        )  # fmt: skip

    def from_scratch(self, space: amc.Workspace, name: str, trained: Trained, budget: float, seed: int) -> Cell:
        """The uniform plan's network: the same family, narrower, at the same budget."""
        started = time.process_time()
        uniform = next(c for c in self.cells if (c.network, c.budget, c.row) == (name, budget, UNIFORM))
        module = space.run(self.run_name(UNIFORM, budget, uniform.seed)).module("pruned")
        torch.manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                layer.reset_parameters()
        own = amc.Workspace(self.folder / name / f"scratch-{self.options.unit}-{budget:g}-s{seed}")
        example = torch.zeros(1, 3, trained.input_size, trained.input_size)
        result = own.train(
            module, example_input=example, data=trained.data, input_size=trained.input_size, seed=seed,
            epochs=trained.epochs + self.options.finetune_epochs, batch_size=self.options.batch_size,
            progress=self.progress,
        )  # fmt: skip
        network = own.network(
            module,
            example_input=example,
            data=trained.data,
            input_size=trained.input_size,
            checkpoint=result.checkpoint,
        )
        cpu_s = time.process_time() - started
        return Cell(name, budget, SCRATCH, seed, uniform.cost, None, None, right(network, network.module), cpu_s)

    def run_name(self, policy: str, budget: float, seed: int) -> str:
        return f"{policy}-{self.options.unit}-{budget:g}-s{seed}"


@torch.no_grad()
def right(network: amc.Network, module: nn.Module) -> str:
    """A 1 for each test image that `module` gets right, else a 0."""
    images = network.dataset.test
    parts = [slice(start, start + 250) for start in range(0, len(images), 250)]
    found = torch.cat([module(images.normalised(part)).argmax(dim=1) for part in parts])
    return "".join("1" if hit else "0" for hit in (found == images.labels).tolist())


def trained_here(name: str, options: argparse.Namespace) -> Trained | None:
    """None: the network comes trained."""
    if options.quick:
        return Trained("mobilenet_v1", 0.25, 32, "digits", options.train_epochs)
    if name in WEIGHTS:
        return None
    images = data_folder() / "tiny_imagenet_20" / "tiny_imagenet_20A_dev.zip"
    return Trained(name, 0.5, 64, f"imagefolder:{images}", options.train_epochs)


def difference(cells: Sequence[Cell], others: Sequence[Cell]) -> tuple[float, float, float]:
    """Mean accuracy of `cells` over that of `others`, and the ends of its 95 % interval.

    Paired by test image and by seed: a bootstrap draws images and seeds, both with replacement.
    """
    seeds = sorted({cell.seed for cell in cells} & {cell.seed for cell in others})
    rows = [np.array([[int(hit) for hit in next(c.right for c in side if c.seed == seed)] for seed in seeds])
            for side in (cells, others)]  # fmt: skip
    gain = rows[0] - rows[1]
    rng = np.random.default_rng(0)
    draws = [
        gain[rng.integers(len(seeds), size=len(seeds))][:, rng.integers(gain.shape[1], size=gain.shape[1])].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(gain.mean()), float(low), float(high)


def figures(cells: Iterable[Cell]) -> list[dict[str, object]]:
    """A row per network, budget and kind of row: means over seeds, and the paired difference to uniform."""
    groups: dict[tuple[str, float, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.network, cell.budget, cell.row), []).append(cell)
    rows: list[dict[str, object]] = []
    for (network, budget, row), own in groups.items():
        found: dict[str, object] = {
            "network": network, "budget": budget, "row": row, "seeds": len(own), "test_images": len(own[0].right),
            "cost": float(np.mean([cell.cost for cell in own])), "top1": float(np.mean([cell.top1 for cell in own])),
            "lowest_top1": min(cell.top1 for cell in own), "highest_top1": max(cell.top1 for cell in own),
            "cpu_s": float(np.mean([cell.cpu_s for cell in own])),
        }  # fmt: skip
        if (before := [cell.top1_before for cell in own if cell.top1_before is not None]) and len(before) == len(own):
            found["top1_before"] = float(np.mean(before))
        uniform = groups.get((network, budget, UNIFORM))
        if uniform is not None and row != UNIFORM and {c.seed for c in own} & {c.seed for c in uniform}:
            found["over_uniform"], found["over_uniform_low"], found["over_uniform_high"] = difference(own, uniform)
        rows.append(found)
    return sorted(rows, key=lambda found: (str(found["network"]), -float(str(found["budget"]))))


def table(rows: Sequence[dict[str, object]]) -> str:
    lines = [
        "| network | budget | row | cost | before fine-tuning | after [lowest to highest] | seeds "
        "| over uniform (95 %), points | CPU s |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        before = f"{row['top1_before']:.1%}" if "top1_before" in row else ""
        over = ""
        if "over_uniform" in row:
            mean, low, high = (100 * float(str(row[f"over_uniform{end}"])) for end in ("", "_low", "_high"))
            over = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(
            f"| {row['network']} | {row['budget']:g} | {row['row']} | {row['cost']:.3f} | {before} | {row['top1']:.1%} "
            f"[{row['lowest_top1']:.1%} to {row['highest_top1']:.1%}] | {row['seeds']} | {over} | {row['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def proxies(cells: Iterable[Cell]) -> list[dict[str, object]]:
    """How well what is known before fine-tuning ranks the plans of a budget by their accuracy after it.

    Spearman's correlation, and top-pick regret: how far the plan with the highest value is below the best.
    """
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        if cell.reward is not None and cell.top1_before is not None:
            groups.setdefault((cell.network, cell.budget), []).append(cell)
    rows: list[dict[str, object]] = []
    for (network, budget), own in groups.items():
        after = np.array([cell.top1 for cell in own])
        for name, values in (("reward", [c.reward for c in own]), ("refitted top-1", [c.top1_before for c in own])):
            correlation = float(spearmanr(values, after).statistic) if len(own) > 2 else float("nan")
            picked = after[int(np.argmax(values))]
            rows.append({
                "network": network, "budget": budget, "plans": len(own), "known before": name, "spearman": correlation,
                "regret": float(after.max() - picked),
            })  # fmt: skip
    return rows


def proxy_table(rows: Sequence[dict[str, object]]) -> str:
    lines = ["| network | budget | plans | known before fine-tuning | Spearman | regret, points |", "|---" * 6 + "|"]
    lines += [
        f"| {row['network']} | {row['budget']:g} | {row['plans']} | {row['known before']} | {row['spearman']:.2f} "
        f"| {100 * float(str(row['regret'])):.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet56,mobilenet_v1,mobilenet_v2")
    parser.add_argument("--budgets", default="0.7,0.5,0.3,0.2", help="shares of the original's latency or MACs")
    parser.add_argument("--unit", choices=("latency", "macs"), default="latency")
    parser.add_argument("--policies", default="random,dp,netadapt,critic", help="beside uniform")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...: of search, fine-tuning and training")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--finetune-epochs", type=int, default=10)
    parser.add_argument("--train-epochs", type=int, default=40, help="of the networks that are trained here")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--keep", default="", help="groups that stay whole, e.g. residual")
    parser.add_argument("--workspace", type=Path, default=Path("after-finetuning"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.budgets, options.unit, options.policies = "digits", "0.3", "macs", "critic"
        options.seeds, options.episodes, options.finetune_epochs, options.train_epochs = 2, 20, 2, 8
    options.budgets = [float(budget) for budget in options.budgets.split(",")]
    options.policies = options.policies.split(",")
    options.workspace.mkdir(parents=True, exist_ok=True)
    with amc.progress_bars(quiet=options.json) as progress:
        judge = Judge(options, progress)
        for name in options.networks.split(","):
            judge.run(name)
    rows = figures(judge.cells)
    if not options.json:
        print(f"{table(rows)}\n\n{proxy_table(proxies(judge.cells))}")
        return
    uniform = [row for row in rows if row["row"] == UNIFORM]
    conditions = {"torch": torch.__version__, **{k: str(v) for k, v in vars(options).items() if k != "workspace"}}
    print_document(
        "after_finetuning", {"rows": rows, "proxies": proxies(judge.cells)}, conditions, {"uniform": uniform}
    )


if __name__ == "__main__":
    main()
