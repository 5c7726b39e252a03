"""The search: episodes, then measurements and tighter limits, until the best plan is known to meet the budget.

The control flow depends on log lines and on the cost as it is now, never on which process wrote the lines: a
search that was killed observes its log again and goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from amc_mobile.errors import BudgetNotMet, InvalidConfig, InvalidInput, UnreachableBudget
from amc_mobile.search.budget import Budget, Widths, format_cost
from amc_mobile.search.episode_log import CHECK, EpisodeLog, EpisodeRow, Pending
from amc_mobile.search.episode_runner import EpisodeRunner, Measure, Score
from amc_mobile.search.guarantee import AccuracyGuarantee, DrawnLimits
from amc_mobile.search.policy import Policy
from amc_mobile.search.reward import Outcome
from amc_mobile.search.standings import Standings


@dataclass(frozen=True)
class CheckConfig:
    """What happens when the plans that scored best have not been measured, or were measured over the budget."""

    max_checks: int = 8  # plans measured after the last episode, and again after each tightening
    max_overs: int = 5  # measurements over the budget in a row, after which the limit is tightened at once
    max_tightenings: int = 4
    extra_episodes: int = 40  # searched under each tightened limit
    smallest_tightening: float = 0.01  # of the limit; keeps a hopeless search from standing still


@dataclass(frozen=True)
class OverBudget:
    """A plan that was measured over the budget."""

    episode: int  # that found it
    policy: str  # where it came from; "check": measured after the last episode
    reward: float
    measured_ms: float
    ci_high_ms: float
    widths: tuple[int, ...]


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
    better_over: tuple[OverBudget, ...] = ()  # better plans that were measured over the budget, best first


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
    guarantee: AccuracyGuarantee | None = None,
    drawn_limits: DrawnLimits | None = None,
    resume: bool = True,
) -> SearchResult:
    """Searches for `episodes` episodes and returns the plan of the highest reward within the budget.

    `measure` (only with a budget in ms) is called for every new best and, if `measure_every` is not 0, for every
    `measure_every`-th episode; it may change what `budget.cost` answers. `measured_reward(outcome, p50_ms)` then
    replaces the reward, for rewards that hold the cost. A plan seen before is neither scored nor measured again.
    If no plan is measured within the budget, the limit is tightened by the ratio observed and the search goes on
    for some episodes, a few times. With `guarantee` the best plan is the cheapest one that keeps the accuracy, each
    episode is held to less than that costs, and the search ends early when nothing cheaper is found. `drawn_limits`,
    of no use with a guarantee: episodes are held to these. `policy` must be new, and the one the log was started with
    if `resume`.

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
    standings = Standings(budget.limit)
    ranking = guarantee or drawn_limits
    if ranking is not None:
        standings.rank = ranking.rank
    runner = EpisodeRunner(
        policy=policy,
        budget=budget,
        score=score,
        log=log,
        standings=standings,
        measure=measure,
        measure_every=measure_every,
        measured_reward=measured_reward,
        on_episode=on_episode or (lambda _: None),
    )
    search = _Search(policy, budget, log, standings, runner, checks or CheckConfig(), guarantee, drawn_limits)
    search.start()
    return search.finish(episodes)


