"""Invented runs of a comparison: four policies, two seeds, three budgets, residual and depthwise groups."""

from __future__ import annotations

from amc_mobile.workflows.compare import FinishedRun

GROUPS = {"stem": "residual", **{f"block{i}.conv1": "depthwise" if i % 2 else "" for i in range(6)}, "head": ""}


def compared_run(
    policy: str, seed: int, budget: float = 0.5, *, measured: bool = True, finetuned: bool = True
) -> FinishedRun:
    """Better policies and larger budgets keep more of the accuracy; seeds differ by half a point."""
    rank = ("uniform", "random", "ddpg", "critic").index(policy)
    top1 = 0.80 + 0.2 * (budget - 0.5) + 0.02 * rank + 0.005 * seed
    ratios = {name: min(1.0, budget + 0.05 * rank + 0.02 * i + 0.1 * seed) for i, name in enumerate(GROUPS)}
    return FinishedRun(
        f"compare-net-latency-ratio-{budget:g}-{policy}-s{seed}", f"latency-ratio {budget:g}", policy, seed, "ms",
        offline=False, note="", further_budgets=(), reward=0.7 + 0.03 * rank, original_top1=0.92,
        one_shot_top1=top1 - 0.1, refitted_top1=top1, finetuned_top1=top1 + 0.03 if finetuned else None,
        macs=40e6 * budget, parameters=2e5, predicted_cost=2.0 * budget,
        measured_ms=2.0 * budget + 0.01 * seed if measured else None, evaluations=100, episodes=100,
        cpu_s=21.0, set_up_cpu_s=2.0, cpu_s_by_part={}, best_rewards={}, keep_ratios=ratios,
        group_kinds=GROUPS, original_macs=40e6, original_ms=2.0, test_images=500, accuracy_on="test images",
        metric="top-1",
    )  # fmt: skip
