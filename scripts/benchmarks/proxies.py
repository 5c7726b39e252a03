"""What, known before fine-tuning, tells which plan is the most accurate after it.

Plans of equal cost: those of a `critic` search at even steps of its rewards, `uniform`, `shallow`, `deep`, `dp`, and
random ones; each is fine-tuned by the same recipe. Proxies, from the reward images alone: one-shot fidelity (the reward
of a search) and accuracy; both after the batch norms' statistics are re-estimated, as EagleEye does; both after refit;
accuracy after one epoch of fine-tuning; the sum of reconstruction errors that `dp` minimises; parameters. Printed per
proxy: Spearman's correlation with the accuracy on test images after fine-tuning, with a 95 % bootstrap interval over
plans, top-pick regret in points, and CPU seconds per plan. Goes on where it was killed: a plan is a line of a file.
Pretrained ResNets on CIFAR-10 (AMC_MOBILE_DATA names the folder). --quick: six plans, two epochs.

Example: scripts/benchmarks/proxies.py --network resnet20 --macs-ratio 0.3
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import WEIGHTS, data_folder, pretrained
from figures import print_document
from scipy.stats import spearmanr
from torch import nn

import amc_mobile as amc
from amc_mobile.models.task import evaluate, logits
from amc_mobile.models.training import TrainConfig, train
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.pruning.magnitude import reestimated
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.policies import make_policy
from amc_mobile.search.reward import fidelity
from amc_mobile.workflows.network import default_grids
from amc_mobile.workflows.plans import ChannelPlans, PlanScorer, Preparations
from amc_mobile.workflows.training import DISTILL_WEIGHT, SLOWER
from amc_mobile.workflows.workspace import silent

AFTER = "after fine-tuning"
EPISODES = 150
RESAMPLES = 4000


def candidates(plans: ChannelPlans, budget: CostLimit, scorer: PlanScorer, count: int) -> list[list[int]]:
    """Widths of `count` different plans: a quarter random ones, the rest from a search, worst to best."""
    policy = make_policy("critic", plans.facts(), budget, episodes=EPISODES, errors=plans.errors())
    tried: dict[tuple[int, ...], float] = {}
    seeds = len(policy.seeds)
    for _ in range(EPISODES):
        widths = policy.propose(budget)
        reward = scorer(widths).reward
        policy.observe(widths, reward)
        tried[tuple(widths.tolist())] = reward
    rng = np.random.default_rng(0)
    drawn = [budget.scale(rng.uniform(budget.smallest() / budget.full, 1)).tolist() for _ in range(count // 4)]
    first, own = list(tried)[:seeds], sorted(list(tried)[seeds:], key=lambda plan: tried[plan])
    spread = np.linspace(0, len(own) - 1, max(count - len(first) - len(drawn), 1)).round().astype(int)
    return [*map(list, first), *drawn, *(list(own[place]) for place in spread)][:count]


def known_before(
    network: amc.Network, data: Any, plans: ChannelPlans, errors: list[Any], budget: CostLimit, widths: Any
) -> tuple[dict[str, float], dict[str, float], nn.Module]:
    """Each proxy (higher is better) and its CPU seconds, and the refitted network."""
    values: dict[str, float] = {}
    seconds: dict[str, float] = {}
    reference = logits(network.module, data.reward)

    def scored(name: str, build: Callable[[], nn.Module]) -> nn.Module:
        started = time.process_time()
        module = build()
        outputs = logits(module, data.reward)
        values[f"{name}: fidelity"] = fidelity(outputs, reference)
        values[f"{name}: accuracy"] = network.task.accuracy(outputs, data.reward.labels)
        seconds[f"{name}: fidelity"] = seconds[f"{name}: accuracy"] = time.process_time() - started
        return module

    scored("one-shot", lambda: plans.build(widths))
    scored("batch norms re-estimated", lambda: reestimated(plans.build(widths), data.calibration.normalised()))
    refitted = scored("refitted", lambda: plans.finished(widths, data, seed=0).network)
    values["sum of errors"] = -float(
        sum(row[place] for row, place in zip(errors, budget.index_of(widths), strict=True))
    )
    values["parameters"] = float(plans.parameters(widths))
    seconds |= {"sum of errors": 0.0, "parameters": 0.0}
    return values, seconds, refitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20", choices=sorted(WEIGHTS))
    parser.add_argument("--macs-ratio", type=float, default=0.3)
    parser.add_argument("--plans", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workspace", type=Path, default=Path("proxies"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.quick:
        options.plans, options.epochs = 6, 2
    torch.set_num_threads(1)
    space = amc.Workspace(options.workspace)
    network = pretrained(space, options.network, data_folder())
    data = network.split(calibration=2000, reward=256, seed=0)
    plans = ChannelPlans(network, default_grids(network, multiple=1, min_keep_ratio=options.macs_ratio / 3, keep=""))
    plans = plans.prepared(
        lambda: Preparations().statistics(
            network, data, channel_choice="backward", seed=0, matrices=Matrices(None, space.folder), progress=silent
        )
    )
    errors = plans.errors()
    limit = options.macs_ratio * float(plans.macs(plans.sizes))
    budget = CostLimit(plans.macs, limit, tuple(plans.grids), "macs")
    record = space.folder / f"plans-{options.network}-{options.macs_ratio:g}-{options.plans}-{options.epochs}.jsonl"
    space.folder.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        chosen = candidates(plans, budget, PlanScorer(network, data, plans, "fidelity"), options.plans)
        record.write_text("".join(json.dumps({"widths": widths}) + "\n" for widths in chosen))
    rows: list[dict[str, Any]] = [json.loads(line) for line in record.read_text().splitlines()]
    config = TrainConfig(
        epochs=options.epochs, learning_rate=network.task.learning_rate / SLOWER, batch_size=64,
        distill_weight=DISTILL_WEIGHT, threads=1,
    )  # fmt: skip
    for row in rows:
        if AFTER in row:
            continue
        values, seconds, module = known_before(network, data, plans, errors, budget, np.array(row["widths"]))
        started = time.process_time()
        reports = train(
            module, data.train, config, task=network.task, teacher=network.module, validate=data.reward, keep_best=True
        )
        one_epoch_s = (time.process_time() - started) / options.epochs
        values["one epoch of fine-tuning: accuracy"] = reports[0].validation_top1 or 0.0
        seconds["one epoch of fine-tuning: accuracy"] = seconds["refitted: accuracy"] + one_epoch_s
        row |= {"values": values, "seconds": seconds, AFTER: evaluate(module, data.test, task=network.task)}
        record.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{row[AFTER]:.3f} {values}", file=sys.stderr, flush=True)
    figures = ranked(rows)
    conditions = {"network": options.network, "macs_ratio": options.macs_ratio, "epochs": options.epochs}
    conditions |= {"plans": len(rows), "test_images": len(data.test)}
    if options.json:
        print_document("proxies", figures, conditions, {"one-shot: fidelity": figures["one-shot: fidelity"]})
        return
    after = [row[AFTER] for row in rows]
    print(f"{conditions}; after fine-tuning {min(after):.1%} to {max(after):.1%}\n")
    print("| proxy | Spearman (95 %) | regret, points | CPU s per plan |\n|---|---|---|---|")
    for name, found in sorted(figures.items(), key=lambda item: -item[1]["spearman"]):
        print(
            f"| {name} | {found['spearman']:.2f} ({found['low']:.2f} to {found['high']:.2f}) "
            f"| {100 * found['regret']:.1f} | {found['cpu_s']:.2f} |"
        )


def ranked(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    after = np.array([row[AFTER] for row in rows])
    rng = np.random.default_rng(0)
    draws = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    figures = {}
    for name in rows[0]["values"]:
        values = np.array([row["values"][name] for row in rows])
        correlations = [spearmanr(values[draw], after[draw]).statistic for draw in draws if np.ptp(values[draw]) > 0]
        low, high = np.nanpercentile(correlations, [2.5, 97.5])
        figures[name] = {
            "spearman": float(spearmanr(values, after).statistic), "low": float(low), "high": float(high),
            "regret": float(after.max() - after[int(values.argmax())]),
            "cpu_s": float(np.mean([row["seconds"][name] for row in rows])),
        }  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
