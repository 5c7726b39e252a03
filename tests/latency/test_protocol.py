from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from latency_toys import CONDITIONS, ToyDevice, conv, request

from amc_mobile.device import device as timing_module
from amc_mobile.device.device import Job, Neighbours, Pass, PassRecord, SamplesMs, Timing, time_session
from amc_mobile.errors import DeviceError, InvalidConfig, InvalidInput
from amc_mobile.latency import protocol
from amc_mobile.latency.measurement import BUSY, KernelRequest, ModelRequest
from amc_mobile.latency.protocol import (
    READINGS,
    Anchor,
    ProtocolConfig,
    StoredStretches,
    StretchPlan,
    best_anchor,
    measure_kernels,
    measure_model,
    measure_models,
    measure_pair,
    measure_sustained,
)
from amc_mobile.latency.table import LatencyTable

MS = {name: 0.1 * (index + 1) for index, name in enumerate("abcdefgh")}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> ToyDevice:
    made = ToyDevice(MS | {"anchor": 0.1})
    monkeypatch.setattr(timing_module, "time", made.clock())
    return made


def kernel_requests(names: str) -> dict[str, KernelRequest]:
    made = [request(name, conv(8, 8 * (ord(name) - 96))) for name in names]
    return {r.key: r for r in made}


def slow_between(first: int, last: int, factor: float = 2.0) -> Callable[[int], float]:
    return lambda opens: factor if first <= opens <= last else 1.0


# One session


def test_short_models_are_called_several_times_per_sample(device: ToyDevice) -> None:
    with device.open(b"a") as session:
        samples = time_session(session, Timing(4, 0.25, 3, 1.0))
    assert samples == pytest.approx((0.1,) * 4)
    assert device.now_s * 1000 == pytest.approx(0.1 * (3 + 4 * 3))  # 3 calls of 0.1 ms reach 0.25 ms


def test_slow_models_take_fewer_samples_but_never_too_few(device: ToyDevice) -> None:
    device.ms = {"slow": 600.0}
    with device.open(b"slow") as session:
        assert len(time_session(session, Timing(20, 0.25, 4, 1.0))) == 4
        assert len(time_session(session, Timing(20, 0.25, 4, 6.5))) == 11
    fast = Timing(20, 0.25, 4, 1000.0)
    with device.open(b"slow") as session:
        assert len(time_session(session, fast)) == 20


def test_one_interrupted_warmup_run_does_not_shorten_the_samples(device: ToyDevice) -> None:
    calls = Counter()

    def run() -> None:
        calls["run"] += 1
        device.now_s += 0.5 if calls["run"] == 2 else 0.0001

    time_session(SimpleNamespace(run=run), Timing(2, 0.25, 3, 10.0))
    assert calls["run"] == 3 + 2 * 3


def starts_of_runs(device: ToyDevice, timing: Timing, spent_ms: Callable[[int], float]) -> list[float]:
    """When each run begins, in ms; run number i takes `spent_ms(i)`."""
    starts: list[float] = []

    def run() -> None:
        starts.append(device.now_s * 1000)
        device.now_s += spent_ms(len(starts)) / 1000

    samples = time_session(SimpleNamespace(run=run), timing)
    assert samples == pytest.approx([spent_ms(i + 1) for i in range(timing.warmup_runs, len(starts))])
    return starts


def test_runs_at_a_cadence_start_a_period_apart_and_samples_leave_out_the_gaps(device: ToyDevice) -> None:
    timing = Timing(4, 0.25, 3, 9.0, period_ms=40.0)
    assert starts_of_runs(device, timing, lambda _: 0.1) == pytest.approx([0, 40, 80, 120, 160, 200, 240])


def test_a_run_later_than_its_cadence_starts_at_once(device: ToyDevice) -> None:
    timing = Timing(4, 0.25, 2, 9.0, period_ms=40.0)
    starts = starts_of_runs(device, timing, lambda number: 70.0 if number == 3 else 5.0)
    assert starts == pytest.approx([0, 40, 80, 150, 190, 230])


def test_a_model_at_a_cadence_is_timed_for_a_second_per_pass(device: ToyDevice) -> None:
    found = measure_model(device, b"a", ProtocolConfig(cadence_fps=30.0, model_passes=2))
    assert [len(one.samples_ms) for one in found.passes] == [30, 30]
    assert found.warmup_runs == 15
    assert device.now_s == pytest.approx(2 * 44 / 30, rel=0.01)  # nothing waits after a pass's last run
    with pytest.raises(InvalidConfig, match="cadence_fps"):
        ProtocolConfig(cadence_fps=-1.0)