@dataclass
class _Search:
    policy: Policy
    budget: Budget
    log: EpisodeLog
    standings: Standings
    runner: EpisodeRunner
    checks: CheckConfig
    guarantee: AccuracyGuarantee | None
    drawn_limits: DrawnLimits | None

    def start(self) -> None:
        """Opens the log, takes in what it holds, and finishes the line that was under way."""
        if self.log.started:
            self.policy.restore(self.log.policy_document)
        else:
            self.budget.check()
        settings = {
            "limit": self.budget.limit,
            "unit": self.budget.unit,
            "grids": [[int(width) for width in grid] for grid in self.budget.grids],
            "measured": self.runner.measure is not None,
            "guarantee": asdict(self.guarantee) if self.guarantee is not None else None,
        }
        self.log.start(self.policy.state_document(), settings)
        for row in self.log.rows:
            self.standings.take(row)
            if row.policy != CHECK:
                self.policy.observe(np.array(row.widths, dtype=np.int64), row.reward)
        pending = self.log.pending
        if pending is None:
            return
        if pending.limit < self.standings.search_limit:
            self.standings.tighten(pending.limit)
        if pending.policy == CHECK:
            self.runner.check(pending)
        else:
            self.runner.run(pending, agent_s=0.0)

    def finish(self, episodes: int) -> SearchResult:
        standings = self.standings
        while True:
            if standings.episodes < self._episodes_wanted(episodes) and not self._is_over():
                if standings.overs >= self.checks.max_overs and standings.tightenings + 1 < self.checks.max_tightenings:
                    standings.tighten(self._tighter())  # one is left for the end
                try:
                    started = time.process_time()
                    pending = self._proposal()
                except UnreachableBudget:
                    # The corrected cost, or a tightened limit, leaves no plan; what was measured still counts.
                    if standings.fastest() is None:
                        raise
                    return self._best_measured()
                self.runner.run(pending, agent_s=time.process_time() - started)
            elif self.runner.measure is None:
                best = standings.best_predicted(self.budget)
                if best is None:
                    raise BudgetNotMet("no plan tried is within the budget by the cost model as it is now")
                return self._result(best)
            else:
                candidate = standings.candidate(standings.tightened(self.budget))
                if candidate is not None and standings.checks < self.checks.max_checks:
                    self.runner.check(self.runner.begin(CHECK, candidate.widths, measuring=True))
                elif standings.best_measured() is None and standings.tightenings < self.checks.max_tightenings:
                    standings.tighten(self._tighter())
                else:
                    return self._best_measured()

    def _episodes_wanted(self, episodes: int) -> int:
        extra, most = self.checks.extra_episodes, self.policy.episodes_per_round
        if most is not None:
            episodes, extra = min(episodes, most), min(extra, most)
        return episodes + extra * self.standings.tightenings

    def _is_over(self) -> bool:
        """Whether the accuracy is kept as cheaply as it will be; not while tightened limits ask for more episodes."""
        if self.guarantee is None or self.standings.tightenings:
            return False
        return self.guarantee.is_over(self.log.rows, self.budget.cost_of(self.budget.full))

    def _episode_budget(self) -> Budget:
        budget = self.standings.tightened(self.budget)
        if self.guarantee is None:
            if self.drawn_limits is None:
                return budget
            smallest = budget.cost_of(budget.smallest())
            return budget.with_limit(min(budget.limit, self.drawn_limits.limit(self.log.rows, smallest, budget.limit)))
        wanted = self.guarantee.limit(self.log.rows, budget.cost_of(budget.full))
        # Not below every plan there is: then the smallest one is proposed.
        return budget.with_limit(min(budget.limit, max(wanted, budget.cost_of(budget.smallest()))))

    def _proposal(self) -> Pending:
        widths = self.policy.propose(self._episode_budget())
        return self.runner.begin(self.policy.label, tuple(int(width) for width in widths), measuring=False)

    def _tighter(self) -> float:
        """The next limit: the budget over the observed ratio, and below the last one, but not below every plan."""
        ratio = self.standings.observed_ratio(self.budget)
        wanted = min(self.standings.search_limit * (1 - self.checks.smallest_tightening), self.budget.limit / ratio)
        smallest = self.budget.cost_of(self.budget.smallest())
        if smallest <= self.budget.limit:
            wanted = max(wanted, smallest)
        return min(wanted, math.nextafter(self.standings.search_limit, 0))

    def _best_measured(self) -> SearchResult:
        best, fastest = self.standings.best_measured(), self.standings.fastest()
        if best is not None:
            return self._result(best)
        wanted = format_cost(self.budget.limit, self.budget.unit)
        if fastest is None or fastest.measured_ms is None or fastest.ci_high_ms is None:
            raise BudgetNotMet(
                f"no plan found is within the budget of {wanted} by the corrected prediction",
                next_step="raise the budget, or lower --min-keep-ratio",
            )
        raise BudgetNotMet(
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
            better_over=tuple(
                OverBudget(row.episode, row.policy, row.reward, row.measured_ms or 0, row.ci_high_ms or 0, row.widths)
                for row in self.standings.better_over(best)
            ),
        )
