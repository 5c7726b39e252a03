"""One episode or one check, carried out: score, measure, observe, log.

What is begun is on record before the work starts, so that a killed search finishes the same line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from amc_mobile.errors import InvalidInput
from amc_mobile.search.budget import Budget, Widths
from amc_mobile.search.episode_log import CHECK, EpisodeLog, EpisodeRow, Pending
from amc_mobile.search.policy import Policy
from amc_mobile.search.reward import MeasuredCost, Outcome
from amc_mobile.search.standings import Plan, Standings

Score = Callable[[Widths], Outcome]
Measure = Callable[[Widths], MeasuredCost]


@dataclass
class EpisodeRunner:
    """Scores and measures plans, each at most once, and tells `policy`, `log`, `standings` and `on_episode`.

    `measure`, `measure_every` and `measured_reward`: as for `run_search`.
    """

    policy: Policy
    budget: Budget
    score: Score
    log: EpisodeLog
    standings: Standings
    measure: Measure | None
    measure_every: int
    measured_reward: Callable[[Outcome, float], float] | None
    on_episode: Callable[[EpisodeRow], None]

    def begin(self, policy: str, plan: Plan, *, measuring: bool) -> Pending:
        """Puts what comes next on record. `policy`: where the plan comes from; `measuring`: it will be measured."""
        predicted = self.budget.cost_of(np.array(plan, dtype=np.int64))
        pending = Pending(policy, plan, predicted, self.standings.search_limit, measuring)
        self.log.begin(pending)
        return pending

    def run(self, pending: Pending, *, agent_s: float) -> None:
        """One episode. `agent_s`: CPU time of its proposal. Raises InvalidInput for a reward that is not finite."""
        plan = pending.widths
        known = self.standings.plans.get(plan)
        started = time.process_time()
        outcome = self._outcome(known, plan)
        scored = time.process_time()
        row = EpisodeRow(
            episode=self.standings.episodes,
            policy=pending.policy,
            reward=outcome.reward,
            top1=outcome.top1,
            fidelity=outcome.fidelity,
            predicted_cost=pending.predicted_cost,
            limit=pending.limit,
            measured_ms=known.measured_ms if known else None,
            ci_high_ms=known.ci_high_ms if known else None,
            macs=outcome.macs,
            parameters=outcome.parameters,
            reconstruction_s=outcome.seconds.get("reconstruction", 0.0),
            evaluation_s=outcome.seconds.get("evaluation", 0.0 if outcome.seconds else scored - started),
            agent_s=agent_s,
            latency_s=0.0,
            widths=plan,
        )
        if self.measure is not None and row.ci_high_ms is None and (pending.measuring or self._is_to_measure(row)):
            if not pending.measuring:
                self.log.begin(replace(pending, measuring=True))
            row = self._measured(row, self.measure)
        started = time.process_time()
        self.policy.observe(np.array(plan, dtype=np.int64), row.reward)
        self._write(replace(row, agent_s=agent_s + time.process_time() - started))

    def check(self, pending: Pending) -> None:
        """Measures a plan that an earlier episode scored."""
        assert self.measure is not None
        row = replace(
            self.standings.plans[pending.widths],
            policy=CHECK,
            predicted_cost=pending.predicted_cost,
            limit=pending.limit,
            reconstruction_s=0.0,
            evaluation_s=0.0,
            agent_s=0.0,
        )
        self._write(self._measured(row, self.measure))

    def _outcome(self, known: EpisodeRow | None, plan: Plan) -> Outcome:
        if known is not None:
            nothing = {"reconstruction": 0.0, "evaluation": 0.0}
            return Outcome(known.reward, known.top1, known.fidelity, known.macs, known.parameters, nothing)
        outcome = self.score(np.array(plan, dtype=np.int64))
        if not math.isfinite(outcome.reward):
            raise InvalidInput(f"the plan {list(plan)} scored a reward of {outcome.reward}")
        return outcome

    def _is_to_measure(self, row: EpisodeRow) -> bool:
        """Whether this is a new best, or its turn has come."""
        if self.measure_every > 0 and (row.episode + 1) % self.measure_every == 0:
            return True
        best = self.standings.best_standing(self.standings.tightened(self.budget))
        return best is None or self.standings.rank(row) > self.standings.rank(best)

    def _measured(self, row: EpisodeRow, measure: Measure) -> EpisodeRow:
        started = time.perf_counter()
        cost = measure(np.array(row.widths, dtype=np.int64))
        reward = row.reward
        if self.measured_reward is not None:
            outcome = Outcome(row.reward, row.top1, row.fidelity, row.macs, row.parameters)
            reward = self.measured_reward(outcome, cost.measured)
        return replace(
            row,
            reward=reward,
            measured_ms=float(cost.measured),
            ci_high_ms=float(cost.ci_high),
            latency_s=time.perf_counter() - started,
        )

    def _write(self, row: EpisodeRow) -> None:
        self.log.append(row)
        self.standings.take(row)
        self.on_episode(row)
