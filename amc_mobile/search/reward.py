"""What scoring a plan gives, and the rewards made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.budget import Unit

if TYPE_CHECKING:
    import torch

RewardName = Literal[
    "fidelity", "top1", "macs", "error-log-cost", "error-log-macs", "error-log-params", "error-log-latency"
]  # fmt: skip
# The paper's accuracy-guaranteed rewards, R_FLOPs, R_Param and R_latency, and the unit of the cost in each.
GUARANTEED: dict[str, Unit] = {"error-log-macs": "macs", "error-log-params": "parameters", "error-log-latency": "ms"}
# Softer than the classes, which say little on few images, and harder than the logits, whose errors need not matter:
# chosen by how plans of ResNet-20 and ResNet-56 rank (scripts/benchmarks/episode_cost.py).
_TEMPERATURE = 4.0
HOLDING_COST = ("error-log-cost", *GUARANTEED)  # a cheaper plan may be better than any that fills the budget
REWARDS: tuple[RewardName, ...] = get_args(RewardName)


@dataclass(frozen=True)
class Outcome:
    """A scored plan. Ratios in [0, 1]; `seconds` by part of the work (reconstruction, evaluation).

    `top1`: of other tasks than classification their own accuracy.
    """

    reward: float
    top1: float | None = None
    fidelity: float | None = None
    macs: float | None = None
    parameters: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredCost:
    """A plan measured on the device, in ms: the p50, and the upper end of its 95 % confidence interval."""

    predicted: float
    measured: float
    ci_high: float


def fidelity(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """How close outputs are to the original network's: 1 when they are the same, 0 when they ignore the image.

    For class logits, both (N, classes): 1 - KL / KL0, where KL is the mean Kullback-Leibler divergence of the softened
    class probabilities (temperature 4, as for distillation) from the reference's, and KL0 that of the reference's mean.
    The logits are brought to the reference's scale first: pruned networks shrink them, which changes no class.
    Other outputs: 1 - MSE / variance of the reference.
    """
    from torch.nn import functional  # late: the rewards' names are checked before torch is loaded

    found, wanted = logits.detach().double(), reference.detach().double()
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return float(1 - (found - wanted).square().mean() / wanted.var().clamp_min(1e-12))
    found, wanted = (rows - rows.mean(dim=1, keepdim=True) for rows in (found, wanted))
    scale = ((found * wanted).sum() / found.square().sum().clamp_min(1e-12)).clamp_min(0)
    log_wanted = (wanted / _TEMPERATURE).log_softmax(dim=1)
    log_mean = log_wanted.exp().mean(dim=0).log().expand_as(log_wanted)
    divergence, largest = (
        functional.kl_div(others, log_wanted, reduction="batchmean", log_target=True)
        for others in ((found * scale / _TEMPERATURE).log_softmax(dim=1), log_mean)
    )
    return float(1 - divergence / largest.clamp_min(1e-12))


def reward_of(
    name: str, *, top1: float | None, fidelity: float | None, cost: float, unit: Unit, macs_kept: float | None = None
) -> float:
    """The reward `name`. "error-log-..." is the paper's -Error * log(cost), which needs no budget. "macs": `macs_kept`,
    the share of the original's MACs: the largest network that the budget allows, whatever its weights.

    `cost` counts in `unit`, the one that the name asks for unless it is "error-log-cost"; milliseconds are taken as
    microseconds, so that the logarithm stays positive.
    """
    if GUARANTEED.get(name, unit) != unit:
        raise InvalidConfig(f"the reward {name!r} needs a cost in {GUARANTEED[name]}, not in {unit}")
    if name == "fidelity" and fidelity is not None:
        return fidelity
    if name == "top1" and top1 is not None:
        return top1
    if name == "macs" and macs_kept is not None:
        return macs_kept
    if name.startswith("error-log-") and name in REWARDS and top1 is not None:
        return -(1 - top1) * math.log(max(cost * 1000 if unit == "ms" else cost, 1.0))
    if name in REWARDS:
        needed = {"fidelity": "fidelity", "macs": "the MACs kept"}.get(name, "accuracy")
        raise InvalidConfig(f"the reward {name!r} needs {needed}, not scored")
    raise InvalidConfig(f"no reward {name!r}", next_step=f"use one of: {', '.join(REWARDS)}")
