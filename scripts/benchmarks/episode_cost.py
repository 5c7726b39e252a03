"""What an episode of a search costs, in CPU seconds of one thread, and how well cheap rewards rank plans.

MobileNet-V1 on 32x32 images (46 M MACs, 10 classes) with random weights, 3000 synthetic calibration images of 10
points each, half the MACs: what is timed does not depend on what images show. Once with the default reward (the
logits' fidelity on few images), as this CPU computes it and in float32 in any case, once with the paper's (top-1 on
3000 images). An episode is reconstruction, evaluation, agent and cost model; the set-up, once per search, is given
beside it. What a CPU with AVX2 alone takes: ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2, the float32 figures.

Where AMC_MOBILE_DATA is set, both rewards also rank plans of pretrained CIFAR-10 ResNets: Spearman's correlation with
the top-1 on test images of the reconstructed networks, over 24 plans within half the MACs. Both score as searches do,
the default reward on each of the disjoint sets of so many images that there are; their mean is given.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cifar import pretrained
from figures import print_document
from scipy.stats import spearmanr

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import CostModel
from amc_mobile.data.images import Dataset, ImageSet
from amc_mobile.data.split import DataSplit, split
from amc_mobile.models.loading import load_model
from amc_mobile.models.task import CLASSIFICATION, bf16_is_fast, logits
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.pruning.reconstruction import find_folding, folded
from amc_mobile.search.budget import CostLimit, Floats, Widths
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.search.loop import run_search
from amc_mobile.search.policies import make_policy
from amc_mobile.search.reward import fidelity
from amc_mobile.workflows.network import Network, default_grids
from amc_mobile.workflows.plans import ChannelPlans, PlanScorer, Preparations
from amc_mobile.workflows.search_config import FIDELITY_IMAGES, SearchConfig
from amc_mobile.workflows.workspace import Settings, Workspace, silent

# CPU seconds per episode of the public implementations for this network, 3000 images and reward, on a like machine.
OFFICIAL = {"official_amc": 16.7, "nni": 14.4, "nni_speedup": 63.0}
POINTS = 10
FEW = FIDELITY_IMAGES  # of the default reward
RANKED_PLANS = 24


class TimedCost:
    """MACs, and the seconds spent on them: what the budget and the policies ask of the cost model."""

    def __init__(self, costs: CostModel) -> None:
        self.costs, self.seconds = costs, 0.0

    def __call__(self, widths: Widths) -> Floats:
        started = time.process_time()
        answer = self.costs.macs(widths)
        self.seconds += time.process_time() - started
        return answer


def synthetic_network(images: int) -> Network:
    generator = torch.Generator().manual_seed(0)
    loaded = load_model("mobilenet_v1", num_classes=10, width_multiplier=1.0, input_size=32, checkpoint=None, seed=0)
    groups = find_groups(loaded.module, torch.zeros(loaded.input_shape))

    def image_set(count: int) -> ImageSet:
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), generator=generator)
        return ImageSet(pixels, labels, torch.full((3,), 0.5), torch.full((3,), 0.5))

    classes = tuple(str(number) for number in range(10))
    return Network(loaded, Dataset(image_set(images), image_set(10), classes, "synthetic"), groups, Settings())


def episode_cost(
    network: Network, data: DataSplit, reward: str, policy: str, episodes: int, *, bf16: bool | None = None
) -> dict[str, float]:
    """Mean CPU seconds of an episode by part, and the set-up's."""
    known = Preparations().statistics(
        network, data, channel_choice="backward", seed=0, matrices=Matrices(), progress=silent
    )
    started = time.process_time()
    plans = ChannelPlans(network, default_grids(network), known)
    scorer = PlanScorer(network, data, plans, reward, bf16=bf16)
    cost = TimedCost(CostModel(network.module, network.groups))
    full = network.groups.sizes
    budget = CostLimit(cost, 0.5 * float(cost.costs.macs(full)), tuple(plans.grids), "macs")
    agent = make_policy(policy, plans.facts(), budget, episodes=episodes, errors=plans.errors())
    set_up_s = known.cpu_s + time.process_time() - started
    cost.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        log = EpisodeLog(Path(folder) / "episodes.csv")
        started = time.process_time()
        result = run_search(agent, budget, scorer, episodes=episodes, log=log)
        total_s = time.process_time() - started
        parts = log.seconds()
    parts["latency"] = cost.seconds
    parts["agent"] = max(parts["agent"] - cost.seconds, 0.0)
    figures = {f"{part}_s": seconds / episodes for part, seconds in parts.items()}
    return {
        "cpu_s_per_episode": total_s / episodes, **figures, "set_up_cpu_s": set_up_s,
        "plans_scored": float(result.evaluations),
    }  # fmt: skip


