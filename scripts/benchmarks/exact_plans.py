"""How far the plans of `dp` are from the best there is: the same problem as a mixed-integer program, solved to the end.

`dp` looks for the plan with the smallest sum of reconstruction errors within a budget, whose cost it takes to be
additive around a plan and corrects. Here the cost is taken as it is, a sum over pairs of neighbouring channel groups,
and HiGHS solves the program (the formulation of MDP, Sun et al. 2024): one binary per group and width, one product per
pair of widths that meet in a kernel. Printed: the sum of errors of `uniform`, of `dp`, and the bound below which no
plan can be, CPU seconds of both. Cost models: MACs of pretrained ResNets on CIFAR-10, all groups and with residual
groups whole, with their own errors; latencies of the published Pixel 1 layers of MobileNet-V1, whose errors are drawn
(AMC_MOBILE_DATA names the folder of both). --quick: ResNet-20 and one drawing.

Example: scripts/benchmarks/exact_plans.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import data_folder, pretrained
from figures import print_document
from numpy.typing import NDArray
from pixel1_budget import FILE, latency_of
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

import amc_mobile as amc
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.policy import best_additive_plan
from amc_mobile.workflows.network import default_grids
from amc_mobile.workflows.plans import ChannelPlans, Preparations
from amc_mobile.workflows.workspace import Workspace, silent

Floats = NDArray[np.float64]
Widths = NDArray[np.int64]
RATIOS = (0.7, 0.5, 0.3)
LIMIT_S = 120  # of the solver


def pair_costs(budget: CostLimit, around: Widths) -> tuple[float, list[Floats], dict[tuple[int, int], Floats]]:
    """The cost as a constant, a part of each group, and a part of each pair of groups that meet in a kernel.

    Exact where no kernel depends on three groups.
    """

    def cost(**chosen: Widths) -> Floats:
        """Of plans that differ from `around` in the groups named g0, g1, ..."""
        plans = np.repeat(around[None], len(next(iter(chosen.values()))), axis=0)
        for name, widths in chosen.items():
            plans[:, int(name[1:])] = widths
        return budget.cost(plans) - base

    base = budget.cost_of(around)
    own = [cost(**{f"g{group}": grid}) for group, grid in enumerate(budget.grids)]
    pairs = {}
    for first, grid in enumerate(budget.grids):
        for second in range(first + 1, len(budget.grids)):
            other = budget.grids[second]
            for samples in (3, None):  # a few pairs of widths say whether the groups meet at all
                a, b = (np.unique(np.linspace(0, g.size - 1, samples or g.size).astype(int)) for g in (grid, other))
                both = np.array(np.meshgrid(a, b, indexing="ij")).reshape(2, -1)
                total = cost(**{f"g{first}": grid[both[0]], f"g{second}": other[both[1]]})
                joint = total - own[first][both[0]] - own[second][both[1]]
                if np.abs(joint).max() <= 1e-9 * base:
                    break
            else:
                pairs[first, second] = joint.reshape(grid.size, other.size)
    return base, own, pairs


def least_error(budget: CostLimit, errors: Sequence[Floats], around: Widths) -> tuple[float, bool]:
    """The sum of errors below which no plan within the budget can be, and whether the solver came to its end."""
    base, own, pairs = pair_costs(budget, around)
    starts = np.cumsum([0, *(grid.size for grid in budget.grids)])
    variables = int(starts[-1])
    products: dict[tuple[int, int], NDArray[np.int64]] = {}
    for pair, joint in pairs.items():
        products[pair] = variables + np.arange(joint.size).reshape(joint.shape)
        variables += joint.size
    rows: list[tuple[NDArray[np.int64], Floats, float, float]] = []
    for first, last in pairwise(starts):
        rows.append((np.arange(first, last), np.ones(last - first), 1.0, 1.0))  # one width per group
    for (first, second), index in products.items():
        for group, table in ((first, index), (second, index.T)):  # products agree with the widths chosen
            for width, line in enumerate(table):
                rows.append((np.append(line, starts[group] + width), np.append(np.ones(len(line)), -1.0), 0.0, 0.0))
    spent = np.concatenate([np.arange(starts[-1]), *(index.ravel() for index in products.values())])
    costs = np.concatenate([*own, *(joint.ravel() for joint in pairs.values())])
    rows.append((spent, costs / budget.limit, -np.inf, 1 - base / budget.limit))
    cells = np.concatenate([index for index, *_ in rows])
    lines = np.repeat(np.arange(len(rows)), [len(index) for index, *_ in rows])
    matrix = coo_array((np.concatenate([values for _, values, *_ in rows]), (lines, cells)), (len(rows), variables))
    objective = np.concatenate([*errors, np.zeros(variables - starts[-1])])
    found = milp(
        objective, integrality=objective * 0 + (np.arange(variables) < starts[-1]), bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix.tocsr(), [row[2] for row in rows], [row[3] for row in rows]),
        options={"time_limit": LIMIT_S, "mip_rel_gap": 1e-6},
    )  # fmt: skip
    return float(found.mip_dual_bound), found.status == 0


def of_macs(names: Sequence[str], folder: Path) -> Iterator[tuple[str, CostLimit, list[Floats]]]:
    for name in names:
        space = amc.Workspace(folder / name)
        network = pretrained(space, name, data_folder())
        data, prepared = network.split(calibration=2000, reward=256, seed=0), Preparations()
        for keep in ("", "residual"):
            grids = default_grids(network, multiple=4, min_keep_ratio=0.2, keep=keep)
            plans = ChannelPlans(network, grids).prepared(
                lambda data=data, network=network, prepared=prepared, space=space: prepared.statistics(
                    network,
                    data,
                    channel_choice="backward",
                    seed=0,
                    matrices=Matrices(None, space.folder),
                    progress=silent,
                )
            )
            whole = float(plans.macs(plans.sizes))
            for ratio in RATIOS:
                budget = CostLimit(plans.macs, ratio * whole, tuple(grids), "macs")
                yield (
                    f"{name}, {'residual whole' if keep else 'all groups'}, {ratio:g} of the MACs",
                    budget,
                    plans.errors(),
                )


def of_a_phone(drawings: int, folder: Path) -> Iterator[tuple[str, CostLimit, list[Floats]]]:
    _, _, latency = latency_of(Workspace(folder), Path(os.environ["AMC_MOBILE_DATA"]) / FILE, "tflite")
    rng = np.random.default_rng(0)
    with latency.table:
        grids = tuple(np.unique(np.append(grid[:: -(-len(grid) // 24)], grid[-1])) for grid in latency.grids)
        whole = CostLimit(latency.safe_p50_ms, 1.0, grids, "ms")
        for ratio in RATIOS:
            for drawing in range(drawings):
                errors = [rng.lognormal() * (1 - grid / grid[-1]) ** rng.uniform(1, 3) for grid in grids]
                budget = whole.with_limit(ratio * whole.cost_of(whole.full))
                yield f"MobileNet-V1 on Pixel 1, {ratio:g} of the latency, drawing {drawing}", budget, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    if not options.json:
        print("| problem | `uniform` | `dp` | no plan below | `dp` CPU s | solver CPU s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        names = ["resnet20"] if options.quick else ["resnet20", "resnet56"]
        for problems in (of_macs(names, Path(folder)), of_a_phone(1 if options.quick else 3, Path(folder) / "phone")):
            for name, budget, errors in problems:
                started = time.process_time()
                plan = best_additive_plan(budget, errors)
                dp_s = time.process_time() - started
                bound, ended = least_error(budget, errors, plan)
                row = {
                    side: float(sum(table[at] for table, at in zip(errors, budget.index_of(widths), strict=True)))
                    for side, widths in (("uniform", budget.uniform()), ("dp", plan))
                }
                figures[name] = {
                    **row, "bound": bound, "ended": ended, "dp_s": dp_s,
                    "solver_s": time.process_time() - started - dp_s,
                }  # fmt: skip
                if not options.json:
                    sums = f"{row['uniform']:.4f} | {row['dp']:.4f} | {bound:.4f}{'' if ended else ' (stopped)'}"
                    print(f"| {name} | {sums} | {dp_s:.2f} | {figures[name]['solver_s']:.2f} |", flush=True)
    worst = max(row["dp"] / row["bound"] - 1 for row in figures.values())
    if options.json:
        print_document("exact_plans", figures, {"solver": "HiGHS", "limit_s": LIMIT_S}, {"dp_over_bound": worst})
    else:
        print(f"\n`dp` is at most {worst:.2%} over the bound.")


if __name__ == "__main__":
    main()
