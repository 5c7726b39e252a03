"""The gate's decision on simulated rounds: how often a network at its limit passes, and one clearly within does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from bench_device import CONDITIONS

from amc_mobile.device.device import Pass
from amc_mobile.latency.gate import ERROR_SHARES, GATE_ATTEMPTS, Limit, decided
from amc_mobile.latency.measurement import BUSY, ModelMeasurement, PairMeasurement, fewest_within

CASES = 1500
PROMISED = 0.025
ROUNDS, SAMPLES = 10, 3
Draw = Callable[[np.random.Generator], np.ndarray]  # one factor per round


def drift(rng: np.random.Generator) -> np.ndarray:
    return np.exp(rng.normal(0, 0.02, ROUNDS))


def slowed(share: float) -> Draw:
    """Sessions that take 1.15 times as long, at random."""
    return lambda rng: np.where(rng.random(ROUNDS) < share, 1.15, 1.0) * np.exp(rng.normal(0, 0.005, ROUNDS))


def quiet(rng: np.random.Generator) -> np.ndarray:
    return np.ones(ROUNDS)


def pair_of(before_ms: np.ndarray, after_ms: np.ndarray, *, busy: bool = False) -> PairMeasurement:
    """Each round's samples around its level: their median is the level."""
    spread = 1 + 0.001 * (np.arange(SAMPLES) - SAMPLES // 2)
    before, after = (
        ModelMeasurement(tuple(Pass(tuple((level * spread).tolist()), busy) for level in levels), CONDITIONS, 4)
        for levels in (before_ms, after_ms)
    )
    return PairMeasurement(before, after, tuple((before_ms / after_ms).tolist()))


def passed(limit: Limit, after_ms: float, before: Draw, after: Draw, cases: int = CASES) -> float:
    """The share of simulated gates that pass; the original takes 2 ms."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(cases):
        _, decision = decided(lambda: pair_of(2.0 * before(rng), after_ms * after(rng)), limit)
        found += decision.passed
    return found / cases


def test_a_network_at_its_limit_in_ms_rarely_passes() -> None:
    assert 0 < passed(Limit(1.0), 1.0, quiet, drift) <= PROMISED


def test_a_network_at_its_share_of_the_original_rarely_passes() -> None:
    assert 0 < passed(Limit(0.0, 0.5), 1.0, drift, drift) <= PROMISED


def test_sessions_slowed_at_random_do_not_pass_a_network_over_its_ratio() -> None:
    assert passed(Limit(0.0, 0.5), 0.55 * 2.0, slowed(0.5), slowed(0.2)) <= PROMISED


@pytest.mark.parametrize("limit", [Limit(1.0), Limit(0.0, 0.5)])
@pytest.mark.parametrize(("after_ms", "power"), [(0.9, 0.999), (0.95, 0.97)])
def test_a_network_clearly_within_passes(limit: Limit, after_ms: float, power: float) -> None:
    assert passed(limit, after_ms, drift, drift, cases=300) >= power


def test_the_error_over_all_attempts_is_the_promised_one() -> None:
    spent = 0.0
    for attempt, share in enumerate(ERROR_SHARES, start=1):
        rounds = ROUNDS * attempt
        needed = fewest_within(rounds, share)
        assert needed is not None
        tails = [sum(comb(rounds, k) for k in range(least, rounds + 1)) / 2**rounds for least in (needed, needed - 1)]
        assert tails[0] <= share < tails[1]  # no fewer would do
        spent += tails[0]
    assert spent <= sum(ERROR_SHARES) <= PROMISED
    assert all(a >= 0 for a in ERROR_SHARES) and len(ERROR_SHARES) == GATE_ATTEMPTS


def test_too_few_rounds_prove_nothing() -> None:
    assert fewest_within(5, 0.01) is None
    assert fewest_within(7, 0.01) == 7
    needed = [fewest_within(n, 0.01) or n for n in range(7, 60)]
    assert all(0 <= b - a <= 1 for a, b in pairwise(needed))


def attempts_of(levels: list[list[float]], limit: Limit, **kinds: object) -> tuple[PairMeasurement, object, int]:
    made = 0

    def measure() -> PairMeasurement:
        nonlocal made
        made += 1
        return pair_of(np.full(ROUNDS, 2.0), np.array(levels[made - 1]), busy=made in kinds.get("busy", ()))  # type: ignore[operator]

    pair, decision = decided(measure, limit)
    return pair, decision, made


def test_rounds_of_all_attempts_count_and_each_attempt_says_why() -> None:
    levels = [[0.9] * 8 + [1.1] * 2, [0.9] * 9 + [1.1]]
    pair, decision, made = attempts_of(levels, Limit(1.0))
    assert made == 2 and decision.passed
    assert len(pair.speedups) == len(pair.after.passes) == 20
    assert [(a.rounds, a.within, a.needed) for a in decision.attempts] == [(10, 8, 9), (20, 17, 16)]
    assert [a.why for a in decision.attempts] == ["first", "8 of 10 rounds within the budget, 9 needed"]
    assert decision.cost == pytest.approx(0.9) and decision.limit == 1.0
    assert "20 rounds, 2 attempts" in decision.text


def test_a_network_that_can_no_longer_pass_is_not_measured_again() -> None:
    _, decision, made = attempts_of([[1.1] * 10], Limit(1.0))
    assert made == 1 and not decision.passed and decision.cost > decision.limit


def test_rounds_beside_other_programs_give_way_to_undisturbed_ones() -> None:
    levels = [[1.4] * 10, [0.9] * 10, [0.9] * 10]
    pair, decision, made = attempts_of(levels, Limit(1.0), busy=(1,))
    assert made == 2 and decision.passed
    assert BUSY in decision.attempts[0].flags and decision.attempts[1].rounds == 10
    assert pair.speedup == pytest.approx(2 / 0.9)


def disturbed_original() -> PairMeasurement:
    """As it was seen: quiet 8.0 ms, up to 16.4 ms beside other programs; the pruned network takes 4.4 ms."""
    return pair_of(np.array([8.0, 8.1, 11.0, 11.5, 12.0, 12.0, 13.0, 14.0, 15.0, 16.4]), np.full(ROUNDS, 4.4))


def test_a_disturbed_original_does_not_pass_a_ratio() -> None:
    pair, decision = decided(disturbed_original, Limit(0.0, 0.5))
    assert pair.speedup > 2.5 and BUSY in pair.before.flags and BUSY not in pair.after.flags
    assert BUSY in pair.flags and BUSY in pair.to_document()["flags"]
    assert not decision.passed

    shifted = disturbed_original()
    slower = PairMeasurement(
        ModelMeasurement((Pass((8.0,) * SAMPLES), Pass((8.0,) * SAMPLES), *[Pass((12.0,) * SAMPLES)] * 28),
                         CONDITIONS, 4),
        ModelMeasurement((Pass((4.4,) * SAMPLES),) * 30, CONDITIONS, 4),
        (8 / 4.4, 8 / 4.4, *[12 / 4.4] * 28),
    )  # fmt: skip
    assert shifted.quiet_speedup == pytest.approx(slower.quiet_speedup, rel=0.01)
    _, decision = decided(lambda: slower, Limit(0.0, 0.5))
    assert not decision.passed and decision.text.endswith("2.00x needed") and BUSY in decision.text
    _, decision = decided(lambda: slower, Limit(0.0, 0.5), waived=(BUSY,))
    assert decision.passed
