"""A published latency budget on a real phone's table: how many MACs of MobileNet-V1 the search keeps within it.

The authors of AMC publish a MobileNet-V1 of 274.0 M MACs that takes 63.2 ms on a Pixel 1, and the times of its layers
and of three other widths (phone_latency/pixel1_mobilenet_v1_layers.csv below the folder that AMC_MOBILE_DATA names).
This imports that table as `amc-mobile table import --csv` does and searches `--latency-ms 63.2 --offline` with the
reward `macs`: the latency side alone, no images and no weights that mean anything. Prints a table, or with --json one
document: name, figures, baselines (the published network; the same with a budget of MACs alone, judged by the table),
conditions. --quick tries 300 plans a policy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.structure import CostModel
from amc_mobile.errors import AmcMobileError, InvalidInput
from amc_mobile.latency.model import LatencyModel
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.search.loop import run_search
from amc_mobile.search.policies import make_policy
from amc_mobile.search.reward import Outcome
from amc_mobile.workflows.devices import recorded
from amc_mobile.workflows.network import Network, default_grids, load_network
from amc_mobile.workflows.plans import ChannelPlans
from amc_mobile.workflows.profile import latency_model
from amc_mobile.workflows.table import import_csv
from amc_mobile.workflows.workspace import Settings, Workspace, silent

Widths = NDArray[np.int64]
FILE = "phone_latency/pixel1_mobilenet_v1_layers.csv"
BUDGET_MS = 63.2
PUBLISHED_MACS = 274.0e6
SHAPE = {"operator": "kind", "in_channels": "cin", "out_channels": "cout", "out_size": "hout", "stride": "stride"}
POLICIES = ("uniform", "random", "evolution")
EPISODES, QUICK_EPISODES = 2000, 300


def latency_of(space: Workspace, table: Path, runtime: str) -> tuple[Network, CostModel, LatencyModel]:
    import_csv(
        space, table, device="pixel_1", kernel=("model", "layer"), ms="avg_ms", run="run", shape=SHAPE, network="model",
        runtime=runtime,
    )  # fmt: skip
    device, settings = recorded(space, Settings(model="mobilenet_v1", device="pixel_1", offline=True))
    network = load_network(space, settings)
    latency = latency_model(space, settings, network, silent, device=device)
    return network, CostModel(network.module, network.groups), latency


def most_macs(network: Network, costs: CostModel, budget: CostLimit, policy: str, episodes: int) -> Widths:
    """The plan with the most MACs that a policy finds within the budget."""
    full = float(costs.macs(network.groups.sizes))

    def score(widths: Widths) -> Outcome:
        return Outcome(float(costs.macs(widths)) / full)

    with tempfile.TemporaryDirectory() as folder:
        log = EpisodeLog(Path(folder) / "episodes.csv")
        made = make_policy(policy, ChannelPlans(network, default_grids(network)).facts(), budget, episodes=episodes)
        return run_search(made, budget, score, episodes=episodes, log=log).widths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runtime", choices=("tflite", "onnxruntime"), default="tflite", help="whose export is read")
    options = parser.parse_args()
    data = os.environ.get("AMC_MOBILE_DATA")
    episodes = QUICK_EPISODES if options.quick else EPISODES
    try:
        if not data:
            raise InvalidInput("AMC_MOBILE_DATA is not set", next_step=f"let it name the folder that holds {FILE}")
        with tempfile.TemporaryDirectory() as folder:
            network, costs, latency = latency_of(Workspace(Path(folder)), Path(data) / FILE, options.runtime)
            with latency.table:
                figures, baselines = searched(network, costs, latency, episodes)
    except AmcMobileError as error:
        sys.exit(f"error: {error.message}\nnext: {error.next_step}")
    conditions = {
        "phone": "Pixel 1, TFLite, one thread", "budget_ms": BUDGET_MS, "band": round(latency.calibration.band, 4),
        "held_to": "the prediction with its band on top", "episodes": episodes, "measured": "nothing",
    }  # fmt: skip
    if options.json:
        document = {"name": "pixel1_budget", "figures": figures, "baselines": baselines, "conditions": conditions}
        print(json.dumps(document, indent=1))
        return
    for name, value in (figures | baselines).items():
        print(f"{name:36} {value:8.2f}")
    print(f"band of the prediction {latency.calibration.band:.1%}; MACs in millions")


def searched(
    network: Network, costs: CostModel, latency: LatencyModel, episodes: int
) -> tuple[dict[str, float], dict[str, float]]:
    budget = CostLimit(latency.safe_p50_ms, BUDGET_MS, tuple(latency.grids), "ms")
    figures: dict[str, float] = {}
    for policy in POLICIES:
        plan = most_macs(network, costs, budget, policy, episodes)
        figures[f"{policy}.macs_m"] = round(float(costs.macs(plan)) / 1e6, 2)
        figures[f"{policy}.predicted_ms"] = round(float(latency.p50_ms(plan[None])[0]), 2)
    counted = replace(budget, cost=costs.macs, limit=PUBLISHED_MACS, unit="macs")
    uniform = counted.uniform()
    return figures, {
        "published.macs_m": PUBLISHED_MACS / 1e6, "published.measured_ms": BUDGET_MS,
        "uniform_of_published_macs.macs_m": round(float(costs.macs(uniform)) / 1e6, 2),
        "uniform_of_published_macs.predicted_ms": round(float(latency.p50_ms(uniform[None])[0]), 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
