import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from amc_mobile.errors import BudgetNotMet, InvalidConfig, InvalidInput, UnreachableBudget
from amc_mobile.search import loop
from amc_mobile.search.budget import CostLimit
from amc_mobile.search.episode_log import EpisodeLog
from amc_mobile.search.loop import AccuracyGuarantee, DrawnLimits, SearchResult, run_search
from amc_mobile.search.policy import POLICIES
from amc_mobile.search.reward import MeasuredCost, Outcome, reward_of
from tests.search import toy


class Killed(BaseException):
    """Ends a search at a chosen call, the way a signal does: nothing after it runs."""


class KilledAt:
    """Calls `function`, and dies at call `number`, before or after the work is done."""

    def __init__(self, function, number, *, after=False):
        self.function, self.number, self.after, self.calls = function, number, after, 0

    def __call__(self, widths):
        self.calls += 1
        if self.calls == self.number and not self.after:
            raise Killed
        answer = self.function(widths)
        if self.calls == self.number:
            raise Killed
        return answer


def search(folder: Path, name: str = "ddpg", *, episodes: int = 18, limit: float = 7.0, score=toy.score, **options):
    budget = options.pop("budget", None) or toy.budget(limit)
    policy = toy.policy_for(budget, name, episodes=episodes)
    return run_search(policy, budget, score, episodes=episodes, log=EpisodeLog(folder / "episodes.csv"), **options)


def measured_search(folder: Path, phone: toy.Phone, *, limit: float = 7.0, measure=None, **options):
    budget = toy.budget(limit, cost=phone.cost)
    return search(folder, budget=budget, measure=measure or phone.measure, **options)


def same(first: SearchResult, second: SearchResult) -> bool:
    a, b = dataclasses.asdict(first), dataclasses.asdict(second)
    return a.pop("widths").tolist() == b.pop("widths").tolist() and a == b


def lines(folder: Path):
    """The log without the seconds."""
    spent = dict.fromkeys(("reconstruction_s", "evaluation_s", "agent_s", "latency_s"), 0.0)
    return [dataclasses.replace(row, **spent) for row in EpisodeLog(folder / "episodes.csv").rows]


@pytest.mark.parametrize("name", POLICIES)
def test_the_best_plan_of_the_log_within_the_budget_is_the_result(tmp_path, name):
    result = search(tmp_path, name)
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    best = max(rows, key=lambda row: row.reward)
    assert tuple(result.widths) == best.widths
    assert result.episode == best.episode
    assert result.predicted_cost <= 7.0
    assert all(row.predicted_cost <= row.limit == 7.0 for row in rows)
    assert len(rows) == result.episodes == (1 if name in ("uniform", "shallow", "deep", "dp", "from-file") else 18)


def test_a_plan_seen_before_is_not_scored_again(tmp_path):
    scored = []

    def score(widths):
        scored.append(tuple(widths))
        return toy.score(widths)

    budget = toy.budget(toy.cost(np.full((1, 6), 8))[0] + 0.3)  # room for a few plans only
    result = search(tmp_path, "random", score=score, budget=budget, episodes=30)
    assert len(scored) == len(set(scored)) == result.evaluations < 30
    assert len(EpisodeLog(tmp_path / "episodes.csv").rows) == 30


def test_every_row_says_where_its_plan_came_from_and_what_it_cost(tmp_path):
    search(tmp_path, "ddpg")
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    expected = ["uniform", "shallow", "deep", "dp", *["ddpg warm-up"] * 2, *["ddpg"] * 12]
    assert [row.policy for row in rows] == expected
    for row in rows:
        assert row.macs == pytest.approx(row.predicted_cost * 1e6)
        assert row.agent_s > 0
        assert row.measured_ms is None


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["ddpg", "ddpg-sequential", "random", "critic", "evolution", "cma", "netadapt"])
def test_a_killed_search_goes_on_to_the_same_result(tmp_path, name, after):
    whole = search(tmp_path / "whole", name)
    for at in (2, 7):  # dies in the second episode, goes on, dies again
        with pytest.raises(Killed):
            search(tmp_path / "killed", name, score=KilledAt(toy.score, at, after=after))
    assert same(search(tmp_path / "killed", name), whole)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_finished_search_run_again_gives_its_result_without_scoring(tmp_path):
    first = search(tmp_path)
    assert same(search(tmp_path, score=KilledAt(toy.score, 1)), first)


