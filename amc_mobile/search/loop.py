"""The search: episodes, then measurements and tighter limits, until the best plan is known to meet the budget.

The control flow depends on log lines and on the cost as it is now, never on which process wrote the lines: a
search that was killed observes its log again and goes on where it stopped.

An episode that is begun is on record before the work starts, so that a killed search finishes the same line.

With a promise of accuracy the limit moves: policies spend the budget that they are given, so the budget is what moves
from episode to episode.

Policies are held to a predicted latency with its error band on top, so that the best plan measured is often faster than
it need be, and after fine-tuning nothing can be added to it. So at the end of the search it is widened to what its
measurement leaves over, better plans that were measured a little over the budget are narrowed, and both are measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from amc_mobile.errors import BudgetNotMet, InvalidConfig, InvalidInput, UnreachableBudget
from amc_mobile.search.budget import CostLimit, Widths, format_cost
from amc_mobile.search.episode_log import CHECK, RESIZE, EpisodeLog, EpisodeRow, Pending
from amc_mobile.search.policy import Policy
from amc_mobile.search.reward import MeasuredCost, Outcome

Plan = tuple[int, ...]
Score = Callable[[Widths], Outcome]
Measure = Callable[[Widths], MeasuredCost]


class Target:
    """What "best" means, and which limit each episode is held to: the highest reward within the budget."""

    uses_all_budget = True  # what is left of a measured budget is worth taking

    def rank(self, row: EpisodeRow) -> tuple[float, ...]:
        """The highest is the best."""
        return (row.reward,)

    def limit(self, rows: Sequence[EpisodeRow], budget: CostLimit) -> float:
        """For the next episode, in the budget's unit and at most its limit. `rows`: all so far."""
        del rows
        return budget.limit

    def is_reached(self, rows: Sequence[EpisodeRow], budget: CostLimit) -> bool:
        """Whether nothing better is to be expected: the search ends before its last episode."""
        del rows, budget
        return False


HIGHEST_REWARD = Target()
FIRST_STEP = 0.3  # off the cheapest cost so far, for the episode after a success ...
STEP_DECAY = 0.8  # ... and its factor with each failure
NEAR_BEST = 0.15  # deviation of a drawn limit from the best plan's cost, in its logarithm


@dataclass(frozen=True)
class AccuracyGuarantee(Target):
    """The cheapest plan that keeps the accuracy, and the end when nothing cheaper does.

    Each episode's limit is a share of what the cheapest plan that kept the accuracy costs. The share starts low and
    nears 1 with each failure in a row. `top1`: the share of reward images, in [0, 1], that a plan must get right.
    `patience`: failures in a row, after a plan that kept the accuracy, with which the search ends.
    """

    top1: float
    patience: int = 20
    uses_all_budget = False

    def __post_init__(self) -> None:
        if not 0 <= self.top1 <= 1 or self.patience < 1:
            raise InvalidConfig("the accuracy to keep must be in [0, 1] and the patience at least 1")

    def keeps(self, row: EpisodeRow) -> bool:
        return row.top1 is not None and row.top1 >= self.top1

    def rank(self, row: EpisodeRow) -> tuple[float, ...]:
        """Plans that keep the accuracy before all others, the cheapest first; the others by reward."""
        return (1.0, -row.cost) if self.keeps(row) else (0.0, row.reward)

    def limit(self, rows: Sequence[EpisodeRow], budget: CostLimit) -> float:
        """The original network keeps the accuracy. Where no plan is so cheap, the smallest one is proposed."""
        cheapest, failures = self._standing(rows, budget)
        limit = max(cheapest * (1 - FIRST_STEP * STEP_DECAY**failures), budget.cost_of(budget.smallest()))
        return min(budget.limit, limit)

    def is_reached(self, rows: Sequence[EpisodeRow], budget: CostLimit) -> bool:
        kept = any(self.keeps(row) for row in rows)
        return kept and self._standing(rows, budget)[1] >= self.patience

    def _standing(self, rows: Sequence[EpisodeRow], budget: CostLimit) -> tuple[float, int]:
        """The cost of the cheapest plan that keeps the accuracy, and the failures since."""
        cheapest, failures = budget.cost_of(budget.full), 0
        for row in rows:
            if not row.is_episode:
                continue
            if self.keeps(row) and row.predicted_cost < cheapest:
                cheapest, failures = row.predicted_cost, 0
            else:
                failures += 1
        return cheapest, failures


