"""A small search problem that is scored in microseconds: a chain of six groups whose cost multiplies neighbours."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from amc_mobile.search.budget import CostLimit, Floats, Widths
from amc_mobile.search.policies import make_policy
from amc_mobile.search.policy import GroupFacts, Policy
from amc_mobile.search.reward import MeasuredCost, Outcome

FULL = np.array([32, 32, 64, 64, 128, 128])
GRIDS = tuple(np.arange(8, full + 1, 8) for full in FULL)
IMPORTANCE = np.array([3.0, 1.0, 2.0, 0.5, 0.7, 1.5])
# What reconstruction would say of each group alone: the importances are not quite what the score uses.
ERRORS = tuple(
    float(weight) * (1 - grid / grid[-1]) ** 2 for weight, grid in zip([2.0, 1.5, 1.5, 1, 1, 1], GRIDS, strict=True)
)


def cost(widths: Widths) -> Floats:
    """Milliseconds: (N, G) -> (N,)."""
    ratios = widths / FULL
    return 1 + ratios @ np.array([2.0, 1, 1, 1, 2, 1]) + (ratios[:, 1:] * ratios[:, :-1]).sum(axis=1)


def score(widths: Widths) -> Outcome:
    ratios = widths / FULL
    loss = float((IMPORTANCE * (1 - ratios) ** 2).sum() / IMPORTANCE.sum())
    return Outcome(1 - loss, top1=1 - loss / 2, fidelity=1 - loss, macs=float(cost(widths[None])[0] * 1e6))


def facts() -> tuple[GroupFacts, ...]:
    inputs = [3, *FULL[:-1]]
    return tuple(
        GroupFacts(f"layer{i}", int(out), int(inp), 32 >> i, 32 >> i, 1 + i % 2, 3 - 2 * (i % 2))
        for i, (out, inp) in enumerate(zip(FULL, inputs, strict=True))
    )


def budget(limit: float = 7.0, cost=cost) -> CostLimit:
    return CostLimit(cost, limit, GRIDS, "ms")


TOY = budget()


def policy(name: str, *, episodes: int, seed: int = 0, limit: float = 7.0) -> Policy:
    return policy_for(budget(limit), name, episodes=episodes, seed=seed)


def policy_for(budget: CostLimit, name: str, *, episodes: int, seed: int = 0) -> Policy:
    given = [FULL // 2] if name == "from-file" else []
    return make_policy(name, facts(), budget, seed=seed, episodes=episodes, errors=ERRORS, given=given)


def play(policy: Policy, episodes: int, budget: CostLimit | None = None) -> list[Widths]:
    """The plans of some episodes, each scored and observed."""
    plans = []
    for _ in range(episodes):
        plans.append(policy.propose(budget if budget is not None else TOY))
        policy.observe(plans[-1], score(plans[-1]).reward)
    return plans


class Phone:
    """Measures `slower` times the truth plus a ripple, and corrects the cost by what it has measured.

    Its records live in a file, so that a new process knows them, as a latency table does.
    """

    def __init__(self, records: Path, *, slower: float, corrects: bool = True) -> None:
        self.records = records
        self.slower = slower
        self.corrects = corrects
        self.asked: list[tuple[int, ...]] = []

    def factor(self) -> float:
        if not self.corrects or not self.records.exists():
            return 1.0
        ratios = [float(line) for line in self.records.read_text().splitlines()]
        return float(np.mean([1.0, *ratios]))  # approaches the truth with each measurement

    def cost(self, widths: Widths) -> Floats:
        return cost(widths) * self.factor()

    def measure(self, widths: Widths) -> MeasuredCost:
        plan = tuple(int(width) for width in widths)
        self.asked.append(plan)
        predicted = float(cost(widths[None])[0])
        ripple = 1 + 0.01 * np.sin(float(np.sum(widths)))
        measured = predicted * self.slower * ripple
        known = set(self.records.read_text().splitlines()) if self.records.exists() else set()
        if (line := repr(float(measured / predicted))) not in known:
            with self.records.open("a") as stream:
                stream.write(line + "\n")
        return MeasuredCost(predicted * self.factor(), measured, measured * 1.005)


def slow_score(widths: Widths) -> Outcome:
    time.sleep(0.02)
    return score(widths)
