"""Two toy phones share the kernels of one table, in threads as real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from latency_toys import CONDITIONS, ToyDevice, add, conv, passes, request

from amc_mobile.device.conditions import unit_of
from amc_mobile.device.device import Job, Pass
from amc_mobile.errors import DeviceError, InvalidInput
from amc_mobile.latency.measurement import KernelMeasurement, KernelRequest
from amc_mobile.latency.protocol import ProtocolConfig, measure_kernels
from amc_mobile.latency.sharing import PhoneShare, anchors, judge, share_kernels
from amc_mobile.latency.table import LatencyTable
from amc_mobile.latency.table_files import from_lines, to_lines

MS = {f"conv {n}": 0.5 - 0.008 * n for n in range(48)} | {f"add {n}": 0.2 - 0.01 * n for n in range(12)}
REQUESTS = {
    one.key: one
    for name in MS
    for one in [request(name, (conv(8, 8 * int(name[5:]) + 8) if "conv" in name else add(8 * int(name[4:]) + 8)))]
}
TYPES = {key: one.label and one.model().decode().split()[0] for key, one in REQUESTS.items()}
CONFIG = ProtocolConfig(min_passes=3, max_passes=5, anchor_every=10)
# The comparison takes 16 kernels x 3 passes and 6 x 3 looks at the anchor; a stretch of a share 10 + 3.
MID_SHARE = 48 + 18 + 2 * 13 + 2


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@dataclass
class Phone(ToyDevice):
    """Takes `MS * factor(name)`. `fails`: raised after so many passes. `meet`: waits for the other before its share."""

    factor: Callable[[str], float] = lambda name: 1.0
    fails: BaseException | None = None
    after: int = 0
    meet: threading.Barrier | None = None

    @contextmanager
    def session(self) -> Iterator[None]:
        with super().session():
            if self.meet and self.held.count("taken") == 2:  # the first session compares the phones
                self.meet.wait(20)
            yield

    def passes(self, jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        for job in jobs:
            name = job.model().decode()
            if self.fails and len(self.opened) >= self.after:
                raise self.fails
            self.opened.append(name)
            yield Pass((MS[name] * self.factor(name),) * 4)


def two(**second: object) -> dict[str, Phone]:
    """A pair that begins to share at the same moment."""
    meet = threading.Barrier(2)
    return {"A": Phone(MS, meet=meet), "B": Phone(MS, meet=meet, **second)}  # type: ignore[arg-type]


def shared(table: LatencyTable, phones: Mapping[str, Phone]) -> list[PhoneShare]:
    return share_kernels(phones, REQUESTS, TYPES, table=table, config=CONFIG)


def lows(table: LatencyTable) -> dict[str, float]:
    return {key: kernel.low_ms for key, kernel in table.kernels(CONDITIONS).items()}


def test_phones_that_agree_measure_each_kernel_on_one_of_them(tmp_path: Path) -> None:
    phones = two()
    with LatencyTable(tmp_path / "shared.sqlite") as table, LatencyTable(tmp_path / "alone.sqlite") as other:
        a, b = shared(table, phones)
        measure_kernels(Phone(MS), REQUESTS, table=other, config=CONFIG)
        assert lows(table) == lows(other)
        # The guard and the anchors, among the candidates, are all that both have made.
        both = set(phones["A"].opened) & set(phones["B"].opened)
        assert len(both) == 16
        assert a.kernels + b.kernels == len(REQUESTS)
        assert min(a.kernels - 16, b.kernels) >= 12
        assert (a.ratio, b.ratio, a.problem, b.problem) == (1.0, 1.0, "", "")
        opened = {serial: len(phone.opened) for serial, phone in phones.items()}
        shared(table, phones)
        assert {serial: len(phone.opened) for serial, phone in phones.items()} == opened


def test_a_phone_slower_by_one_factor_is_scaled_and_its_own_times_are_kept(tmp_path: Path) -> None:
    phones = two(factor=lambda name: 1.25)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        _, b = shared(table, phones)
        assert b.ratio == pytest.approx(0.8)
        assert b.kernels >= 12
        assert lows(table) == pytest.approx({key: MS[one.model().decode()] for key, one in REQUESTS.items()})
        ((of, source), ratio), *more = table.adoptions().items()
        assert (of, ratio, more) == (CONDITIONS.key, b.ratio, [])
        unit = next(found for found in table.conditions() if found.key == source)
        assert unit == replace(CONDITIONS, unit=unit_of("B"))
        for key, kernel in table.kernels(unit).items():
            assert kernel.low_ms == MS[REQUESTS[key].model().decode()] * 1.25


def test_phones_that_differ_from_kernel_to_kernel_do_not_share(tmp_path: Path) -> None:
    phones = two(factor=lambda name: 1.1 if "add" in name else 1.0)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        _, b = shared(table, phones)
        assert b.ratio is None
        assert "A takes 0.909 to 1.000 times as long for 8 kernels" in b.problem
        assert "left out" in b.text()
        assert table.adoptions() == {}
        assert len(set(phones["A"].opened)) == 16  # the caller measures the rest on the first alone
        assert set(lows(table)) == {key for key, one in REQUESTS.items() if one.model().decode() in phones["A"].opened}


def test_the_other_phone_finishes_what_an_unplugged_one_left(tmp_path: Path) -> None:
    phones = two(fails=DeviceError("B was unplugged"), after=MID_SHARE)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        a, b = shared(table, phones)
        assert set(lows(table)) == set(REQUESTS)
        assert all(len(kernel.passes) == 3 for kernel in table.kernels(CONDITIONS).values())
        assert "B was unplugged" in b.problem
        assert a.kernels + b.kernels == len(REQUESTS)


def test_what_the_first_phone_had_begun_stays_its_own_when_it_fails(tmp_path: Path) -> None:
    phones = two()
    phones["A"].fails, phones["A"].after = DeviceError("A was unplugged"), MID_SHARE
    with LatencyTable(tmp_path / "t.sqlite") as table:
        a, b = shared(table, phones)
        assert "A was unplugged" in a.problem
        done = {key for key, kernel in table.kernels(CONDITIONS).items() if len(kernel.passes) >= 3}
        begun = set(lows(table)) - done
        assert done | begun == set(REQUESTS)
        assert b.kernels > len(begun) > 0
        measure_kernels(Phone(MS), REQUESTS, table=table, config=CONFIG)
        assert all(len(kernel.passes) == 3 for kernel in table.kernels(CONDITIONS).values())


def test_a_killed_run_goes_on_and_no_kernel_is_measured_again(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table:
        with pytest.raises(Killed):
            shared(table, two(fails=Killed(), after=MID_SHARE))
        assert len(lows(table)) < len(REQUESTS)
        a, b = shared(table, two())
        assert set(lows(table)) == set(REQUESTS)
        assert a.problem == b.problem == ""
        for conditions in table.conditions():
            assert all(len(kernel.passes) == 3 for kernel in table.kernels(conditions).values())


def test_the_work_goes_on_with_a_table_that_was_taken_elsewhere(tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as table, LatencyTable(tmp_path / "elsewhere.sqlite") as other:
        with pytest.raises(Killed):
            shared(table, two(factor=lambda name: 1.25, fails=Killed(), after=MID_SHARE))
        other.add_contents(from_lines(tmp_path / "t.jsonl", to_lines(table.contents())))
        finished = {key for key, kernel in table.kernels(CONDITIONS).items() if len(kernel.passes) == 3}
        phones = two(factor=lambda name: 1.25)
        for phone in phones.values():
            phone.meet = None
        _, b = shared(other, phones)
        assert b.ratio == pytest.approx(0.8)
        assert other.adoptions() == table.adoptions()
        assert set(lows(other)) == set(REQUESTS)
        for phone in phones.values():
            again = {REQUESTS[key].model().decode() for key in finished} & set(phone.opened)
            assert len(again) <= 1  # the guard: the phones are not compared again


def test_phones_under_unlike_conditions_are_refused_by_name(tmp_path: Path) -> None:
    phones = two(measured_under=replace(CONDITIONS, os="Android 15"))
    with LatencyTable(tmp_path / "t.sqlite") as table:
        with pytest.raises(DeviceError, match="os none on A, Android 15 on B"):
            shared(table, phones)
        assert phones["A"].opened == phones["B"].opened == []


def test_a_network_with_few_kernels_is_left_to_the_first_phone(tmp_path: Path) -> None:
    few: dict[str, KernelRequest] = dict(list(REQUESTS.items())[:10])
    with LatencyTable(tmp_path / "t.sqlite") as table:
        _, b = share_kernels(two(), few, TYPES, table=table, config=CONFIG)
        assert b.problem == "the network has 5 kernels to compare phones by, 8 are needed"
        assert lows(table) == {}


def test_a_guard_is_held_against_what_it_took_before(tmp_path: Path) -> None:
    guard, *others = list(REQUESTS.values())[:12]
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_kernels(Phone(MS), {guard.key: guard}, table=table, config=CONFIG)
        slower = Phone(MS, factor=lambda name: 1.2)
        wanted = {one.key: one for one in (guard, *others)}
        measure_kernels(slower, wanted, table=table, anchor=guard, config=replace(CONFIG, anchor_total_repeats=0))
        found = table.kernels(CONDITIONS)
        assert all("BUSY" in found[one.key].flags for one in others)


@pytest.mark.parametrize(
    ("ratios", "action"),
    [
        ([1.0, 1.04, 0.96, 1.0], "accept"), ([1.2, 1.22, 1.18, 1.21], "rescale"), ([0.7, 0.71, 0.69], "rescale"),
        ([1.0, 1.0, 1.4], "rebuild"), ([1.1, 1.3, 0.9, 1.2], "rebuild"), ([1.06, 1.0, 1.02], "rescale"),
    ],
)  # fmt: skip
def test_ratios_decide_what_becomes_of_an_old_table(ratios: list[float], action: str) -> None:
    verdict = judge({f"kernel {i}": ratio for i, ratio in enumerate(ratios)})
    assert verdict.action == action
    assert verdict.ratio == pytest.approx(np.median(ratios))
    assert verdict.spread == pytest.approx(max(abs(r / np.median(ratios) - 1) for r in ratios))
    assert f"{len(ratios)} anchors" in verdict.text()
    assert verdict.to_document()["ratios"]["kernel 0"] == ratios[0]


def kernel(name: str, *lows_ms: float) -> KernelMeasurement:
    return KernelMeasurement(name, name, passes(*lows_ms), CONDITIONS)


def test_anchors_span_types_and_latencies_and_leave_out_the_noisy() -> None:
    kernels = [kernel(f"conv {ms}", ms, ms) for ms in range(1, 41)]
    kernels += [kernel(f"add {us}", us / 1000, us / 1000) for us in (1, 2, 30, 40, 50)]
    kernels += [kernel("conv noisy", 100.0, 200.0), kernel("pool 1", 0.025, 0.025)]
    types = {one.key: one.key.split()[0] for one in kernels}
    chosen = [one.key for one in anchors(kernels, types)]
    assert sorted(chosen) == ["add 30", "add 40", "add 50", "conv 1", "conv 14", "conv 27", "conv 40", "pool 1"]


def test_anchors_are_the_longest_kernels_where_few_are_long_enough() -> None:
    kernels = [kernel(f"conv {us}", us / 1000, us / 1000) for us in (*range(1, 13), 30)]
    chosen = anchors(kernels, dict.fromkeys((one.key for one in kernels), "conv"))
    assert sorted(one.low_ms for one in chosen) == [us / 1000 for us in (*range(6, 13), 30)]
    assert anchors(kernels[:1], {"conv 1": "conv"}) == kernels[:1]
    assert anchors([], {}) == []


def test_adopted_kernels_are_scaled_and_remember_where_they_come_from(tmp_path: Path) -> None:
    newer = replace(CONDITIONS, runtime_version="2.0")
    first, second = conv(8, 16), conv(16, 8)
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.add_kernels([first, second])
        table.add_passes(CONDITIONS, [(first.key, one) for one in passes(1.0, 2.0)], warmup_runs=4)
        table.add_passes(CONDITIONS, [(second.key, one) for one in passes(4.0)], warmup_runs=4)
        assert table.adopt(newer, CONDITIONS, [first.key], 1.5) == 2
        assert {k: v.low_ms for k, v in table.kernels(newer).items()} == {first.key: 1.5}
        assert table.kernels(CONDITIONS)[first.key].low_ms == 1.0
        assert table.adoptions() == {(newer.key, CONDITIONS.key): 1.5}
        with pytest.raises(InvalidInput, match="already measured"):
            table.adopt(newer, CONDITIONS, [first.key], 1.0)


def test_a_table_from_before_adoption_is_still_read(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    path = tmp_path / "t.sqlite"
    LatencyTable(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE adoption")
    with LatencyTable(path) as table:
        assert table.adoptions() == {}
