from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from amc_mobile.errors import InvalidConfig
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.search.loop import AccuracyGuarantee, DrawnLimits, SearchResult, run_search
from amc_mobile.search.reward import Outcome, reward_of
from tests.search import toy

FULL_COST = float(toy.cost(toy.FULL[None])[0])
FLOOR = 0.97


def score(widths: np.ndarray) -> Outcome:
    outcome = toy.score(widths)
    cost = float(toy.cost(widths[None])[0])
    reward = reward_of("error-log-latency", top1=outcome.top1, fidelity=None, cost=cost, unit="ms")
    return dataclasses.replace(outcome, reward=reward)


def guaranteed(folder: Path, name: str, *, episodes: int = 200, floor: float = FLOOR) -> SearchResult:
    budget = toy.budget(FULL_COST)
    return run_search(
        toy.policy_for(budget, name, episodes=episodes), budget, score, episodes=episodes,
        log=EpisodeLog(folder / "episodes.csv"), target=AccuracyGuarantee(floor),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["critic", "evolution", "random", "ddpg"])
def test_the_cheapest_plan_that_keeps_the_accuracy_is_the_result(tmp_path: Path, name: str) -> None:
    result = guaranteed(tmp_path, name)
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    keeping = [row for row in rows if row.top1 is not None and row.top1 >= FLOOR]
    assert result.top1 is not None
    assert result.top1 >= FLOOR
    assert result.predicted_cost == min(row.predicted_cost for row in keeping)
    assert result.predicted_cost < 0.9 * FULL_COST


def test_the_search_ends_when_nothing_cheaper_keeps_the_accuracy(tmp_path: Path) -> None:
    result = guaranteed(tmp_path, "evolution")
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    assert result.episodes < 200
    last = max(row.episode for row in rows if row.widths == tuple(result.widths))
    assert len(rows) - 1 - last == 20


def test_a_search_that_goes_on_ends_the_same(tmp_path: Path) -> None:
    whole = guaranteed(tmp_path / "whole", "critic")
    guaranteed(tmp_path / "parts", "critic", episodes=12)
    continued = guaranteed(tmp_path / "parts", "critic")
    assert tuple(continued.widths) == tuple(whole.widths)
    assert continued.episodes == whole.episodes


def test_without_a_plan_that_keeps_it_the_highest_reward_wins(tmp_path: Path) -> None:
    budget = toy.budget(7.0)
    result = run_search(
        toy.policy_for(budget, "random", episodes=12), budget, score, episodes=12,
        log=EpisodeLog(tmp_path / "episodes.csv"), target=AccuracyGuarantee(1.0),
    )  # fmt: skip
    assert result.reward == max(row.reward for row in EpisodeLog(tmp_path / "episodes.csv").rows)


def test_limits_fall_fast_after_a_success_and_near_the_cheapest_after_failures(tmp_path: Path) -> None:
    guaranteed(tmp_path, "random", episodes=40)
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    guarantee, budget = AccuracyGuarantee(FLOOR), toy.budget(FULL_COST)
    assert guarantee.limit([], budget) == pytest.approx(0.7 * FULL_COST)
    kept = next(i for i, row in enumerate(rows) if guarantee.keeps(row))
    assert guarantee.limit(rows[: kept + 1], budget) == pytest.approx(0.7 * rows[kept].predicted_cost)
    failing = [dataclasses.replace(rows[kept], top1=0.1)] * 15
    assert guarantee.limit([*rows[: kept + 1], *failing], budget) > 0.98 * rows[kept].predicted_cost
    assert not guarantee.is_reached([*rows[: kept + 1], *failing], budget)
    assert guarantee.is_reached([*rows[: kept + 1], *failing, *failing], budget)


def test_impossible_guarantees_are_refused() -> None:
    with pytest.raises(InvalidConfig):
        AccuracyGuarantee(1.2)
    with pytest.raises(InvalidConfig):
        AccuracyGuarantee(0.9, patience=0)


def test_without_a_plan_that_keeps_the_accuracy_no_patience_runs_out(tmp_path: Path) -> None:
    budget = toy.budget(toy.cost(np.full((1, 6), 8))[0] + 1)
    result = run_search(
        toy.policy_for(budget, "random", episodes=45), budget, score, episodes=45,
        log=EpisodeLog(tmp_path / "episodes.csv"), target=AccuracyGuarantee(1.0),
    )  # fmt: skip
    assert result.episodes == 45


@pytest.mark.parametrize("name", ["critic", "evolution", "ddpg"])
def test_a_reward_that_holds_the_cost_is_searched_below_the_budget(tmp_path: Path, name: str) -> None:
    def search(folder: Path, episodes: int) -> SearchResult:
        budget = toy.budget(FULL_COST)
        return run_search(
            toy.policy_for(budget, name, episodes=60), budget, score, episodes=episodes,
            log=EpisodeLog(folder / "episodes.csv"), target=DrawnLimits(seed=0),
        )  # fmt: skip

    result = search(tmp_path / "whole", 60)
    rows = EpisodeLog(tmp_path / "whole/episodes.csv").rows
    costs = [row.predicted_cost for row in rows]
    assert sum(cost < 0.95 * FULL_COST for cost in costs) > 40
    assert max(costs) - min(costs) > 0.3 * FULL_COST
    assert result.reward == max(row.reward for row in rows)
    search(tmp_path / "parts", 20)
    assert tuple(search(tmp_path / "parts", 60).widths) == tuple(result.widths)


def test_of_equal_rewards_the_cheaper_plan_is_the_result(tmp_path: Path) -> None:
    def perfect(widths: np.ndarray) -> Outcome:
        return dataclasses.replace(score(widths), reward=0.0, top1=1.0)

    budget = toy.budget(FULL_COST)
    result = run_search(
        toy.policy_for(budget, "random", episodes=30), budget, perfect, episodes=30,
        log=EpisodeLog(tmp_path / "episodes.csv"), target=DrawnLimits(seed=0),
    )  # fmt: skip
    assert result.predicted_cost == min(row.predicted_cost for row in EpisodeLog(tmp_path / "episodes.csv").rows)
