"""Two toy phones share the kernels of one table, in threads as real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from latency_toys import CONDITIONS, ToyDevice, add, conv, request

from amc_mobile.device.conditions import unit_of
from amc_mobile.device.device import Job, TimedPass
from amc_mobile.errors import DeviceError
from amc_mobile.latency.measurement import KernelRequest
from amc_mobile.latency.protocol import ProtocolConfig, measure_kernels
from amc_mobile.latency.sharing import PhoneShare, share_kernels
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

    def passes(self, jobs: Sequence[Job]) -> Generator[TimedPass, None, None]:
        for job in jobs:
            name = job.model().decode()
            if self.fails and len(self.opened) >= self.after:
                raise self.fails
            self.opened.append(name)
            yield TimedPass((MS[name] * self.factor(name),) * 4)


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