def getting_shorter(device: ToyDevice, runs: int) -> Counter:
    """Its runs get shorter by 5 % each, from 1 ms on, so many times."""
    calls: Counter = Counter()

    def run() -> None:
        calls["run"] += 1
        device.now_s += 0.001 * 0.95 ** min(calls["run"], runs)

    calls["samples"] = len(time_session(SimpleNamespace(run=run), Timing(2, 0.0001, 4, 10.0)))
    return calls


def test_a_session_is_warmed_up_until_its_runs_get_no_shorter(device: ToyDevice) -> None:
    assert getting_shorter(device, 1)["run"] == 4 + 2
    assert getting_shorter(device, 20)["run"] == 20 + 3 + 2


def test_a_session_that_never_settles_is_timed_all_the_same(device: ToyDevice) -> None:
    endless = count(0)

    def run() -> None:
        device.now_s += 0.1 * 0.9 ** next(endless)

    assert len(time_session(SimpleNamespace(run=run), Timing(2, 0.1, 4, 1.0))) == 2
    assert next(endless) < 12


def test_a_device_that_has_rested_is_put_under_load_first(device: ToyDevice) -> None:
    config = ProtocolConfig(model_passes=3, model_samples=5)
    runs = 1 + 4 + 5
    measure_model(device, b"a", config)
    assert device.now_s * 1000 == pytest.approx(500 + 0.1 * (3 * runs * 2 - 4 - 5), abs=5)
    began = device.now_s
    measure_model(device, b"a", config)  # at once
    assert device.now_s - began < 0.05
    device.now_s += 1
    began = device.now_s
    measure_pair(device, b"a", b"b", config)
    assert 0.5 < device.now_s - began < 0.6


# The anchor


def anchor_of(*first_ms: float) -> Anchor:
    made = Anchor(Job("anchor", "the anchor", b"anchor", Timing(4, 0.2, 2, 1.0)), lowest_ms=math.inf)
    assert len(made.first_jobs()) == READINGS
    made.see(readings(*first_ms))
    return made


def readings(*each_ms: float) -> list[SamplesMs]:
    return [(ms,) * 4 for ms in each_ms]


def test_an_anchor_is_steady_until_the_machine_slows_down() -> None:
    anchor = anchor_of(0.1, 0.1, 0.1)
    assert anchor.first_jobs() == []
    assert anchor.is_steady(readings(0.1, 0.1, 0.1))
    assert not anchor.is_steady(readings(0.12, 0.12, 0.12))
    assert anchor.is_steady(readings(0.104, 0.104, 0.104))


def test_an_anchor_learns_a_quieter_machine() -> None:
    anchor = anchor_of(0.15, 0.15, 0.15)
    assert anchor.is_steady(readings(0.1, 0.1, 0.1))
    assert not anchor.is_steady(readings(0.15, 0.15, 0.15))


def test_one_quiet_reading_of_several_is_enough() -> None:
    assert anchor_of(0.1, 0.2, 0.2).is_steady(readings(0.2, 0.2, 0.1))


# Kernels


def test_a_kernel_stops_when_its_two_lowest_passes_agree(device: ToyDevice) -> None:
    found = measure_kernels(device, kernel_requests("abc"), config=ProtocolConfig())
    assert {len(kernel.passes) for kernel in found.values()} == {3}
    assert sorted(kernel.low_ms for kernel in found.values()) == pytest.approx([0.1, 0.2, 0.3])
    assert all(kernel.flags == () and kernel.conditions == CONDITIONS for kernel in found.values())


def test_a_kernel_goes_on_while_its_passes_differ_and_stops_at_the_most_allowed(device: ToyDevice) -> None:
    config = ProtocolConfig(max_passes=6)
    device.slowdown = lambda opens: 1 + opens / 10  # never the same twice
    (kernel,) = measure_kernels(device, kernel_requests("h"), config=config).values()
    assert len(kernel.passes) == 6
    lows = [1.0, 1.02, 1.5, 1.015]
    passes = [Pass((low,)) for low in lows]
    assert not config.is_kernel_done(passes[:2])
    assert not config.is_kernel_done(passes[:3])
    assert not config.is_kernel_done(passes)
    assert config.is_kernel_done([*passes, Pass((1.008,))])