@dataclass(frozen=True)
class DrawnLimits(Target):
    """A limit for each episode: in turn anywhere below the budget, and near the best plan's cost.

    For rewards that hold the cost: what they prefer may be far below the budget.
    """

    seed: int
    uses_all_budget = False

    def rank(self, row: EpisodeRow) -> tuple[float, ...]:
        """By reward; of equal ones, as of plans without a mistake, the cheaper first."""
        return (row.reward, -row.cost)

    def limit(self, rows: Sequence[EpisodeRow], budget: CostLimit) -> float:
        smallest = budget.cost_of(budget.smallest())
        largest = max(budget.limit, smallest)
        tried = [row for row in rows if row.is_episode]
        rng = np.random.default_rng([self.seed, len(tried), 3])
        if tried and len(tried) % 2:
            drawn = max(tried, key=self.rank).predicted_cost * np.exp(NEAR_BEST * rng.standard_normal())
        else:
            drawn = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
        return min(budget.limit, float(np.clip(drawn, smallest, largest)))


@dataclass
class Standings:
    """Built by `take` from log lines alone, so that a search that goes on knows what it knew."""

    budget_limit: float
    target: Target = HIGHEST_REWARD
    search_limit: float = math.inf  # what plans are held to: the budget, or less after tightening
    episodes: int = 0
    tightenings: int = 0
    checks: int = 0  # since the last tightening
    overs: int = 0  # measurements over the budget in a row, since the last tightening
    resizes: int = 0  # since the last episode
    plans: dict[Plan, EpisodeRow] = field(default_factory=dict)  # the latest line of each plan, best known

    def __post_init__(self) -> None:
        self.search_limit = min(self.search_limit, self.budget_limit)

    def take(self, row: EpisodeRow) -> None:
        if row.limit < self.search_limit:
            self.tighten(row.limit)
        known = self.plans.get(row.widths)
        if row.policy != RESIZE and row.ci_high_ms is not None and (known is None or known.ci_high_ms is None):
            self.overs = 0 if self._measured_within(row) else self.overs + 1
        if not row.is_episode:
            self.checks += row.policy == CHECK
            self.resizes += row.policy == RESIZE
            self.plans[row.widths] = row
        else:
            self.episodes += 1
            self.resizes = 0
            if known is None or known.measured_ms is None:
                # A plan proposed again keeps the episode that found it.
                self.plans[row.widths] = row if known is None else replace(row, episode=known.episode)

    def tighten(self, limit: float) -> None:
        self.search_limit = limit
        self.tightenings += 1
        self.checks = self.overs = 0

    def tightened(self, budget: CostLimit) -> CostLimit:
        """`budget` at the limit that plans are held to now."""
        return budget.with_limit(self.search_limit)

    def best_measured(self) -> EpisodeRow | None:
        """The best among the plans measured within the budget."""
        return self._best([row for row in self._measured if self._measured_within(row)])

    def best_predicted(self, budget: CostLimit) -> EpisodeRow | None:
        """The best among the plans whose cost, as it is now, is within the budget."""
        return self._best(self._predicted_within(list(self.plans.values()), budget))

    def best_standing(self, budget: CostLimit) -> EpisodeRow | None:
        """The best among plans measured within the budget, or not measured and predicted within it."""
        measured = [row for row in self._measured if self._measured_within(row)]
        return self._best(measured + self._predicted_within(self._unmeasured, budget))

    def better_over(self, best: EpisodeRow) -> list[EpisodeRow]:
        """The plans better than `best` that were measured over the budget, best first: why none of them was chosen."""
        over = [row for row in self._measured if not self._measured_within(row) and self.is_better(row, best)]
        return sorted(over, key=self.target.rank, reverse=True)

    def candidate(self, budget: CostLimit) -> EpisodeRow | None:
        """The best plan not measured yet that would beat the best measured one."""
        best = self.best_measured()
        better = [row for row in self._unmeasured if self.is_better(row, best)]
        return self._best(self._predicted_within(better, budget))

    def is_better(self, row: EpisodeRow, best: EpisodeRow | None) -> bool:
        return best is None or self.target.rank(row) > self.target.rank(best)

    def fastest(self, count: int = 1) -> list[EpisodeRow]:
        """The plans with the lowest upper ends of their measured confidence intervals; fewer where fewer were."""
        return sorted(self._measured, key=lambda row: row.ci_high_ms or 0)[:count]

    def observed_ratio(self, budget: CostLimit) -> float:
        """How much the measured upper end exceeds the cost predicted now: the worst of the five fastest plans."""
        fastest = self.fastest(5)
        if not fastest:
            return 1.0
        predicted = budget.cost(np.array([row.widths for row in fastest], dtype=np.int64))
        return float(np.max(np.array([row.ci_high_ms for row in fastest]) / predicted))

    @property
    def _measured(self) -> list[EpisodeRow]:
        return [row for row in self.plans.values() if row.ci_high_ms is not None]

    @property
    def _unmeasured(self) -> list[EpisodeRow]:
        return [row for row in self.plans.values() if row.ci_high_ms is None]

    def _measured_within(self, row: EpisodeRow) -> bool:
        return row.ci_high_ms is not None and row.ci_high_ms <= self.budget_limit

    def _predicted_within(self, rows: list[EpisodeRow], budget: CostLimit) -> list[EpisodeRow]:
        if not rows:
            return []
        costs = budget.cost(np.array([row.widths for row in rows], dtype=np.int64))
        return [row for row, cost in zip(rows, costs, strict=True) if cost <= budget.limit]

    def _best(self, rows: list[EpisodeRow]) -> EpisodeRow | None:
        return max(rows, key=lambda row: (self.target.rank(row), -row.episode), default=None)


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


