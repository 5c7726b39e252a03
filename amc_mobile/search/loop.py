"""The search: propose, score, measure, observe, log; until the best plan is known to meet the budget.

The control flow depends on log lines and on the cost as it is now, never on which process wrote the lines: a
search that was killed observes its log again and goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from amc_mobile.errors import BudgetNotMet, InvalidConfig, InvalidInput, UnreachableBudget
from amc_mobile.search.budget import Budget, Widths, format_cost
from amc_mobile.search.episode_log import CHECK, EpisodeLog, EpisodeRow
from amc_mobile.search.policies import Policy
from amc_mobile.search.reward import MeasuredCost, Outcome
from amc_mobile.search.standings import Standings

Score = Callable[[Widths], Outcome]
Measure = Callable[[Widths], MeasuredCost]


@dataclass(frozen=True)
class CheckConfig:
    """What happens when the plans that scored best have not been measured, or were measured over the budget."""

    max_checks: int = 8  # plans measured after the last episode, and again after each tightening
    max_tightenings: int = 3
    extra_episodes: int = 40  # searched under each tightened limit
    smallest_tightening: float = 0.01  # of the limit; keeps a hopeless search from standing still


@dataclass(frozen=True)
class SearchResult:
    """The best plan. With `measure` it was measured within the budget; without, it is predicted to be."""

    widths: Widths
    reward: float
    top1: float | None
    fidelity: float | None
    predicted_cost: float  # by the cost model as it is at the end
    measured_ms: float | None
    ci_high_ms: float | None
    episode: int  # that found it
    episodes: int
    evaluations: int  # different plans scored
    measurements: int  # different plans measured
    search_limit: float  # the budget, or less when plans were measured over it


def run_search(
    policy: Policy,
    budget: Budget,
    score: Score,
    *,
    episodes: int,
    log: EpisodeLog,
    on_episode: Callable[[EpisodeRow], None] | None = None,
    measure: Measure | None = None,
    measure_every: int = 0,
    measured_reward: Callable[[Outcome, float], float] | None = None,
    checks: CheckConfig | None = None,
    resume: bool = True,
) -> SearchResult:
    """Searches for `episodes` episodes and returns the plan of the highest reward within the budget.

    `measure` (only with a budget in ms) is called for every new best and, if `measure_every` is not 0, for every
    `measure_every`-th episode; it may change what `budget.cost` answers. `measured_reward(outcome, p50_ms)` then
    replaces the reward, for rewards that hold the cost. A plan seen before is neither scored nor measured again.
    If no plan is measured within the budget, the limit is tightened by the ratio observed and the search goes on
    for some episodes, a few times. `policy` must be new, and the one the log was started with if `resume`.

    Raises UnreachableBudget before the first episode; BudgetNotMet, with the fastest plan measured, at the end;
    InvalidInput when the log is of another search, or holds episodes and `resume` is False.
    """
    if measure is not None and budget.unit != "ms":
        raise InvalidConfig(f"plans are measured in ms, but the budget is in {budget.unit}")
    if episodes < 1:
        raise InvalidConfig(f"a search needs at least 1 episode, not {episodes}")
    if log.rows and not resume:
        raise InvalidInput(
            f"{log.path} already holds {len(log.rows)} episodes", next_step="resume it or name a new run"
        )
    search = _Search(policy, budget, score, log, measure, measure_every, measured_reward, on_episode)
    search.start()
    return search.finish(episodes, checks or CheckConfig())


class _Search:
    def __init__(
        self,
        policy: Policy,
        budget: Budget,
        score: Score,
        log: EpisodeLog,
        measure: Measure | None,
        measure_every: int,
        measured_reward: Callable[[Outcome, float], float] | None,
        on_episode: Callable[[EpisodeRow], None] | None,
    ) -> None:
        self.policy = policy
        self.budget = budget
        self.score = score
        self.log = log
        self.measure = measure
        self.measure_every = measure_every
        self.measured_reward = measured_reward
        self.on_episode = on_episode
        self.standings = Standings(budget.limit)

    def start(self) -> None:
        """Opens the log, and takes in what it already holds."""
        if self.log.started:
            self.policy.restore(self.log.policy_document)
        else:
            self.budget.check()
        settings = {
            "limit": self.budget.limit,
            "unit": self.budget.unit,
            "grids": [[int(width) for width in grid] for grid in self.budget.grids],
            "measured": self.measure is not None,
        }
        self.log.start(self.policy.state_document(), settings)
        for row in self.log.rows:
            self._take(row)

    def finish(self, episodes: int, checks: CheckConfig) -> SearchResult:
        standings = self.standings
        while True:
            wanted = _episodes_wanted(self.policy, episodes, standings.tightenings, checks)
            if standings.episodes < wanted:
                try:
                    self._episode()
                except UnreachableBudget:
                    # The corrected cost has no plan left; what was measured within the budget still counts.
                    best = standings.best_measured()
                    if best is None:
                        raise
                    return self._result(best)
                continue
            if self.measure is None:
                best = standings.best_predicted(self.budget)
                if best is None:
                    raise BudgetNotMet("no plan tried is within the budget by the cost model as it is now")
                return self._result(best)
            candidate = standings.candidate(self._current_budget())
            if candidate is not None and standings.checks < checks.max_checks:
                self._check(candidate)
            elif (best := standings.best_measured()) is not None:
                return self._result(best)
            elif standings.tightenings < checks.max_tightenings:
                standings.tighten(self._tighter(checks))
            else:
                raise self._not_met()

    def _current_budget(self) -> Budget:
        return self.budget.with_limit(self.standings.search_limit)

    def _take(self, row: EpisodeRow) -> None:
        self.standings.take(row)
        if row.policy != CHECK:
            self.policy.observe(np.array(row.widths, dtype=np.int64), row.reward)

    def _episode(self) -> None:
        budget = self._current_budget()
        started = time.perf_counter()
        label = self.policy.label
        pending = self.log.pending
        if pending is None:
            widths = self.policy.propose(budget)
            predicted = budget.cost_of(widths)
            self.log.begin(widths, predicted)
        else:
            widths, predicted = pending
        proposed = time.perf_counter()
        plan = tuple(int(width) for width in widths)
        known = self.standings.plans.get(plan)
        outcome = self._outcome(known, widths)
        scored = time.perf_counter()
        cost = self._measurement(known, plan, outcome)
        measured = time.perf_counter()
        reward = outcome.reward
        if cost is not None and self.measured_reward is not None:
            reward = self.measured_reward(outcome, cost[0])
        self.policy.observe(widths, reward)
        row = EpisodeRow(
            episode=self.standings.episodes,
            policy=label,
            reward=reward,
            top1=outcome.top1,
            fidelity=outcome.fidelity,
            predicted_cost=predicted,
            limit=budget.limit,
            measured_ms=cost[0] if cost else None,
            ci_high_ms=cost[1] if cost else None,
            macs=outcome.macs,
            parameters=outcome.parameters,
            reconstruction_s=outcome.seconds.get("reconstruction", 0.0),
            evaluation_s=outcome.seconds.get("evaluation", 0.0 if outcome.seconds else scored - proposed),
            agent_s=proposed - started + time.perf_counter() - measured,
            latency_s=measured - scored,
            widths=plan,
        )
        self._write(row)

    def _outcome(self, known: EpisodeRow | None, widths: Widths) -> Outcome:
        if known is not None:
            # `seconds` is not empty: nothing was spent.
            nothing = {"reconstruction": 0.0, "evaluation": 0.0}
            return Outcome(known.reward, known.top1, known.fidelity, known.macs, known.parameters, nothing)
        outcome = self.score(widths)
        if not math.isfinite(outcome.reward):
            raise InvalidInput(f"the plan {widths.tolist()} scored a reward of {outcome.reward}")
        return outcome

    def _measurement(
        self, known: EpisodeRow | None, plan: tuple[int, ...], outcome: Outcome
    ) -> tuple[float, float] | None:
        """The p50 and its upper end, in ms: known, or measured now if this is a new best or its turn has come."""
        if known is not None and known.measured_ms is not None and known.ci_high_ms is not None:
            return known.measured_ms, known.ci_high_ms
        if self.measure is None:
            return None
        best = self.standings.best_standing(self._current_budget())
        turn = self.measure_every > 0 and (self.standings.episodes + 1) % self.measure_every == 0
        if best is not None and outcome.reward <= best.reward and not turn:
            return None
        return self._measured(plan)

    def _measured(self, plan: tuple[int, ...]) -> tuple[float, float]:
        assert self.measure is not None
        cost = self.measure(np.array(plan, dtype=np.int64))
        return float(cost.measured), float(cost.ci_high)

    def _check(self, row: EpisodeRow) -> None:
        started = time.perf_counter()
        widths = np.array(row.widths, dtype=np.int64)
        budget = self._current_budget()
        predicted = budget.cost_of(widths)
        measured_ms, ci_high_ms = self._measured(row.widths)
        reward = row.reward
        if self.measured_reward is not None:
            reward = self.measured_reward(
                Outcome(row.reward, row.top1, row.fidelity, row.macs, row.parameters), measured_ms
            )
        self._write(
            EpisodeRow(
                episode=row.episode,
                policy=CHECK,
                reward=reward,
                top1=row.top1,
                fidelity=row.fidelity,
                predicted_cost=predicted,
                limit=budget.limit,
                measured_ms=measured_ms,
                ci_high_ms=ci_high_ms,
                macs=row.macs,
                parameters=row.parameters,
                reconstruction_s=0.0,
                evaluation_s=0.0,
                agent_s=0.0,
                latency_s=time.perf_counter() - started,
                widths=row.widths,
            )
        )

    def _write(self, row: EpisodeRow) -> None:
        self.log.append(row)
        self.standings.take(row)
        if self.on_episode is not None:
            self.on_episode(row)

    def _tighter(self, checks: CheckConfig) -> float:
        """The next limit: the budget over the observed ratio, and below the last one, but not below every plan."""
        ratio = self.standings.observed_ratio(self.budget)
        wanted = min(self.standings.search_limit * (1 - checks.smallest_tightening), self.budget.limit / ratio)
        smallest = self.budget.cost_of(self.budget.smallest())
        if smallest <= self.budget.limit:
            wanted = max(wanted, smallest)
        return min(wanted, math.nextafter(self.standings.search_limit, 0))

    def _not_met(self) -> BudgetNotMet:
        fastest = self.standings.fastest()
        wanted = format_cost(self.budget.limit, self.budget.unit)
        if fastest is None or fastest.measured_ms is None or fastest.ci_high_ms is None:
            return BudgetNotMet(
                f"no plan found is within the budget of {wanted} by the corrected prediction",
                next_step="raise the budget, or lower --min-keep-ratio",
            )
        return BudgetNotMet(
            f"no plan was measured within the budget of {wanted}; the fastest took {fastest.measured_ms:.4g} ms "
            f"(95 % interval up to {fastest.ci_high_ms:.4g} ms)",
            next_step=f"raise the budget to {fastest.ci_high_ms:.4g} ms or more, or lower --min-keep-ratio",
        )

    def _result(self, best: EpisodeRow) -> SearchResult:
        plans = self.standings.plans.values()
        widths = np.array(best.widths, dtype=np.int64)
        return SearchResult(
            widths=widths,
            reward=best.reward,
            top1=best.top1,
            fidelity=best.fidelity,
            predicted_cost=self.budget.cost_of(widths),
            measured_ms=best.measured_ms,
            ci_high_ms=best.ci_high_ms,
            episode=best.episode,
            episodes=self.standings.episodes,
            evaluations=len(plans),
            measurements=sum(row.measured_ms is not None for row in plans),
            search_limit=self.standings.search_limit,
        )


def _episodes_wanted(policy: Policy, episodes: int, tightenings: int, checks: CheckConfig) -> int:
    most = policy.episodes_per_round
    if most is not None:
        return min(most, episodes) + min(most, checks.extra_episodes) * tightenings
    return episodes + checks.extra_episodes * tightenings