def rank_correlations(model: str, root: Path, paper_images: int, plans: int) -> dict[str, float]:
    """Spearman's correlation of rewards with the test top-1, and the accuracies' range."""
    network = pretrained(Workspace("amc-workspace"), model, root)
    assert network.dataset is not None
    data = split(network.dataset, calibration=900, reward=paper_images, seed=0)
    known = Preparations().statistics(
        network, data, channel_choice="backward", seed=0, matrices=Matrices(), progress=silent
    )
    reconstructor = known.reconstructor(network)
    costs = CostModel(network.module, network.groups)
    full = network.groups.sizes
    budget = CostLimit(costs.macs, 0.5 * float(costs.macs(full)), tuple(default_grids(network)), "macs")
    rng = np.random.default_rng(0)
    chosen = [budget.uniform(), budget.shallow(), budget.deep()]
    chosen += [budget.scale(rng.uniform(0.2, 1, full.size)) for _ in range(plans - len(chosen))]
    folding = find_folding(network.module, data.reward.normalised(slice(0, 1)))
    original = logits(folded(network.module, folding), data.reward, bf16=bf16_is_fast())
    nets = [folded(reconstructor.build(widths), folding) for widths in chosen]
    outputs = [logits(net, data.reward, bf16=bf16_is_fast()) for net in nets]
    accuracy = [CLASSIFICATION.accuracy(logits(net, data.test), data.test.labels) for net in nets]

    def rank(reward: Callable[[torch.Tensor], float]) -> float:
        return float(spearmanr(accuracy, [reward(found) for found in outputs]).statistic)

    count = min(FEW, len(data.reward))
    sets = [slice(start, start + count) for start in range(0, len(data.reward) - count + 1, count)]
    by_fidelity = [rank(lambda found, part=part: fidelity(found[part], original[part])) for part in sets]
    return {
        f"{model}.spearman_fidelity_{count}": float(np.mean(by_fidelity)),
        f"{model}.spearman_fidelity_{count}_lowest": min(by_fidelity),
        f"{model}.spearman_top1_{paper_images}": rank(lambda found: CLASSIFICATION.accuracy(found, data.reward.labels)),
        f"{model}.lowest_top1": min(accuracy),
        f"{model}.highest_top1": max(accuracy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="6 episodes, 300 images, ranks of 6 plans")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--policy", default=SearchConfig(macs_ratio=0.5).policy)
    parser.add_argument(
        "--rank-models", default="resnet20,resnet56", help="resnet20, resnet56 or both, separated by a comma"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    episodes, images, plans = (6, 300, 6) if options.quick else (options.episodes, 3000, RANKED_PLANS)
    few = min(FEW, images)
    network = synthetic_network(2 * images + 10)
    figures: dict[str, float] = {}
    kinds = (("default", "fidelity", few, None), ("float32", "fidelity", few, False), ("paper", "top1", images, None))
    for name, reward, count, bf16 in kinds:
        assert network.dataset is not None
        data = split(network.dataset, calibration=images, reward=count, seed=0)
        cost = episode_cost(network, data, reward, options.policy, episodes, bf16=bf16)
        figures |= {f"{name}_reward.{key}": round(value, 4) for key, value in cost.items()}
    figures = {"cpu_s_per_episode": figures["default_reward.cpu_s_per_episode"], **figures}
    if root := os.environ.get("AMC_MOBILE_DATA"):
        for model in ["resnet20"] if options.quick else options.rank_models.split(","):
            ranks = rank_correlations(model, Path(root), images, plans)
            figures |= {key: round(value, 4) for key, value in ranks.items()}
    conditions = {
        "machine": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability(), "bf16": bf16_is_fast(),
        "isa_of_onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "python": platform.python_version(), "torch": torch.__version__, "threads": 1,
        "network": "mobilenet_v1 x1.0 @32, 10 classes", "calibration_images": images, "points_per_image": POINTS,
        "default_reward": f"fidelity on {few} images", "paper_reward": f"top-1 on {images} images",
        "policy": options.policy, "episodes": episodes, "ranked_plans": plans,
    }  # fmt: skip
    if options.json:
        print_document("episode_cost", figures, conditions, OFFICIAL)
        return
    for key in ("machine", "instructions", "bf16", "isa_of_onednn"):
        print(f"{key:45} {conditions[key]!s:>10}")
    for key, value in {**figures, **OFFICIAL}.items():
        print(f"{key:45} {value:10.4f}")


if __name__ == "__main__":
    main()
