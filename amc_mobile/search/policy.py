"""What every policy is given and has in common: the observation, its first plans, small changes of a plan, its state.

A proposal depends on the seed, the episode's number, the plans and rewards observed, and the budget's cost at that
moment; nothing else. So a log of plans and rewards, observed again, is all it takes to continue a search.

Dynamic programming over groups: a budget's cost is not a sum over groups: neighbouring widths multiply. So costs are
taken to be additive around a plan, dynamic programming finds the best plan of that approximation, and the next round
starts there; what is over the true limit is scaled back, and single exchanges under the true cost finish the work.
Where the cost is additive the first round is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.search.budget import CostLimit, Floats, Widths

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "cost", "reduced", "rest", "previous_keep_ratio")


@dataclass(frozen=True)
class GroupFacts:
    """What the agent sees of a channel group: the shape of its first producer."""

    name: str
    out_channels: int
    in_channels: int
    height: int  # of the producer's output map; 1 for a Linear layer
    width: int
    stride: int
    kernel_size: int


class Features:
    """Builds observations, (11,) float32, each number in [0, 1], in the order of FEATURES (the paper's list).

    Shapes and `cost` are min-max scaled over the groups (1 where all groups are equal). Cost enters as
    `cost_shares`, (G,): how much of the prunable cost each group accounts for. `reduced` is the share already
    taken away by the decided groups, `rest` the share of the groups after this one. The shares are fixed once,
    so that an episode looks the same to the agent before and after the latency model is corrected.
    """

    def __init__(self, facts: Sequence[GroupFacts], smallest: Widths, full: Widths, cost_shares: Floats) -> None:
        if not len(facts) == len(smallest) == len(full) == len(cost_shares):
            raise InvalidInput(f"{len(facts)} group facts for {len(full)} channel groups")
        self.facts = tuple(facts)
        self.smallest = smallest
        self.full = full
        self.min_ratios: Floats = smallest / full
        self.cost_shares = np.asarray(cost_shares, dtype=np.float64)
        shapes = [
            (f.out_channels, f.in_channels, f.height, f.width, f.stride, f.kernel_size) for f in self.facts
        ]  # n, c, h, w, stride, k
        columns = np.column_stack([np.array(shapes, dtype=np.float64), self.cost_shares])
        self._static = np.apply_along_axis(_min_max, 0, columns)
        after = np.cumsum(self.cost_shares[::-1])[::-1]
        self._rest = np.append(after[1:], 0.0)

    @classmethod
    def of(cls, facts: Sequence[GroupFacts], budget: CostLimit) -> Features:
        """With the cost shares of the budget's cost as it is now."""
        return cls(facts, budget.smallest(), budget.full, cost_shares(budget))

    @property
    def groups(self) -> int:
        return len(self.facts)

    def observation(self, keep_ratios: Sequence[float] | Floats) -> npt.NDArray[np.float32]:
        """The state in which the group after the decided ones is chosen."""
        decided = len(keep_ratios)
        ratios = np.asarray(keep_ratios, dtype=np.float64)
        prunable = np.maximum(1 - self.min_ratios[:decided], 1e-9)
        reduced = float(np.sum(self.cost_shares[:decided] * np.minimum((1 - ratios) / prunable, 1)))
        row = np.empty(len(FEATURES), dtype=np.float64)
        row[0] = decided / self.groups
        row[1:8] = self._static[decided]
        row[8:] = reduced, self._rest[decided], ratios[-1] if decided else 1.0
        observation: npt.NDArray[np.float32] = np.clip(row, 0, 1).astype(np.float32)
        return observation

    def episode(self, widths: Widths) -> npt.NDArray[np.float32]:
        """All observations of the episode that chose `widths`: (G, 11)."""
        ratios = widths / self.full
        return np.stack([self.observation(ratios[:decided]) for decided in range(self.groups)])


def cost_shares(budget: CostLimit) -> Floats:
    """What the cost falls by when one group alone goes to its minimum, normalised to sum 1: (G,)."""
    groups = len(budget.grids)
    plans = np.repeat(budget.full[None], groups + 1, axis=0)
    plans[np.arange(groups), np.arange(groups)] = budget.smallest()
    costs = budget.cost(plans)
    saved = np.maximum(costs[-1] - costs[:-1], 0)
    total = float(saved.sum())
    return saved / total if total > 0 else np.full(groups, 1 / groups)


def _min_max(column: Floats) -> Floats:
    low, high = column.min(), column.max()
    return (column - low) / (high - low) if high > low else np.ones_like(column)


ROUNDS = 4
MOST_STATES = 1000  # partial plans kept per group; with fewer there are, the result is exact
MOST_EXCHANGES = 200

Index = npt.NDArray[np.int64]


def best_additive_plan(budget: CostLimit, errors: Sequence[Floats]) -> Widths:
    """Widths (G,) within the budget. `errors`: per group, the error of each width of its grid.

    Raises UnreachableBudget; InvalidInput when the tables do not fit the grids.
    """
    if [len(row) for row in errors] != [len(grid) for grid in budget.grids]:
        raise InvalidInput("the error tables do not fit the widths that may be chosen")
    budget.check()
    tables = [np.asarray(row, dtype=np.float64) for row in errors]
    best: Index | None = None
    for start in (budget.uniform(), budget.shallow(), budget.deep()):
        index = budget.index_of(start)
        for _ in range(ROUNDS):
            found = _round(budget, tables, index)
            if best is None or _error(tables, found) < _error(tables, best):
                best = found
            if np.array_equal(found, index):
                break
            index = found
    assert best is not None
    return budget.widths_at(_exchanged(budget, tables, best))


def _round(budget: CostLimit, tables: Sequence[Floats], index: Index) -> Index:
    """The best plan when costs are additive around `index`, brought within the true budget."""
    base = budget.cost_of(budget.widths_at(index))
    changes = []
    for group, grid in enumerate(budget.grids):
        plans = np.repeat(budget.widths_at(index)[None], grid.size, axis=0)
        plans[:, group] = grid
        changes.append(budget.cost(plans) - base)
    chosen = _knapsack(changes, tables, budget.limit - base)
    if chosen is None:
        return index
    wanted = budget.widths_at(chosen)
    # Full width everywhere else must not be needed to scale: ratios of the plan found are kept.
    return budget.index_of(wanted if budget.allows(wanted) else budget.scale(wanted / budget.full))


def _knapsack(costs: Sequence[Floats], errors: Sequence[Floats], room: float) -> Index | None:
    """One entry per group with the smallest sum of errors and a sum of costs of at most `room`; None if none fits."""
    cheapest = np.array([row.min() for row in costs])
    after = np.append(np.cumsum(cheapest[::-1])[::-1][1:], 0.0)  # what the groups still to come cost at least
    spent, missed = np.zeros(1), np.zeros(1)
    history: list[tuple[Index, Index]] = []
    for group, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        total = (spent[:, None] + cost).ravel()
        loss = (missed[:, None] + error).ravel()
        kept = np.flatnonzero(total + after[group] <= room + 1e-9 * abs(room))
        if not kept.size:
            return None
        kept = kept[_undominated(total[kept], loss[kept])]
        spent, missed = total[kept], loss[kept]
        history.append((kept // len(cost), kept % len(cost)))
    state = int(missed.argmin())
    chosen = []
    for parents, entries in reversed(history):
        chosen.append(int(entries[state]))
        state = int(parents[state])
    return np.array(chosen[::-1], dtype=np.int64)


def _undominated(total: Floats, loss: Floats) -> Index:
    """Positions of states that no other beats in cost and error, thinned to MOST_STATES over the range of costs."""
    order = np.lexsort((loss, total))
    best = np.minimum.accumulate(loss[order])
    front: Index = order[np.append(True, best[1:] < best[:-1])]
    if len(front) > MOST_STATES:
        low, high = total[front[0]], total[front[-1]]
        bucket = ((total[front] - low) / (high - low) * (MOST_STATES - 1)).astype(np.int64)
        # Along the front errors fall: the last of a bucket is its best. The cheapest one must stay.
        last = np.append(bucket[1:] != bucket[:-1], True)
        last[0] = True
        front = front[last]
    return front


def _exchanged(budget: CostLimit, tables: Sequence[Floats], index: Index) -> Index:
    """Raises single groups, or raises one and lowers another, while the sum of errors falls within the budget."""
    groups, tops = len(tables), budget.tops
    for _ in range(MOST_EXCHANGES):
        steps = [np.eye(groups, dtype=np.int64)[g] for g in range(groups)]
        moves = np.array(steps + [a - b for i, a in enumerate(steps) for j, b in enumerate(steps) if i != j])
        tried = index + moves
        tried = tried[((tried >= 0) & (tried <= tops)).all(axis=1)]
        gains = _errors(tables, index[None])[0] - _errors(tables, tried)
        better = np.flatnonzero(gains > 1e-12)
        better = better[np.argsort(-gains[better], kind="stable")]
        for part in np.array_split(better, max(1, -(-len(better) // 64))):
            fits = np.flatnonzero(budget.cost(budget.widths_at(tried[part])) <= budget.limit) if len(part) else part
            if fits.size and budget.allows(budget.widths_at(tried[part[fits[0]]])):
                index = tried[part[fits[0]]]
                break
        else:
            return index
    return index


def _errors(tables: Sequence[Floats], index: Index) -> Floats:
    total: Floats = np.sum([row[index[:, g]] for g, row in enumerate(tables)], axis=0)
    return total


def _error(tables: Sequence[Floats], index: Index) -> float:
    return float(_errors(tables, index[None])[0])


MOST_GROUPS = 3  # that one move changes
REACH = 0.12  # of a group's width: the deviation of a change
FILL_PROBABILITY = 0.7  # that a group takes a step that fits; below 1 so that equal moves end in different plans


def moved(budget: CostLimit, parents: Widths, rng: np.random.Generator) -> Widths:
    """(N, G) plans -> as many, each within the budget: one to three groups move up or down, the rest makes room.

    A moved group changes by at least one step of its grid. Over the limit, groups drawn at random go down; then
    groups in random order take the steps that still fit.
    """
    parents = np.asarray(parents, dtype=np.int64)
    count, groups = parents.shape
    tops, index = budget.tops, budget.index_of(parents)
    open_groups = np.flatnonzero(tops)
    held = np.zeros((count, groups), dtype=np.int64)
    for row in range(count):
        for group in _drawn(open_groups, rng):
            grid = budget.grids[group]
            change = max(1.0, abs(rng.normal()) * REACH * grid[-1]) * rng.choice([-1, 1])
            place = int(np.abs(grid - (parents[row, group] + change)).argmin())
            if place == index[row, group]:  # the grid is coarser than the change
                place += 1 if change > 0 else -1
            index[row, group] = min(max(place, 0), tops[group])
            held[row, group] = 1
    index = _lowered(budget, index, held, rng)
    return budget.widths_at(_filled(budget, index, tops, rng))


def _drawn(groups: Widths, rng: np.random.Generator) -> Widths:
    drawn: Widths = rng.choice(groups, size=min(groups.size, int(rng.integers(1, MOST_GROUPS + 1))), replace=False)
    return drawn


def _lowered(budget: CostLimit, index: Widths, held: Widths, rng: np.random.Generator) -> Widths:
    """Steps down, one random group at a time, until every plan fits; moved groups only when nothing else is left."""
    while True:
        over = np.flatnonzero(budget.cost(budget.widths_at(index)) > budget.limit)
        can = index[over] > 0
        over = over[can.any(axis=1)]
        if not over.size:
            return index
        can = index[over] > 0
        free = can & (held[over] == 0)
        can = np.where(free.any(axis=1)[:, None], free, can)
        index[over, np.where(can, rng.random(can.shape), -1).argmax(axis=1)] -= 1


def _filled(budget: CostLimit, index: Widths, tops: Widths, rng: np.random.Generator) -> Widths:
    """Takes steps up that fit, in a random order of groups; the last rounds take every one there is."""
    rows = np.arange(len(index))
    for probability in (FILL_PROBABILITY, 1.0):
        orders = rng.permuted(np.tile(np.arange(index.shape[1]), (len(index), 1)), axis=1)
        for group in orders.T:
            open_rows = rows[(index[rows, group] < tops[group]) & (rng.random(len(rows)) < probability)]
            while open_rows.size:
                raised = index[open_rows].copy()
                raised[np.arange(open_rows.size), group[open_rows]] += 1
                fits = budget.cost(budget.widths_at(raised)) <= budget.limit
                index[open_rows[fits]] = raised[fits]
                open_rows = open_rows[fits]
                open_rows = open_rows[index[open_rows, group[open_rows]] < tops[group[open_rows]]]
                open_rows = open_rows[rng.random(open_rows.size) < probability]
    return index


POLICIES = (
    "ddpg", "ddpg-sequential", "critic", "evolution", "cma", "netadapt", "random", "uniform", "shallow", "deep", "dp",
    "from-file",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What a policy is told of the problem before its first episode.

    `errors`: per group, for each width of its grid, the relative reconstruction error when it alone is cut to that
    width; with them the plan that dynamic programming finds on their sum is among the seeds. `given`: widths to try
    after the seeds. `episodes`: how long the search will be.
    """

    features: Features
    seed: int = 0
    episodes: int = 300
    errors: tuple[Floats, ...] | None = None
    given: tuple[Widths, ...] = field(default=())

    def to_document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "episodes": self.episodes,
            "cost_shares": [float(share) for share in self.features.cost_shares],
            "errors": None if self.errors is None else [[float(e) for e in row] for row in self.errors],
            "given": [[int(width) for width in plan] for plan in self.given],
        }

    def restored(self, document: Mapping[str, Any]) -> Knowledge:
        """With what was known when the search started. Raises InvalidInput when that had another seed."""
        if document.get("seed") != self.seed:
            raise InvalidInput(
                f"the search was started with seed {document.get('seed')!r}, not {self.seed!r}",
                next_step="pass what it was begun with, or `amc-mobile search --run NAME`, or another --workspace",
            )
        old, errors = self.features, document["errors"]
        shares = np.array(document["cost_shares"], dtype=np.float64)
        return Knowledge(
            Features(old.facts, old.smallest, old.full, shares),
            self.seed,
            int(document["episodes"]),
            None if errors is None else tuple(np.array(row, dtype=np.float64) for row in errors),
            tuple(np.array(plan, dtype=np.int64) for plan in document["given"]),
        )


class Policy(ABC):
    """Proposes one plan per episode: first the seeds, which count as episodes and are the same for every policy."""

    name: str
    episodes_per_round: int | None = None  # a policy that has only so many plans to propose

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.episode = 0  # how many have been observed

    @property
    def features(self) -> Features:
        return self.knowledge.features

    @property
    def seeds(self) -> tuple[str, ...]:
        """Where the first plans come from, in their order."""
        dynamic = ("dp",) if self.knowledge.errors is not None else ()
        return ("uniform", "shallow", "deep", *dynamic, *("given" for _ in self.knowledge.given))

    @property
    def label(self) -> str:
        """Where the next proposal comes from."""
        return self.seeds[self.episode] if self.episode < len(self.seeds) else self.name

    def propose(self, budget: CostLimit) -> Widths:
        """The next plan, within the budget. Asking again before `observe` gives the same plan."""
        if self.episode < len(self.seeds):
            source = self.seeds[self.episode]
            if source == "given":
                return budget.fit(self.knowledge.given[self.episode - len(self.seeds)])
            return self._planned(budget, source)
        return self._propose(budget, np.random.default_rng([self.knowledge.seed, self.episode, 0]))

    def observe(self, widths: Widths, reward: float) -> None:
        """Takes in the plan that was executed in this episode and its reward."""
        self._observe(np.asarray(widths), reward, np.random.default_rng([self.knowledge.seed, self.episode, 1]))
        self.episode += 1

    def state_document(self) -> dict[str, Any]:
        """What a new policy needs, besides the log, to become this one."""
        return {"policy": self.name, **self.knowledge.to_document()}

    def restore(self, document: Mapping[str, Any]) -> None:
        """Becomes the policy that `state_document` was taken from, before its first episode.

        Raises InvalidInput when that was another policy or seed.
        """
        if document.get("policy") != self.name:
            raise InvalidInput(
                f"the search was started with policy {document.get('policy')!r}, not {self.name!r}",
                next_step="pass what it was begun with, or `amc-mobile search --run NAME`, or another --workspace",
            )
        self.knowledge = self.knowledge.restored(document)

    def _planned(self, budget: CostLimit, source: str) -> Widths:
        """The plan of a seed that is worked out anew under the budget as it is."""
        if source == "dp":
            if self.knowledge.errors is None:
                raise InvalidConfig("the policy dp needs the groups' reconstruction errors")
            return best_additive_plan(budget, self.knowledge.errors)
        return {"uniform": budget.uniform, "shallow": budget.shallow, "deep": budget.deep}[source]()

    @abstractmethod
    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths: ...

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        """Learns from the episode; a policy that does not learn keeps this."""
        del widths, reward, rng


class FixedPolicy(Policy):
    """Proposes the plan of one seed, worked out anew under the budget as it is; the other seeds are left out."""

    episodes_per_round = 1

    @property
    def seeds(self) -> tuple[str, ...]:
        return ()

    def _propose(self, budget: CostLimit, rng: np.random.Generator) -> Widths:
        return self._planned(budget, self.name)


class SearchingPolicy(Policy):
    """Remembers what was tried: plans and rewards in order, and which plans are known."""

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__(knowledge)
        self.tried: list[tuple[int, ...]] = []
        self.rewards: list[float] = []
        self.known: dict[tuple[int, ...], float] = {}  # the latest reward of each plan

    def _observe(self, widths: Widths, reward: float, rng: np.random.Generator) -> None:
        plan = tuple(int(width) for width in widths)
        self.tried.append(plan)
        self.rewards.append(reward)
        self.known[plan] = reward

    def best(self, count: int, budget: CostLimit) -> Widths:
        """The best different plans that are within the budget as it is now, (up to `count`, G), best first.

        Where none is, the best of all; the earlier of two equal ones.
        """
        plans = np.array(sorted(self.known, key=lambda plan: -self.known[plan]), dtype=np.int64)
        within: Widths = plans[budget.cost(plans) <= budget.limit]
        return (within if len(within) else plans)[:count]