def test_passes_of_a_microsecond_agree_within_the_clocks_reach() -> None:
    config = ProtocolConfig()
    assert config.is_kernel_done([Pass((0.00100,)), Pass((0.00108,)), Pass((0.2,))])
    assert not config.is_kernel_done([Pass((0.00100,)), Pass((0.00112,)), Pass((0.2,))])


def test_every_pass_takes_all_kernels_in_another_order(device: ToyDevice) -> None:
    names = "abcdefgh"
    measure_kernels(device, kernel_requests(names), anchor=request("anchor"), config=ProtocolConfig(anchor_every=8))
    order = "".join(name for name in device.opened if name != "anchor")
    rounds = [order[i : i + 8] for i in range(0, len(order), 8)]
    assert len(rounds) == 3
    assert all(sorted(one) == list(names) for one in rounds)
    assert len(set(rounds)) == 3


def test_results_come_as_kernels_are_done(device: ToyDevice) -> None:
    heard: list[tuple[int, int, str]] = []
    wanted = kernel_requests("abcd")
    measure_kernels(device, wanted, on_result=lambda *news: heard.append(news))
    assert [(done, total) for done, total, _ in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {key for _, _, key in heard} == set(wanted)


def test_a_block_measured_while_the_machine_was_busy_is_made_again(device: ToyDevice) -> None:
    # Three readings make the anchor; the first block's four kernels and the reading after them are slow.
    device.slowdown = slow_between(4, 10)
    config = ProtocolConfig(anchor_every=4)
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert sorted(kernel.low_ms for kernel in found.values()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(len(kernel.passes) == 3 for kernel in found.values())
    assert all(not one.busy for kernel in found.values() for one in kernel.passes)
    assert all(max(max(samples) for samples in kernel.samples_ms) < 0.5 for kernel in found.values())


SLOW_OPENS = 3 + 5 * (4 + READINGS)  # the anchor's first readings, and five of the six stretches of the fewest passes


def test_passes_that_agree_on_a_slow_device_are_not_the_last(device: ToyDevice) -> None:
    device.slowdown = slow_between(1, SLOW_OPENS)
    names = "abcdefgh"
    config = ProtocolConfig(anchor_every=4)
    found = measure_kernels(device, kernel_requests(names), anchor=request("anchor"), config=config)
    assert sorted(kernel.low_ms for kernel in found.values()) == pytest.approx([MS[name] for name in names])
    assert max(len(kernel.passes) for kernel in found.values()) < config.max_passes


def test_passes_at_a_lower_clock_are_not_the_last(device: ToyDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "KERNEL_SAMPLE_MS", 20)  # long enough for the clock to be read
    # The anchor runs from the cache: it is as fast, or the readings met a better moment.
    device.ms = {**MS, "anchor": 0.1}
    device.mhz = lambda opens: 1000.0 if opens <= SLOW_OPENS else 2000.0
    device.slowdown = lambda opens: 2.0 if opens <= SLOW_OPENS and device.opened[-1] != "anchor" else 1.0
    config = ProtocolConfig(anchor_every=4)
    found = measure_kernels(device, kernel_requests("abcdefgh"), anchor=request("anchor"), config=config)
    assert sorted(kernel.low_ms for kernel in found.values()) == pytest.approx([MS[name] for name in "abcdefgh"])


def test_a_clock_that_never_rests_ends_at_the_most_passes(device: ToyDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "KERNEL_SAMPLE_MS", 20)
    device.mhz = lambda opens: 1000.0 + 100 * opens
    config = ProtocolConfig(anchor_every=4, max_passes=5)
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert {len(kernel.passes) for kernel in found.values()} == {5}


def test_a_block_during_which_the_device_grew_hot_is_made_again_once_it_has_settled(device: ToyDevice) -> None:
    device.hot = lambda opens: opens <= 10 and "settled" not in device.held
    config = ProtocolConfig(anchor_every=4)
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert device.held == ["taken", "settled", "given back"]
    assert all(len(kernel.passes) == 3 for kernel in found.values())
    assert all(not one.busy for kernel in found.values() for one in kernel.passes)
    opened = Counter(name for name in device.opened if name != "anchor")
    assert sum(opened.values()) == 4 * (3 + 1)  # three passes, and the block thrown away


def test_of_several_stretches_in_one_batch_only_the_busy_one_is_made_again(device: ToyDevice) -> None:
    device.jobs_per_batch = 8
    device.slowdown = slow_between(11, 17)  # after three readings, four kernels and three readings
    config = ProtocolConfig(anchor_every=4)
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert sorted(kernel.low_ms for kernel in found.values()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(len(kernel.passes) == 3 for kernel in found.values())
    opened = Counter(name for name in device.opened if name != "anchor")
    assert sum(opened.values()) == 4 * (3 + 1)


def test_what_stays_busy_is_kept_and_flagged(device: ToyDevice) -> None:
    device.slowdown = lambda opens: 1.0 if opens <= 3 else 2.0
    found = measure_kernels(
        device, kernel_requests("abcd"), anchor=request("anchor"),
        config=ProtocolConfig(anchor_every=4, anchor_repeats=1, anchor_total_repeats=2),
    )  # fmt: skip
    assert all(kernel.flags == (BUSY,) for kernel in found.values())
    assert sorted(kernel.low_ms for kernel in found.values()) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    opened = Counter(name for name in device.opened if name != "anchor")
    assert sum(opened.values()) == 4 * (9 + 1)  # nine passes; once it has shown to last, nothing more is thrown away


def test_a_model_that_no_attempt_found_the_device_steady_for_is_flagged(device: ToyDevice) -> None:
    config = ProtocolConfig(model_passes=3, pair_rounds=2, anchor_repeats=1)
    assert not any(one.busy for one in measure_model(device, b"a", config).passes)
    device.hot = lambda opens: True
    assert BUSY in measure_model(device, b"a", config).flags
    pair = measure_pair(device, b"a", b"b", config)
    assert all(one.busy for side in (pair.before, pair.after) for one in side.passes)
    assert device.held.count("settled") == 2 + 2


def test_a_kernel_that_does_not_run_is_named(device: ToyDevice) -> None:
    @contextmanager
    def refuse(model: bytes) -> Iterator[SimpleNamespace]:
        raise InvalidInput("unreadable", next_step="export again")
        yield

    device.open = refuse
    wanted = kernel_requests("a")
    with pytest.raises(DeviceError, match=r"CONV_2D 1x1 8->8 @8x8: unreadable") as caught:
        measure_kernels(device, wanted)
    assert caught.value.next_step == "export again"


# The table


def test_nothing_is_measured_twice(device: ToyDevice, tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        first = measure_kernels(device, kernel_requests("abc"), table=table)
        opened = len(device.opened)
        second = measure_kernels(device, kernel_requests("abc"), table=table)
        assert len(device.opened) == opened
        assert device.held == ["taken", "given back"]  # with nothing to do the device is left alone
        assert second == first
        more = measure_kernels(device, kernel_requests("abcd"), table=table, anchor=request("anchor"))
        new = Counter(device.opened[opened:])
        assert new["d"] == 3
        assert not set(new) & set("abc")
        assert len(more) == 4


def test_a_killed_run_goes_on_with_the_passes_it_lacks(device: ToyDevice, tmp_path: Path) -> None:
    config = ProtocolConfig(anchor_every=2)
    wanted = kernel_requests("abcdef")
    with LatencyTable(tmp_path / "t.sqlite") as table:
        plain_open = device.open

        @contextmanager
        def dying(model: bytes) -> Iterator[SimpleNamespace]:
            if len(device.opened) > 12:
                raise KeyboardInterrupt
            with plain_open(model) as session:
                yield session

        device.open = dying
        with pytest.raises(KeyboardInterrupt):
            measure_kernels(device, wanted, table=table, anchor=request("anchor"), config=config)
        stored = table.passes(CONDITIONS, wanted)
        before = sum(len(passes) for passes in stored.values())
        assert 0 < before < 18
        device.open = plain_open
        device.opened.clear()
        found = measure_kernels(device, wanted, table=table, anchor=request("anchor"), config=config)
        made = sum(count for name, count in Counter(device.opened).items() if name != "anchor")
        assert made == 18 - before
        assert {len(kernel.passes) for kernel in found.values()} == {3}


def test_other_conditions_are_measured_anew(device: ToyDevice, tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_kernels(device, kernel_requests("ab"), table=table)
        device.opened.clear()
        device.measured_under = replace(CONDITIONS, threads=2)
        measure_kernels(device, kernel_requests("ab"), table=table, anchor=request("anchor"))
        assert Counter(device.opened)["a"] == 3
        assert {c.threads for c in table.conditions()} == {1, 2}


def test_a_device_is_given_back_after_an_error(device: ToyDevice) -> None:
    device.ms = {}
    with pytest.raises(KeyError):
        measure_kernels(device, kernel_requests("ab"))
    assert device.held == ["taken", "given back"]


# Whole models


def test_whole_models_take_all_their_passes_interleaved(device: ToyDevice, tmp_path: Path) -> None:
    plans = [ModelRequest("net", (8 * (i + 1),), lambda name=name: name.encode()) for i, name in enumerate("abc")]
    config = ProtocolConfig(model_passes=4, model_samples=6)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        found = measure_models(device, {p.key: p for p in plans}, table=table, config=config)
        assert {len(m.passes) for m in found.values()} == {4}
        assert {len(samples) for m in found.values() for samples in m.samples_ms} == {6}
        stored = table.models(CONDITIONS, "net")
        assert {tuple(w): m.low_ms for w, m in stored} == {
            (8 * (i + 1),): pytest.approx(0.1 * (i + 1)) for i in range(3)
        }
        device.opened.clear()
        measure_models(device, {p.key: p for p in plans}, table=table, config=config)
        assert device.opened == []


def test_one_model_alone(device: ToyDevice) -> None:
    measured = measure_model(device, b"c", ProtocolConfig(model_passes=3, model_samples=5))
    assert [len(samples) for samples in measured.samples_ms] == [5, 5, 5]
    assert measured.p50_ms == pytest.approx(0.3)
    assert (measured.warmup_runs, measured.conditions) == (4, CONDITIONS)


def test_load_and_first_inference_come_along(device: ToyDevice) -> None:
    config = ProtocolConfig(model_passes=3, model_samples=5, pair_rounds=2)
    measured = measure_model(device, b"c", config)
    assert (measured.load_ms, measured.peak_rss_kb) == (0.0, None)
    assert measured.first_ms == pytest.approx(0.3)
    pair = measure_pair(device, b"d", b"b", config)
    assert (pair.before.first_ms, pair.after.first_ms) == (pytest.approx(0.4), pytest.approx(0.2))


def test_a_pair_is_timed_in_alternating_blocks_so_that_drift_cancels(device: ToyDevice) -> None:
    device.slowdown = lambda opens: 1 + opens / 20  # steadily slower: the lone ratio of two runs would be wrong
    pair = measure_pair(device, b"d", b"b", ProtocolConfig(pair_rounds=5, model_samples=10))
    assert pair.speedup == pytest.approx(2.0)
    assert pair.speedup_interval == (pytest.approx(2.0), pytest.approx(2.0))
    assert device.opened == ["d", "b"] * 5
    assert pair.before.p50_ms == pytest.approx(2 * pair.after.p50_ms)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_passes", 0), ("max_passes", 2), ("cadence_fps", float("nan")), ("anchor_every", 0), ("pair_rounds", 0),
    ],
)  # fmt: skip
def test_a_protocol_that_cannot_work_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidConfig, match=field):
        ProtocolConfig(**{field: value})


# Sustained


def test_a_sustained_measurement_says_how_much_slower_the_device_becomes(device: ToyDevice) -> None:
    device.ms, device.slowdown = {"a": 100.0}, lambda opens: 1 + 0.1 * (opens - 1)
    seconds: list[float] = []
    found = measure_sustained(device, b"a", 60.0, on_window=seconds.append)
    assert [window.p50_ms for window in found.windows] == pytest.approx([100 + 10 * i for i in range(12)])
    assert len(seconds) == 12
    assert found.slowdowns[-1] == pytest.approx(2.1)
    assert device.held == ["taken", "given back"]  # and no wait for the device to cool
    document = found.to_document()
    assert all(4.9 <= window["runs"] * window["p50_ms"] / 1000 <= 5.5 for window in document["windows"])
    assert document["windows"][0]["celsius"] is None
    assert document["flags"] == []


def test_windows_have_the_mean_clock_where_passes_know_it(device: ToyDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = device.passes

    def passes(jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        for number, timed in enumerate(plain(jobs)):
            known = PassRecord(clock_ms=500.0, clock_mhz_ms=500.0 * (2000 - 100 * number)) if number else PassRecord()
            yield replace(timed, record=known)

    monkeypatch.setattr(device, "passes", passes)
    windows = measure_sustained(device, b"a", 1.0).windows
    assert [window.heat.clock_mhz for window in windows] == [None, 1900.0, 1800.0, 1700.0]


def test_a_sustained_measurement_may_keep_a_cadence(device: ToyDevice) -> None:
    found = measure_sustained(device, b"a", 20.0, config=ProtocolConfig(cadence_fps=10.0))
    assert [len(window.samples_ms) for window in found.windows] == pytest.approx([50] * 4, abs=2)
    assert device.now_s == pytest.approx(20 + 4 * 0.4, abs=1)  # four runs of warm-up in each window


def test_a_sustained_measurement_under_load_is_flagged(device: ToyDevice) -> None:
    device.load_at = lambda opens: Neighbours(1.0, "compiler")
    assert measure_sustained(device, b"a", 1.0).to_document()["flags"] == [BUSY]


# Under load of other programs: what is measured then is flagged, and made again later

BUSY_NOW, QUIET_NOW = Neighbours(1.0), Neighbours(0.05)
BUSY_CONFIG = ProtocolConfig(anchor_every=4, model_passes=3, pair_rounds=2)


def busy_at(opens: int) -> Neighbours:
    return BUSY_NOW


@pytest.fixture
def busy_device(device: ToyDevice) -> ToyDevice:
    device.load_at = busy_at
    return device


def opened(device: ToyDevice) -> Counter[str]:
    return Counter(name for name in device.opened if name != "anchor")


def test_a_neighbour_that_slows_all_alike_is_flagged_and_nothing_is_thrown_away_for_it(busy_device: ToyDevice) -> None:
    busy_device.slowdown = lambda opens: 1.07
    found = measure_kernels(busy_device, kernel_requests("abcd"), anchor=request("anchor"), config=BUSY_CONFIG)
    assert {kernel.flags for kernel in found.values()} == {(BUSY,)}
    assert set(opened(busy_device).values()) == {3 * 3}  # more than on a device left alone
    assert busy_device.held == ["taken", "given back"]


def test_single_models_and_pairs_are_flagged_too(busy_device: ToyDevice) -> None:
    assert BUSY in measure_model(busy_device, b"a", BUSY_CONFIG).flags
    pair = measure_pair(busy_device, b"b", b"a", BUSY_CONFIG)
    assert (BUSY in pair.before.flags, BUSY in pair.after.flags) == (True, True)
    busy_device.load_at = lambda opens: QUIET_NOW
    assert BUSY not in measure_model(busy_device, b"a", BUSY_CONFIG).flags


def test_a_device_left_alone_later_is_measured_anew_once(busy_device: ToyDevice, tmp_path: Path) -> None:
    busy_device.slowdown = lambda opens: 1.07
    with LatencyTable(tmp_path / "t.sqlite") as table:

        def measure() -> dict[str, int]:
            busy_device.opened.clear()
            found = measure_kernels(
                busy_device, kernel_requests("abcd"), table=table, anchor=request("anchor"), config=BUSY_CONFIG
            )
            assert min(kernel.low_ms for kernel in found.values()) == pytest.approx(0.1 * busy_device.slowdown(0))
            return dict(opened(busy_device))

        assert measure() == dict.fromkeys("abcd", 9)
        assert measure() == {}  # still busy: as good as it gets
        busy_device.load_at = lambda opens: None
        assert measure() == {}  # unknown
        busy_device.load_at, busy_device.slowdown = lambda opens: QUIET_NOW, lambda opens: 1.0
        assert measure() == dict.fromkeys("abcd", 3)
        assert {kernel.flags for kernel in table.kernels(CONDITIONS).values()} == {()}
        busy_device.load_at = busy_at
        assert measure() == {}


def test_passes_are_made_again_as_soon_as_the_neighbour_has_gone(busy_device: ToyDevice) -> None:
    busy_device.load_at = lambda opens: BUSY_NOW if opens <= READINGS + 8 else QUIET_NOW
    done: list[int] = []
    found = measure_kernels(
        busy_device, kernel_requests("abcd"), anchor=request("anchor"), config=BUSY_CONFIG,
        on_result=lambda number, total, key: done.append(number),
    )  # fmt: skip
    assert {kernel.flags for kernel in found.values()} == {()}
    assert {sum(not one.busy for one in kernel.passes) for kernel in found.values()} == {3}
    assert done[-4:] == [1, 2, 3, 4]


def test_a_neighbour_that_comes_and_goes_does_not_take_for_ever(busy_device: ToyDevice) -> None:
    looks = [0]

    def flicker(opens: int) -> Neighbours:
        # Every stretch is flagged, and when a round is over nobody is there.
        looks[0] += 1
        return BUSY_NOW if busy_device.opened and busy_device.opened[-1] == "anchor" and looks[0] % 4 else QUIET_NOW

    busy_device.load_at = flicker
    config = ProtocolConfig(anchor_every=4, anchor_total_repeats=2)
    found = measure_kernels(busy_device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert all(len(kernel.passes) >= 3 for kernel in found.values())
    assert sum(opened(busy_device).values()) < 4 * 3 * 4


def test_models_beside_a_neighbour_are_measured_more_often_until_it_has_gone(busy_device: ToyDevice) -> None:
    busy_device.slowdown = lambda opens: 1.2 if opens < 20 else 1.01
    models = {r.key: r for r in (ModelRequest("net", (n,), name.encode) for n, name in enumerate("ab"))}
    found = measure_models(busy_device, models, config=BUSY_CONFIG)
    assert {len(model.passes) for model in found.values()} == {3 * 3}
    assert [model.low_ms for model in found.values()] == pytest.approx([0.101, 0.202])

    busy_device.load_at = lambda opens: QUIET_NOW
    again = measure_models(busy_device, models, config=BUSY_CONFIG)
    assert {len(model.passes) for model in again.values()} == {3}


def test_the_drift_of_an_anchor_alone_does_not_start_over(busy_device: ToyDevice) -> None:
    busy_device.load_at = lambda opens: QUIET_NOW
    busy_device.slowdown = lambda opens: 1.0 if opens <= READINGS else 2.0
    config = ProtocolConfig(anchor_every=4, anchor_repeats=0)
    found = measure_kernels(busy_device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert {len(kernel.passes) for kernel in found.values()} == {9}
    assert {kernel.flags for kernel in found.values()} == {(BUSY,)}


# Anchors that the table knows


def test_what_the_table_knows_is_the_level_from_the_first_reading_on(busy_device: ToyDevice, tmp_path: Path) -> None:
    busy_device.load_at = lambda opens: None
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_kernels(busy_device, kernel_requests("abcd"), table=table, config=BUSY_CONFIG)
        busy_device.slowdown = lambda opens: 1.2  # from before the first reading of the next session
        busy_device.opened.clear()
        found = measure_kernels(busy_device, kernel_requests("abcdefgh"), table=table, config=BUSY_CONFIG)
    assert busy_device.opened.count("a") > 0  # 0.1 ms long
    assert {kernel.label for kernel in found.values() if BUSY in kernel.flags} == {
        r.label for r in kernel_requests("efgh").values()
    }


def test_models_are_held_against_a_kernel_of_the_table(busy_device: ToyDevice, tmp_path: Path) -> None:
    busy_device.load_at = lambda opens: None
    kernels = kernel_requests("a")
    models = {r.key: r for r in (ModelRequest("net", (8 * n,), name.encode) for n, name in enumerate("bcd", 1))}
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_kernels(busy_device, kernels, table=table, config=BUSY_CONFIG)
        busy_device.slowdown = lambda opens: 1.2
        found = measure_models(
            busy_device, models, table=table, anchor=next(iter(kernels.values())), config=BUSY_CONFIG
        )
        assert all(BUSY in model.flags for model in found.values())


def test_the_best_anchor_is_nearest_to_a_tenth_of_a_millisecond() -> None:
    lows = {"short": 0.004, "good": 0.08, "long": 2.0}
    assert best_anchor({key: [Pass((low,)), Pass((low * 9,))] for key, low in lows.items()}) == "good"
    assert best_anchor({"none": []}) is None
    assert best_anchor({}) is None


# A process that is killed while a device works on: the next one takes the results

RESUMED = ProtocolConfig(anchor_every=5, min_passes=3, max_passes=3)
PLAN = StretchPlan((("a", "b"), ("b", "a")), {"a": 1, "b": 0}, "b", 0.25, in_a_row=1, repeats_left=7)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@dataclass
class WorksOn(ToyDevice):
    """Does all jobs that it was given, whatever becomes of the process that gave them."""

    jobs_per_batch: int = 15
    left: tuple[str, list[str], list[Pass]] | None = None

    def unfinished(self) -> str:
        return self.left[0] if self.left else ""

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[Pass, None, None]:
        keys = [job.key for job in jobs]
        if self.left is None or self.left[1] != keys:
            self.left = (plan, keys, list(super().passes(jobs)))
        yield from self.left[2]
        self.left = None  # not reached by a process that was killed


class Killing(LatencyTable):
    """Its process is killed when it would store for the `after`-th time."""

    after = math.inf

    def add_passes(self, *arguments: Any, **options: Any) -> None:
        self.after -= 1
        if self.after < 0:
            raise Killed
        super().add_passes(*arguments, **options)


def device_that_works_on(monkeypatch: pytest.MonkeyPatch, slow: range = range(0)) -> WorksOn:
    made = WorksOn(MS, slowdown=lambda opens: 2.0 if opens in slow else 1.0)
    monkeypatch.setattr(timing_module, "time", made.clock())
    return made


def stored(table: LatencyTable) -> Mapping[str, tuple[Pass, ...]]:
    return table.passes(CONDITIONS, kernel_requests("abcdefgh"))


@pytest.mark.parametrize("slow", [range(0), range(12, 20)], ids=["steady", "drifting"])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_what_the_device_did_alone_is_taken_and_nothing_is_measured_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int, slow: range
) -> None:
    undisturbed = device_that_works_on(monkeypatch, slow)
    with LatencyTable(tmp_path / "undisturbed.sqlite") as table:
        measure_kernels(undisturbed, kernel_requests("abcdefgh"), table=table, config=RESUMED)
        wanted = stored(table)
    killed = device_that_works_on(monkeypatch, slow)
    with Killing(tmp_path / "killed.sqlite") as table:
        table.after = after
        with pytest.raises(Killed):
            measure_kernels(killed, kernel_requests("abcdefgh"), table=table, config=RESUMED)
        assert killed.left is not None
        table.after = math.inf
        found = measure_kernels(killed, kernel_requests("abcdefgh"), table=table, config=RESUMED)
        assert {key: len(passes) for key, passes in stored(table).items()} == dict.fromkeys(wanted, 3)
    assert {kernel.flags for kernel in found.values()} == {()}
    # The anchor's first readings come once more in a batch that a new process orders for itself.
    assert len(killed.opened) <= len(undisturbed.opened) + 3
    assert Counter(killed.opened)["a"] <= Counter(undisturbed.opened)["a"] + 3


def test_a_batch_of_other_work_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy = device_that_works_on(monkeypatch)
    with Killing(tmp_path / "t.sqlite") as table:
        table.after = 1
        with pytest.raises(Killed):
            measure_kernels(toy, kernel_requests("abcdefgh"), table=table, config=RESUMED)
        before = len(toy.opened)
        table.after = math.inf
        measure_kernels(toy, kernel_requests("abc"), table=table, config=RESUMED)
        assert len(toy.opened) > before
    with LatencyTable(tmp_path / "new.sqlite") as table:
        toy = device_that_works_on(monkeypatch)
        toy.left = (replace(PLAN, stored={"a": 1, "b": 0}).to_text(), [], [])
        measure_kernels(toy, kernel_requests("abcdefgh"), table=table, config=RESUMED)
        assert {len(passes) for passes in stored(table).values()} == {3}


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, lowest_ms=math.inf, anchor="")])
def test_a_plan_comes_back_from_its_text(plan: StretchPlan) -> None:
    assert StretchPlan.from_text(plan.to_text()) == plan


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "\0", PLAN.to_text().replace("[[0", "[[9"), PLAN.to_text().replace("[[0", "[[-1"),
     PLAN.to_text().replace('version": 1', 'version": 2'), PLAN.to_text().replace("0.25", '"low"')],
)  # fmt: skip
def test_a_text_that_is_no_plan_gives_none(text: str) -> None:
    assert StretchPlan.from_text(text) is None


def test_a_plan_fits_work_that_has_its_keys_and_a_table_that_has_its_passes() -> None:
    assert PLAN.fits(["a", "b", "c"], {"a": 2, "b": 0, "c": 0})
    assert not PLAN.fits(["a"], {"a": 2})
    assert not PLAN.fits(["a", "b"], {"a": 0, "b": 0})
    assert not replace(PLAN, anchor="z").fits(["a", "b"], {"a": 1, "b": 0})


def test_stretches_are_told_apart_by_how_many_passes_came_since() -> None:
    since = StoredStretches(PLAN, {"a": 2, "b": 1})
    assert [since.holds(stretch) for stretch in PLAN.stretches] == [True, False]
    assert not StoredStretches(PLAN, {"a": 1, "b": 0}).holds(["a", "b"])