# What happens when the plans that scored best have not been measured, or were measured over the budget.
MAX_CHECKS = 8  # plans measured after the last episode, and again after each tightening
MAX_OVERS = 5  # measurements over the budget in a row, after which the limit is tightened at once
MAX_TIGHTENINGS = 4
EXTRA_EPISODES = 40  # searched under each tightened limit
SMALLEST_TIGHTENING = 0.01  # of the limit; keeps a hopeless search from standing still

# What happens to a plan whose measured latency, the upper end of its interval, is far below the budget. Closer than
# this is too close: measured again minutes later a file differs by 1 or 2 %, more than its interval says, and of the
# demo's network at 99.5 % of its budget one export in five failed its gate.
LEAST_USED = 0.96  # of the budget, from which a plan is left as it is ...
AIMED_USE = 0.97  # ... and where others are scaled to
MAX_RESIZES = 8  # plans scored for it; those that are better than the best are measured


def run_search(
    policy: Policy,
    budget: CostLimit,
    score: Score,
    *,
    episodes: int,
    log: EpisodeLog,
    on_episode: Callable[[EpisodeRow], None] = lambda _: None,
    measure: Measure | None = None,
    measure_every: int = 0,
    measured_reward: Callable[[Outcome, float], float] = lambda outcome, _: outcome.reward,
    target: Target = HIGHEST_REWARD,
) -> SearchResult:
    """Searches for `episodes` episodes and returns the best plan within the budget, by `target`.

    `measure` (only with a budget in ms) is called for every new best and, if `measure_every` is not 0, for every
    `measure_every`-th episode; it may change what `budget.cost` answers. `measured_reward(outcome, p50_ms)` then
    replaces the reward, for rewards that hold the cost. A plan seen before is neither scored nor measured again.
    If no plan is measured within the budget, the limit is tightened by the ratio observed and the search goes on
    for some episodes, a few times. `policy` must be new, and the one the log was started with.

    Raises UnreachableBudget before the first episode; BudgetNotMet, with the fastest plan measured, at the end;
    InvalidInput when the log is of another search.
    """
    if measure is not None and budget.unit != "ms":
        raise InvalidConfig(f"plans are measured in ms, but the budget is in {budget.unit}")
    if episodes < 1:
        raise InvalidConfig(f"a search needs at least 1 episode, not {episodes}")
    standings = Standings(budget.limit, target)
    search = _Search(policy, budget, score, log, standings, target, measure, measure_every, measured_reward, on_episode)
    search.resume()
    return search.finish(episodes)


