"""What scoring a plan gives, and the rewards made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.budget import Unit

RewardName = Literal[
    "fidelity", "top1", "macs", "error-log-cost", "error-log-macs", "error-log-params", "error-log-latency"
]  # fmt: skip
# The paper's accuracy-guaranteed rewards, R_FLOPs, R_Param and R_latency, and the unit of the cost in each.
GUARANTEED: dict[str, Unit] = {"error-log-macs": "macs", "error-log-params": "parameters", "error-log-latency": "ms"}
REWARDS: tuple[RewardName, ...] = get_args(RewardName)


@dataclass(frozen=True)
class Outcome:
    """A scored plan. Ratios in [0, 1]; `seconds` by part of the work (reconstruction, evaluation)."""

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
    """1 - MSE / variance of the reference: 1 when the logits are the original network's. Both (N, classes)."""
    wanted = reference.detach().double()
    error = (logits.detach().double() - wanted).square().mean()
    return float(1 - error / wanted.var().clamp_min(1e-12))


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images, in [0, 1], whose largest logit is the label's."""
    return float((logits.argmax(dim=1) == labels).double().mean())


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
        needed = {"fidelity": "fidelity", "macs": "the MACs kept"}.get(name, "top-1")
        raise InvalidConfig(f"the reward {name!r} needs {needed}, not scored")
    raise InvalidConfig(f"no reward {name!r}", next_step=f"use one of: {', '.join(REWARDS)}")
