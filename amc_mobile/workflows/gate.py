"""The gate of an export: whether the files that were written meet the budgets. Decided here alone, and stored.

A latency budget is decided by measurement, with an error that holds over all attempts. One attempt is ten rounds of
original and pruned file, each round in fresh sessions; a round is one value: the median of the pruned file's samples
for a budget in ms, the paired speed-up for a share of the original. Every round counts, of every attempt, but for
those made while other programs ran, as the device itself reports (not the timings: choosing rounds by their timings
would bias them); where no round was undisturbed, all count.

The budget is met when so many of the rounds are within it that this has a probability of at most `ERROR_SHARES[k]`
after attempt k + 1 while the true median is at the limit (the sign test, `fewest_within`). The shares add up to 2.5 %,
so by Bonferroni's inequality a network at its limit or over it passes in at most 2.5 % of cases, whenever the attempts
end: looking again and again at growing data at the full level would pass more of them (Armitage, McPherson and Rowe
1969; Pocock 1977, Group sequential methods, Biometrika 64). The shares are uneven because the sign test has steps: they
are its own tails for 9 of 10, 16 of 20 and 22 of 30 rounds. Assumed: the rounds are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.device.timing import Device
from amc_mobile.latency.measurement import BUSY, PairMeasurement
from amc_mobile.latency.protocol import measure_pair
from amc_mobile.latency.statistics import fewest_within
from amc_mobile.search.budget import format_cost
from amc_mobile.workflows.budgets import attached, settings_of
from amc_mobile.workflows.measuring import chosen_runtime
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings

ERROR_SHARES = (0.0108, 0.0060, 0.0081)  # one per attempt
GATE_ATTEMPTS = len(ERROR_SHARES)
CONFIDENCE = "97.5 % confidence"


@dataclass(frozen=True)
class Limit:
    """A latency budget: `ms`, or a share `ratio` of the original's latency."""

    ms: float
    ratio: float | None = None

    def of(self, original_p50_ms: float) -> float:
        """In ms; a ratio is of the original measured in the same rounds."""
        return self.ms if self.ratio is None else self.ratio * original_p50_ms


@dataclass(frozen=True)
class Attempt:
    """What is known after one more attempt. `rounds` count, `within` of them meet the budget, `needed` must.

    `needed` is None where no number of them would do. `why`: the reason that it was made.
    """

    why: str
    rounds: int
    within: int
    needed: int | None
    flags: tuple[str, ...]  # of either file, all attempts together
    passed: bool
    problem: str = ""  # why not passed


@dataclass(frozen=True)
class Decision:
    """`cost` was held against `limit`, both in ms: the upper end of the p50's interval, or for a ratio the original's
    p50 over the lower end of the speed-up's interval. Both ends hold with 97.5 % confidence over all attempts."""

    passed: bool
    cost: float
    limit: float
    text: str
    attempts: tuple[Attempt, ...]

    def to_document(self) -> dict[str, Any]:
        return asdict(self)


def measured_pair(
    device: Device | None, original: Path | None, pruned: Path, limit: Limit | None, *, waived: Collection[str] = ()
) -> tuple[PairMeasurement, Decision | None] | None:
    """Original and pruned file in alternating blocks, and whether they meet `limit`; None without a device."""
    if device is None or original is None:
        return None
    before, after = original.read_bytes(), pruned.read_bytes()
    if limit is None:
        return measure_pair(device, before, after), None
    return decided(lambda: measure_pair(device, before, after), limit, waived=waived)


def decided(
    measure: Callable[[], PairMeasurement], limit: Limit, *, waived: Collection[str] = ()
) -> tuple[PairMeasurement, Decision]:
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


def _decision(pair: PairMeasurement, limit: Limit, attempts: tuple[Attempt, ...]) -> Decision:
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
    return Decision(last.passed, cost, limit_ms, text, attempts)


def count_gate(budget: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    """The gate of a budget of MACs or parameters, which needs no measurement. `budget`: with `unit` and `limit`."""
    unit, limit = budget["unit"], float(budget["limit"])
    cost = float(search["macs" if unit == "macs" else "parameters"])
    text = f"{format_cost(cost, unit)} of {format_cost(limit, unit)}"
    return {"passed": cost <= limit, "cost": cost, "limit": limit, "text": text, "attempts": []}


def own_limit(search: Mapping[str, Any], latency_ratio: float | None) -> Limit | None:
    """The search's own latency budget; None where it has another one."""
    budget = search["budget"]
    return Limit(float(budget["limit"]), latency_ratio) if budget["unit"] == "ms" else None


def own_gate(
    search: dict[str, Any], files: list[dict[str, Any]], settings: Settings, *, offline: bool
) -> dict[str, Any]:
    """The gate of the search's own budget: `passed` (None: not measured), what it was held against, and a text."""
    unit, limit = search["budget"]["unit"], float(search["budget"]["limit"])
    if unit != "ms":
        return count_gate(search["budget"], search)
    if offline:
        text = f"predicted {format_cost(search['predicted_cost'], unit)} of {format_cost(limit, unit)}"
        return {"passed": None, "cost": None, "limit": limit, "text": text, "attempts": []}
    judged = [f for f in files if f["runtime"] == chosen_runtime(settings) and f["decision"]]
    if not judged:
        text = f"no file for {chosen_runtime(settings)}, the runtime of the search, was measured"
        return {"passed": False, "cost": None, "limit": limit, "text": text, "attempts": []}
    return dict(judged[0]["decision"])


def further_gate(
    row: dict[str, Any], search: dict[str, Any], files: list[dict[str, Any]], settings: Settings, progress: Progress,
    *, original: Callable[[str], Path],
) -> dict[str, Any]:  # fmt: skip
    """The gate of one more budget of the search, `row`: as `own_gate`, with the pair that was measured."""
    asked, unit, limit = row["asked"], row["unit"], float(row["limit"])
    if unit != "ms":
        gate = count_gate(row, search)
        return {"asked": asked, **gate, "text": f"{asked}: {gate['text']}", "pair": None}
    file = next((file for file in files if file["runtime"] == row["runtime"]), None)
    why = "the device is not attached" if file else f"no file for {row['runtime']} was exported"
    other = settings_of(settings, row["device"])
    device = attached(other, progress, runtime=row["runtime"]) if file else None
    pair, decision = None, None
    if file and device:
        pair, decision = measured_pair(
            device, original(file["format"]), Path(file["path"]), Limit(limit), waived=other.waived
        ) or (None, None)
    if pair is None or decision is None:
        text = f"{asked}: predicted {row['predicted_cost']:.3f} ms of {limit:.3f} ms, not measured: {why}"
        return {
            "asked": asked, "passed": None, "cost": None, "limit": limit, "text": text, "attempts": [], "pair": None,
        }  # fmt: skip
    gate = decision.to_document()
    return {"asked": asked, **gate, "text": f"{asked}: {gate['text']}", "pair": pair.to_document()}


def all_of(gate: dict[str, Any], further: list[dict[str, Any]]) -> dict[str, Any]:
    """Passed when every budget is; open, with None, where one was not measured and none is missed."""
    passed = [gate["passed"], *(one["passed"] for one in further)]
    verdict = False if False in passed else None if None in passed else True
    text = "; ".join([gate["text"], *(one["text"] for one in further)])
    return {**gate, "passed": verdict, "own_passed": gate["passed"], "own_text": gate["text"], "text": text,
            "further": further}  # fmt: skip