@dataclass
class _Search:
    """Scores and measures plans, each at most once, and shows them to `policy`, `log`, `standings` and `on_episode`."""

    policy: Policy
    budget: CostLimit
    score: Score
    log: EpisodeLog
    standings: Standings
    target: Target
    measure: Measure | None
    measure_every: int
    measured_reward: Callable[[Outcome, float], float]
    on_episode: Callable[[EpisodeRow], None]

    def resume(self) -> None:
        """Opens the log, takes in what it holds, and finishes the line that was under way."""
        if self.log.started:
            self.policy.restore(self.log.policy_document)
        else:
            self.budget.check()
        settings = {
            "limit": self.budget.limit,
            "unit": self.budget.unit,
            "grids": [[int(width) for width in grid] for grid in self.budget.grids],
            "measured": self.measure is not None,
            "guarantee": asdict(self.target) if isinstance(self.target, AccuracyGuarantee) else None,
        }
        self.log.start(self.policy.state_document(), settings)
        for row in self.log.rows:
            self.standings.take(row)
            if row.is_episode:
                self.policy.observe(np.array(row.widths, dtype=np.int64), row.reward)
        pending = self.log.pending
        if pending is None:
            return
        if pending.limit < self.standings.search_limit:
            self.standings.tighten(pending.limit)
        if pending.policy == CHECK:
            self._check(pending)
        else:
            self._episode(pending, agent_s=0.0)

    def finish(self, episodes: int) -> SearchResult:
        """Episodes, then measurements and tighter limits, then what is left of the budget."""
        standings = self.standings
        while True:
            if standings.episodes < self._episodes_allowed(episodes) and not self._is_reached():
                if standings.overs >= MAX_OVERS and standings.tightenings + 1 < MAX_TIGHTENINGS:
                    standings.tighten(self._tighter())  # one is left for the end
                try:
                    started = time.process_time()
                    pending = self._proposal()
                except UnreachableBudget:
                    # The corrected cost, or a tightened limit, leaves no plan; what was measured still counts.
                    if not standings.fastest():
                        raise
                    return self._best_measured()
                self._episode(pending, agent_s=time.process_time() - started)
            elif self.measure is None:
                best = standings.best_predicted(self.budget)
                if best is None:
                    raise BudgetNotMet("no plan tried is within the budget by the cost model as it is now")
                return self._result(best)
            else:
                candidate = standings.candidate(standings.tightened(self.budget))
                if candidate is not None and standings.checks < MAX_CHECKS:
                    self._check(self._begin(CHECK, candidate.widths, measuring=True))
                elif standings.best_measured() is None and standings.tightenings < MAX_TIGHTENINGS:
                    standings.tighten(self._tighter())
                elif (plan := self._resized()) is not None:
                    self._episode(self._begin(RESIZE, plan, measuring=False), agent_s=0.0)
                else:
                    return self._best_measured()

    def _proposal(self) -> Pending:
        """The agent's action, clipped to the budget: Figure 1 of the paper, from the left."""
        budget = self.standings.tightened(self.budget)
        widths = self.policy.propose(budget.with_limit(self.target.limit(self.log.rows, budget)))
        return self._begin(self.policy.label, tuple(int(width) for width in widths), measuring=False)

    def _resized(self) -> Plan | None:
        """The next untried plan of those that come from scaling a measured one to the budget by its own measurement.

        Scaled are the best within the budget, then better ones over it. None: there is nothing left to try.
        """
        best = self.standings.best_measured()
        if not self.target.uses_all_budget or best is None or self.standings.resizes >= MAX_RESIZES:
            return None
        for row in (best, *self.standings.better_over(best)):
            used = (row.ci_high_ms or 0) / self.budget.limit
            widths = np.array(row.widths, dtype=np.int64)
            budget = self.budget.with_limit(self.budget.cost_of(widths) * AIMED_USE / used)
            if LEAST_USED <= used <= 1 or not budget.allows(budget.smallest()):
                continue
            plan = tuple(int(width) for width in budget.scale(widths / budget.full))
            if plan not in self.standings.plans:
                return plan
        return None

    def _begin(self, policy: str, plan: Plan, *, measuring: bool) -> Pending:
        """Puts what comes next on record. `policy`: where the plan comes from; `measuring`: it will be measured."""
        predicted = self.budget.cost_of(np.array(plan, dtype=np.int64))
        pending = Pending(policy, plan, predicted, self.standings.search_limit, measuring)
        self.log.begin(pending)
        return pending

    def _episode(self, pending: Pending, *, agent_s: float) -> None:
        """The rest of the figure: prune, evaluate, measure, and the reward goes back to the agent.

        `agent_s`: CPU time of its proposal. Raises InvalidInput for a reward that is not finite.
        """
        plan = pending.widths
        known = self.standings.plans.get(plan)
        started = time.process_time()
        outcome = self._outcome(known, plan)
        scored = time.process_time()
        row = EpisodeRow(
            episode=self.standings.episodes - (pending.policy == RESIZE),
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
        if row.is_episode:
            self.policy.observe(np.array(plan, dtype=np.int64), row.reward)
        self._write(replace(row, agent_s=agent_s + time.process_time() - started))

    def _check(self, pending: Pending) -> None:
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
        if row.policy == RESIZE:
            return self.standings.is_better(row, self.standings.best_measured())
        if self.measure_every > 0 and (row.episode + 1) % self.measure_every == 0:
            return True
        return self.standings.is_better(row, self.standings.best_standing(self.standings.tightened(self.budget)))

    def _measured(self, row: EpisodeRow, measure: Measure) -> EpisodeRow:
        started = time.perf_counter()
        cost = measure(np.array(row.widths, dtype=np.int64))
        outcome = Outcome(row.reward, row.top1, row.fidelity, row.macs, row.parameters)
        return replace(
            row,
            reward=self.measured_reward(outcome, cost.measured),
            measured_ms=float(cost.measured),
            ci_high_ms=float(cost.ci_high),
            latency_s=time.perf_counter() - started,
        )

    def _write(self, row: EpisodeRow) -> None:
        self.log.append(row)
        self.standings.take(row)
        self.on_episode(row)

    def _episodes_allowed(self, episodes: int) -> int:
        extra, most = EXTRA_EPISODES, self.policy.episodes_per_round
        if most is not None:
            episodes, extra = min(episodes, most), min(extra, most)
        return episodes + extra * self.standings.tightenings

    def _is_reached(self) -> bool:
        """Not while tightened limits ask for more episodes."""
        return not self.standings.tightenings and self.target.is_reached(self.log.rows, self.budget)

    def _tighter(self) -> float:
        """The next limit: the budget over the observed ratio, and below the last one, but not below every plan."""
        ratio = self.standings.observed_ratio(self.budget)
        limit = min(self.standings.search_limit * (1 - SMALLEST_TIGHTENING), self.budget.limit / ratio)
        smallest = self.budget.cost_of(self.budget.smallest())
        if smallest <= self.budget.limit:
            limit = max(limit, smallest)
        return min(limit, math.nextafter(self.standings.search_limit, 0))

    def _best_measured(self) -> SearchResult:
        best, fastest = self.standings.best_measured(), self.standings.fastest()
        if best is not None:
            return self._result(best)
        limit = format_cost(self.budget.limit, self.budget.unit)
        if not fastest:
            raise BudgetNotMet(
                f"no plan found is within the budget of {limit} by the corrected prediction",
                next_step="raise the budget, or lower --min-keep-ratio",
            )
        raise BudgetNotMet(
            f"no plan was measured within the budget of {limit}; the fastest took {fastest[0].measured_ms:.4g} ms "
            f"(95 % interval up to {fastest[0].ci_high_ms:.4g} ms)",
            next_step=f"raise the budget to {fastest[0].ci_high_ms:.4g} ms or more, or lower --min-keep-ratio",
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