def test_a_search_can_be_continued_with_more_episodes(tmp_path):
    search(tmp_path, episodes=12)
    longer = search(tmp_path, episodes=15)
    assert longer.episodes == 15


def test_a_search_killed_by_sigkill_goes_on_to_the_same_result(tmp_path):
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from tests.search import test_loop, toy
        test_loop.search(Path(sys.argv[1]), score=toy.slow_score)
    """)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", program, str(killed)], env=environment, cwd=root)
    deadline = time.monotonic() + 120
    log = killed / "episodes.csv"
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") > 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 4 <= len(EpisodeLog(log).rows) < 18
    assert same(search(killed), search(tmp_path / "whole"))
    assert lines(killed) == lines(tmp_path / "whole")


def test_every_new_best_is_measured_and_the_result_was_measured_within_the_budget(tmp_path):
    phone = toy.Phone(tmp_path / "records", slower=1.2)
    result = measured_search(tmp_path, phone)
    assert result.ci_high_ms is not None
    assert result.ci_high_ms <= 7.0
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    assert rows[0].measured_ms is not None
    assert rows[0].ci_high_ms is not None
    assert rows[0].ci_high_ms > 7.0  # the first prediction was too low: this best did not count in the end
    fitting = [row.reward for row in rows if row.ci_high_ms is not None and row.ci_high_ms <= 7.0]
    assert result.reward == max(fitting)
    assert len(phone.asked) == len(set(phone.asked)) == result.measurements


def test_each_kth_episode_is_measured(tmp_path):
    phone = toy.Phone(tmp_path / "records", slower=1.0)
    measured_search(tmp_path, phone, measure_every=4)
    rows = [row for row in EpisodeLog(tmp_path / "episodes.csv").rows if row.is_episode]
    assert all(row.measured_ms is not None for row in rows[3::4])


def few_checks(monkeypatch, extra_episodes):
    monkeypatch.setattr(loop, "MAX_OVERS", 3)
    monkeypatch.setattr(loop, "EXTRA_EPISODES", extra_episodes)


@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("part", ["score", "measure"])
def test_a_killed_search_with_measurements_goes_on_to_the_same_result(tmp_path, part, after, corrects, monkeypatch):
    few_checks(monkeypatch, 4)

    def phone(folder):
        return toy.Phone(tmp_path / f"{folder}-records", slower=1.25, corrects=corrects)

    whole = measured_search(tmp_path / "whole", phone("whole"), measure_every=5)
    for at in (1, 2, 3, 2):
        device = phone("killed")
        wrapped = {"score": toy.score, "measure": device.measure}
        wrapped[part] = KilledAt(wrapped[part], at, after=after)
        with pytest.raises(Killed):
            measured_search(
                tmp_path / "killed",
                device,
                measure_every=5,
                score=wrapped["score"],
                measure=wrapped["measure"],
            )
    resumed = measured_search(tmp_path / "killed", phone("killed"), measure_every=5)
    assert same(resumed, whole)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_a_phone_slower_than_predicted_tightens_the_limit_by_the_observed_ratio(tmp_path, monkeypatch):
    few_checks(monkeypatch, 6)
    phone = toy.Phone(tmp_path / "records", slower=1.3, corrects=False)
    result = measured_search(tmp_path, phone)
    assert result.ci_high_ms is not None
    assert result.ci_high_ms <= 7.0
    assert 7.0 / 1.35 < result.search_limit < 7.0 / 1.25
    assert result.predicted_cost <= result.search_limit


def test_the_uniform_policy_too_is_tightened_until_it_is_measured_within_the_budget(tmp_path):
    phone = toy.Phone(tmp_path / "records", slower=1.3, corrects=False)
    result = measured_search(tmp_path, phone, name="uniform")
    assert result.ci_high_ms is not None
    assert result.ci_high_ms <= 7.0
    assert 2 <= result.episodes <= 3


def test_a_phone_that_never_fits_ends_in_an_error_with_the_fastest_plan_measured(tmp_path, monkeypatch):
    few_checks(monkeypatch, 3)

    def measure(widths):
        return MeasuredCost(5.0, 90 + float(np.sum(widths)) / 1000, 95 + float(np.sum(widths)) / 1000)

    with pytest.raises(BudgetNotMet, match=r"within the budget of 7 ms; the fastest took 90\.\d+ ms") as caught:
        search(tmp_path, measure=measure)
    assert "raise the budget to 95." in caught.value.next_step
    with pytest.raises(BudgetNotMet, match="the fastest took"):  # the same again, from the log
        search(tmp_path, measure=measure)


def test_a_best_plan_that_a_correction_makes_too_slow_gives_way_to_one_measured_within(tmp_path):
    """The first plan is measured over; the last correction rules out all plans but those that are checked."""
    factor = [1.0]

    def measure(widths):
        factor[0] = 1.15
        truth = 1.1 * float(toy.cost(widths[None])[0])
        return MeasuredCost(truth, truth, truth)

    budget = toy.budget(7.0, cost=lambda widths: factor[0] * toy.cost(widths))
    result = search(tmp_path, budget=budget, measure=measure)
    assert result.measured_ms is not None
    assert result.measured_ms <= 7.0
    assert result.measured_ms == pytest.approx(1.1 * toy.cost(result.widths[None])[0])


def test_a_reward_that_holds_the_cost_uses_the_measured_one(tmp_path):
    phone = toy.Phone(tmp_path / "records", slower=0.8)

    def measured_reward(outcome: Outcome, p50_ms: float) -> float:
        return reward_of("error-log-cost", top1=outcome.top1, fidelity=None, cost=p50_ms, unit="ms")

    def score(widths):
        predicted = float(toy.cost(widths[None])[0])
        outcome = toy.score(widths)
        return dataclasses.replace(outcome, reward=measured_reward(outcome, predicted))

    measured_search(tmp_path, phone, score=score, measured_reward=measured_reward)
    first = EpisodeLog(tmp_path / "episodes.csv").rows[0]
    assert first.measured_ms is not None
    expected = reward_of("error-log-cost", top1=first.top1, fidelity=None, cost=first.measured_ms, unit="ms")
    assert first.reward == expected


def test_an_unreachable_budget_is_refused_before_the_first_episode(tmp_path):
    with pytest.raises(UnreachableBudget, match="the smallest plan allowed costs"):
        search(tmp_path, limit=1.2)
    assert not (tmp_path / "episodes.csv").exists()


def test_a_log_of_another_budget_or_policy_is_refused(tmp_path):
    search(tmp_path, "random", episodes=4)
    with pytest.raises(InvalidInput, match=r"limit was 7\.0, now 6\.0"):
        search(tmp_path, "random", episodes=4, limit=6.0)
    with pytest.raises(InvalidInput, match="policy 'random', not 'ddpg'"):
        search(tmp_path, "ddpg", episodes=4)


def test_measuring_needs_a_budget_in_milliseconds(tmp_path):
    budget = CostLimit(toy.cost, 7.0, toy.GRIDS, "macs")
    with pytest.raises(InvalidConfig, match="the budget is in macs"):
        search(tmp_path, budget=budget, measure=lambda widths: MeasuredCost(1, 1, 1))


def test_a_reward_that_is_not_a_number_is_an_error_naming_the_plan(tmp_path):
    with pytest.raises(InvalidInput, match=r"the plan \[\d+, .*nan"):
        search(tmp_path, score=lambda widths: Outcome(float("nan")))


@pytest.mark.parametrize("name", ["ddpg-sequential", "random", "critic", "evolution"])
def test_a_better_plan_is_lost_only_by_a_measurement_over_the_budget_and_is_named(tmp_path, name):
    phone = toy.Phone(tmp_path / "records", slower=1.1, corrects=False)
    result = measured_search(tmp_path, phone, name=name)
    plans = {row.widths: row for row in EpisodeLog(tmp_path / "episodes.csv").rows}  # the latest line of each
    better = {widths for widths, row in plans.items() if row.reward > result.reward}
    assert better and all(plans[widths].ci_high_ms > 7.0 for widths in better)
    assert {row.widths for row in result.better_over} == better
    assert result.better_over[0].reward == max(row.reward for row in plans.values())


@pytest.fixture
def single_channels(monkeypatch):
    """Widths of every number of channels from 8 on, so that a plan can come close to any budget."""
    grids = tuple(np.arange(8, full + 1) for full in toy.FULL)
    errors = tuple(weight * (1 - grid / grid[-1]) ** 2 for weight, grid in zip(toy.IMPORTANCE, grids, strict=True))
    monkeypatch.setattr(toy, "ERRORS", errors)
    return grids


@pytest.mark.parametrize("name", ["uniform", "critic", "dp"])
def test_what_the_measurement_leaves_over_is_used(tmp_path, name, single_channels):
    phone = toy.Phone(tmp_path / "records", slower=0.8, corrects=False)
    result = search(tmp_path, name, budget=CostLimit(phone.cost, 7.0, single_channels, "ms"), measure=phone.measure)
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    found = max((row for row in rows if row.is_episode), key=lambda row: row.reward)
    assert found.ci_high_ms < 0.9 * 7.0
    assert loop.LEAST_USED * 7.0 <= result.ci_high_ms <= 7.0
    assert result.reward > found.reward
    assert np.all(result.widths >= found.widths)
    assert [row.policy for row in rows[result.episodes :]].count("resize") <= loop.MAX_RESIZES
    assert result.episodes == sum(row.is_episode for row in rows)


def test_a_better_plan_measured_over_the_budget_is_narrowed(tmp_path, single_channels):
    def measure(widths):
        truth = float(toy.cost(widths[None])[0]) * (1.03 if widths[2] > 50 else 0.97)
        return MeasuredCost(truth, truth, truth)

    budget = CostLimit(toy.cost, 7.0, single_channels, "ms")
    result = search(tmp_path, "critic", budget=budget, measure=measure, episodes=4)
    uniform, _, deep, dynamic, *resized = EpisodeLog(tmp_path / "episodes.csv").rows
    assert max(uniform.ci_high_ms, deep.ci_high_ms) < 7.0 < dynamic.ci_high_ms
    assert [row.policy for row in resized] == ["resize"] * len(resized)
    assert np.all(result.widths <= dynamic.widths)
    assert deep.reward < result.reward < dynamic.reward
    assert loop.LEAST_USED * 7.0 <= result.ci_high_ms <= 7.0
    measured = [row.reward for row in resized if row.ci_high_ms is not None]
    assert measured == sorted(measured)  # those that are no better are scored, not measured


# A guaranteed accuracy, and rewards that hold the cost

FULL_COST = float(toy.cost(toy.FULL[None])[0])
FLOOR = 0.97


def with_cost(widths):
    """A score whose reward holds the cost."""
    outcome = toy.score(widths)
    cost = float(toy.cost(widths[None])[0])
    return dataclasses.replace(
        outcome, reward=reward_of("error-log-latency", top1=outcome.top1, fidelity=None, cost=cost, unit="ms")
    )


def guaranteed(folder: Path, name: str, *, episodes: int = 200, limit: float = FULL_COST, floor: float = FLOOR):
    return search(folder, name, episodes=episodes, limit=limit, score=with_cost, target=AccuracyGuarantee(floor))


@pytest.mark.parametrize("name", ["critic", "evolution", "random", "ddpg"])
def test_the_cheapest_plan_that_keeps_the_accuracy_is_the_result(tmp_path, name):
    result = guaranteed(tmp_path, name)
    keeping = [row for row in EpisodeLog(tmp_path / "episodes.csv").rows if row.top1 >= FLOOR]
    assert result.top1 >= FLOOR
    assert result.predicted_cost == min(row.predicted_cost for row in keeping) < 0.9 * FULL_COST


def test_the_search_ends_when_nothing_cheaper_keeps_the_accuracy(tmp_path):
    result = guaranteed(tmp_path, "evolution")
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    assert result.episodes < 200
    assert len(rows) - 1 - max(row.episode for row in rows if row.widths == tuple(result.widths)) == 20


def test_a_search_with_a_guarantee_that_goes_on_ends_the_same(tmp_path):
    whole = guaranteed(tmp_path / "whole", "critic")
    guaranteed(tmp_path / "parts", "critic", episodes=12)
    continued = guaranteed(tmp_path / "parts", "critic")
    assert (tuple(continued.widths), continued.episodes) == (tuple(whole.widths), whole.episodes)


def test_without_a_plan_that_keeps_it_the_highest_reward_wins_and_no_patience_runs_out(tmp_path):
    result = guaranteed(tmp_path, "random", episodes=45, limit=toy.cost(np.full((1, 6), 8))[0] + 1, floor=1.0)
    assert result.episodes == 45
    assert result.reward == max(row.reward for row in EpisodeLog(tmp_path / "episodes.csv").rows)


def test_limits_fall_fast_after_a_success_and_near_the_cheapest_after_failures(tmp_path):
    guaranteed(tmp_path, "random", episodes=40)
    rows = EpisodeLog(tmp_path / "episodes.csv").rows
    guarantee, budget = AccuracyGuarantee(FLOOR), toy.budget(FULL_COST)
    assert guarantee.limit([], budget) == pytest.approx(0.7 * FULL_COST)
    kept = next(i for i, row in enumerate(rows) if guarantee.keeps(row))
    before, cost = rows[: kept + 1], rows[kept].predicted_cost
    assert guarantee.limit(before, budget) == pytest.approx(0.7 * cost)
    failing = [dataclasses.replace(rows[kept], top1=0.1)] * 15
    assert guarantee.limit([*before, *failing], budget) > 0.98 * cost
    assert not guarantee.is_reached([*before, *failing], budget)
    assert guarantee.is_reached([*before, *failing, *failing], budget)


def test_impossible_guarantees_are_refused():
    for values in ({"top1": 1.2}, {"top1": 0.9, "patience": 0}):
        with pytest.raises(InvalidConfig):
            AccuracyGuarantee(**values)


@pytest.mark.parametrize("name", ["critic", "evolution", "ddpg"])
def test_a_reward_that_holds_the_cost_is_searched_below_the_budget(tmp_path, name):
    def drawn(folder: Path, episodes: int):
        budget = toy.budget(FULL_COST)
        policy = toy.policy_for(budget, name, episodes=60)
        log = EpisodeLog(folder / "episodes.csv")
        return run_search(policy, budget, with_cost, episodes=episodes, log=log, target=DrawnLimits(seed=0))

    result = drawn(tmp_path / "whole", 60)
    rows = EpisodeLog(tmp_path / "whole/episodes.csv").rows
    costs = [row.predicted_cost for row in rows]
    assert sum(cost < 0.95 * FULL_COST for cost in costs) > 40
    assert max(costs) - min(costs) > 0.3 * FULL_COST
    assert result.reward == max(row.reward for row in rows)
    drawn(tmp_path / "parts", 20)
    assert tuple(drawn(tmp_path / "parts", 60).widths) == tuple(result.widths)


def test_of_equal_rewards_the_cheaper_plan_is_the_result(tmp_path):
    def perfect(widths):
        return dataclasses.replace(with_cost(widths), reward=0.0, top1=1.0)

    result = search(tmp_path, "random", episodes=30, limit=FULL_COST, score=perfect, target=DrawnLimits(seed=0))
    assert result.predicted_cost == min(row.predicted_cost for row in EpisodeLog(tmp_path / "episodes.csv").rows)
