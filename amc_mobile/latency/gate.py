"""The gate: whether a budget is met. It is decided here; records keep the decision, texts and reports read it.

Counts of MACs and parameters are exact. A latency budget is decided by measurement, with an error that holds over all
attempts. One attempt is ten rounds of original and pruned file, each round in fresh sessions; a round is one value:
the median of the pruned file's samples for a budget in ms, the paired speed-up for a share of the original. Every
round counts, of every attempt, but for those made while other programs ran, as the device itself reports (not the
timings: choosing rounds by their timings would bias them); where no round was undisturbed, all count.

The budget is met when so many of the rounds are within it that this has a probability of at most `ERROR_SHARES[k]`
after attempt k + 1 while the true median is at the limit (the sign test, `fewest_within`). The shares add up to 2.5
%, so by Bonferroni's inequality a network at its limit or over it passes in at most 2.5 % of cases, whenever the
attempts end: looking again and again at growing data at the full level would pass more of them (Armitage, McPherson
and Rowe 1969; Pocock 1977, Group sequential methods, Biometrika 64). The shares are uneven because the sign test has
steps: they are its own tails for 9 of 10, 16 of 20 and 22 of 30 rounds. Assumed: the rounds are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from amc_mobile.latency.measurement import BUSY, PairMeasurement, fewest_within

ERROR_SHARES = (0.0108, 0.0060, 0.0081)  # one per attempt
GATE_ATTEMPTS = len(ERROR_SHARES)
CONFIDENCE = "97.5 % confidence"
Status = Literal["PASS", "FAIL", "NOT MEASURED", "PREDICTED, NOT MEASURED", "NO PLAN"]
STATUS_OF: Mapping[bool | None, Status] = {True: "PASS", False: "FAIL", None: "PREDICTED, NOT MEASURED"}


@dataclass(frozen=True)
class Attempt:
    """One attempt of the gate: how many of all rounds so far are within the budget, and how many must be."""

    why: str  # it was made
    rounds: int
    within: int
    needed: int | None  # None: so few rounds prove nothing
    flags: tuple[str, ...] = ()  # of either file, original and pruned
    passed: bool = False
    problem: str = ""  # why not passed


@dataclass(frozen=True)
class Gate:
    """What was decided about a budget. `passed` is None where a latency was not measured.

    `cost` is what was held against `limit`: an exact count; in ms the upper end of the p50's interval, or of a share of
    the original the original's p50 over the lower end of the speed-up's interval.
    """

    passed: bool | None = None
    cost: float | None = None
    limit: float | None = None
    text: str = ""
    attempts: tuple[Attempt, ...] = ()


OPEN = Gate()  # nothing was decided


def is_within(cost: float, limit: float) -> bool:
    """Whether a cost is within a limit: an exact count, or the upper end of a measured latency's interval."""
    return cost <= limit


def is_accuracy_kept(top1: float, original_top1: float, max_loss: float) -> bool:
    """Whether a network loses no more accuracy than --max-loss allows, all in [0, 1] and on the same images."""
    return top1 >= original_top1 - max_loss - 1e-9  # a difference of two shares is not exact


def all_passed(passed: Iterable[bool | None], *, accuracy_kept: bool | None = None) -> bool | None:
    """Of all budgets, and of the accuracy that --max-loss asks for (None: nothing was asked).

    False where one is missed; else None where one was not measured.
    """
    every = [*passed, accuracy_kept is not False]
    return False if False in every else None if None in every else True


@dataclass(frozen=True)
class Limit:
    """A latency budget: `ms`, or a share `ratio` of the original's latency."""

    ms: float
    ratio: float | None = None

    def of(self, original_p50_ms: float) -> float:
        """In ms; a ratio is of the original measured in the same rounds."""
        return self.ms if self.ratio is None else self.ratio * original_p50_ms


def decided(
    measure: Callable[[], PairMeasurement], limit: Limit, *, waived: Collection[str] = ()
) -> tuple[PairMeasurement, Gate]:
    """Measures until the budget is passed, can no longer be passed, or GATE_ATTEMPTS were made; all rounds, and the
    decision. `waived`: with BUSY, other programs do not matter."""
    pairs: list[PairMeasurement] = []
    attempts: list[Attempt] = []
    why = "first"
    while True:
        pairs.append(measure())
        pair = PairMeasurement.joined(pairs)
        attempts.append(_judged(pair, limit, len(pairs) - 1, why, waived))
        if attempts[-1].passed or len(pairs) == GATE_ATTEMPTS or _is_hopeless(pair, attempts):
            return pair, _decision(pair, limit, tuple(attempts))
        why = attempts[-1].problem


def _values(pair: PairMeasurement, limit: Limit) -> tuple[list[float], float]:
    """One value per counted round, to be at or under the second: ms, or the share of the original's latency."""
    if limit.ratio is not None:
        return sorted(1 / float(speedup) for speedup in pair.counted_speedups), limit.ratio
    return sorted(float(np.median(pair.after.samples_ms[i])) for i in pair.counted), limit.ms


def _judged(pair: PairMeasurement, limit: Limit, number: int, why: str, waived: Collection[str]) -> Attempt:
    values, highest = _values(pair, limit)
    within, needed = sum(value <= highest for value in values), fewest_within(len(values), ERROR_SHARES[number])
    problem = ""
    if needed is None or within < needed:
        problem = f"{within} of {len(values)} rounds within the budget, {needed or 'more'} needed"
    elif limit.ratio is not None and BUSY in pair.flags and BUSY not in waived and 1 / pair.quiet_speedup > highest:
        # Other programs slow a long network more: what they took from the original must not count as saved.
        problem = (
            f"{BUSY}: the speed-up of {pair.speedup:.2f}x is {pair.quiet_speedup:.2f}x where nothing disturbed, "
            f"{1 / highest:.2f}x needed"
        )
    return Attempt(why, len(values), within, needed, pair.flags, not problem, problem)


def _is_hopeless(pair: PairMeasurement, attempts: list[Attempt]) -> bool:
    """Whether not even attempts with every round within the budget would pass it now."""
    last, each = attempts[-1], len(pair.speedups) // len(attempts)
    if BUSY in last.flags:
        return False
    later = ((i, each * (i + 1 - len(attempts))) for i in range(len(attempts), GATE_ATTEMPTS))
    return all(
        (needed := fewest_within(last.rounds + more, ERROR_SHARES[i])) is None or last.within + more < needed
        for i, more in later
    )


def _decision(pair: PairMeasurement, limit: Limit, attempts: tuple[Attempt, ...]) -> Gate:
    last = attempts[-1]
    values, _ = _values(pair, limit)
    bound, limit_ms = values[(last.needed or len(values)) - 1], limit.of(pair.before.p50_ms)
    made = f"{last.rounds} rounds" + (f", {len(attempts)} attempts" if len(attempts) > 1 else "")
    if limit.ratio is not None:
        cost = bound * pair.before.p50_ms
        text = f"speed-up at least {1 / bound:.3f}x with {CONFIDENCE} ({made}), budget {1 / limit.ratio:.3f}x"
    else:
        cost = bound
        text = f"p50 at most {bound:.3f} ms with {CONFIDENCE} ({made}), budget {limit.ms:.3f} ms"
    if last.problem.startswith(BUSY):
        text += f"; {last.problem}"
    return Gate(last.passed, cost, limit_ms, text, attempts)
