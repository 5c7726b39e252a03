"""Other programs on a device: the kernel's counts understood, waited for, and accepted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from amc_mobile.device import device as neighbours
from amc_mobile.device import host
from amc_mobile.device import host as host_neighbours
from amc_mobile.device.device import BUSY_CORES, Neighbourhood, Neighbours, parse_cpu_times, parse_neighbours
from amc_mobile.device.host import HostDevice, HostNeighbours, installed_runtimes
from amc_mobile.device.phone_state import BUSY

TICKS = os.sysconf("SC_CLK_TCK")
QUIET, ONE_CORE = Neighbours(0.05), Neighbours(1.0, "copy (process 7)")


def counts(*busy: int, passed: int) -> str:
    """/proc/stat of a device that started with nothing: ticks each core was busy, of all that passed."""
    lines = [f"cpu{core} {ticks} 0 0 {passed - ticks} 0 0 0 0 0 0" for core, ticks in enumerate(busy)]
    return "\n".join(["cpu  9 9 9 9 0 0 0 0 0 0", *lines, "intr 5 0 1", "ctxt 77"]) + "\n"


def look(before: str, after: str, own: str = "") -> Neighbours | None:
    return parse_neighbours(f"{before}then\n{after}{own}")


def process(*ticks: int, name: str = "sh") -> str:
    return f"own\n41 ({name}) S 1 41 41 0 -1 4194560 1 2 3 4 {' '.join(map(str, ticks))} 20 0 1 0\n"


# The kernel's counts


def test_what_others_take_is_all_that_is_not_ones_own() -> None:
    before, after = counts(10, 20, passed=100), counts(60, 45, passed=150)
    assert look(before, after) == Neighbours(1.5)
    assert look(before, after, process(3, 2, 30, 10)) == Neighbours((75 - 45) / 50)
    assert look(before, after, process(3, 2, 30, 10, name="a) S 9 (9")) == Neighbours((75 - 45) / 50)
    assert look(before, after, process(900, 0, 0, 0)) == Neighbours(0.0)


def test_stolen_time_counts_and_time_that_a_guest_ran_counts_once() -> None:
    assert look("cpu0 0 0 0 0 0 0 0 0 0 0\n", "cpu0 30 0 0 50 0 0 0 20 30 0\n") == Neighbours(0.5)


def test_a_core_that_was_switched_off_is_left_out() -> None:
    assert look(counts(10, 20, passed=100), counts(20, passed=150)) == Neighbours(0.2)


def test_a_core_whose_counts_jump_is_busy_for_no_longer_than_the_look_took() -> None:
    jump = counts(0, 0, 10_000, passed=100).replace("cpu2 10000 0 0 -9900", "cpu2 10000 0 0 0")
    assert look(counts(0, 0, 0, passed=50), jump) == Neighbours(1.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "then\n", "cat: /proc/stat: Permission denied\n", counts(1, passed=9),
        f"{counts(1, passed=9)}then\n", f"then\n{counts(1, passed=9)}",
        f"{counts(1, passed=9)}then\n{counts(1, passed=9)}",  # no time passed
        f"{counts(1, passed=9)}then\n{counts(1, passed=3)}",  # the device started anew
        f"{counts(1, passed=9)}then\ncpu0 1 2 3\n", f"{counts(1, passed=9)}then\ncpu0 1 2 3 x 5\n",
        f"{counts(1, passed=9)}then\ncpu0 {'9' * 4000} 0 0 1\n",
        f"{counts(1, passed=9)}then\ncpu9999 5 0 0 9\n",
        f"{counts(1, passed=9)}then\n{counts(2, passed=19)}cpu0 5 0 0 99\n",
        f"{counts(1, passed=9)}then\n{counts(2, passed=19)}own\n",
        f"{counts(1, passed=9)}then\n{counts(2, passed=19)}own\n1 (a) S 1",
        f"{counts(1, passed=9)}then\n{counts(2, passed=19)}{process(1, 1, 1, -1)}",
        "cpu\u0660 1 2 3 4\nthen\ncpu\u0660 2 3 4 5\n",
    ],
)  # fmt: skip
def test_counts_that_are_hidden_or_impossible_tell_nothing(text: str) -> None:
    assert parse_neighbours(text) is None


def test_lines_of_other_things_are_passed_over() -> None:
    found = parse_cpu_times("cpu 1 2 3 4\ncpufreq 1 2 3 4\ncpu1 1 2 3 4 5\n")
    assert found is not None
    assert (dict(found.busy), dict(found.total)) == ({1: 6}, {1: 15})


def test_what_is_told_has_its_numbers() -> None:
    assert ONE_CORE.text() == "other programs take 1.00 processor cores, most of it copy (process 7)"
    assert ONE_CORE.to_document() == {"cores": 1.0, "program": "copy (process 7)"}
    assert QUIET.to_document() == {"cores": 0.05, "program": None}
    assert not Neighbours(BUSY_CORES).is_busy


# Waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of the modules that wait, which only sleeping moves."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    made = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep, now=now)
    monkeypatch.setattr(neighbours, "time", made)
    return made


def test_a_neighbour_that_ends_is_waited_for(clock: SimpleNamespace) -> None:
    seen = iter([ONE_CORE, ONE_CORE, QUIET])
    told: list[float] = []
    place = Neighbourhood(lambda: next(seen), 60.0, lambda found, waited_s: told.append(waited_s))
    place.wait()
    assert told == [0.0, 1.0]
    assert (place.now, place.most, place.is_steady) == (QUIET, QUIET, True)


def test_a_neighbour_that_stays_is_accepted_and_the_next_one_waited_for_no_longer(clock: SimpleNamespace) -> None:
    place = Neighbourhood(lambda: ONE_CORE, 2.5)
    place.see(ONE_CORE)
    assert not place.is_steady
    place.wait()
    assert clock.now == [2.5]
    assert (place.now, place.most, place.is_steady) == (ONE_CORE, ONE_CORE, True)
    place.see(QUIET)
    assert place.is_steady
    place.see(Neighbours(2.0))
    assert not place.is_steady  # it came while measuring
    place.wait()
    assert clock.now == [2.5]  # the patience is for all sessions together
    assert place.most == Neighbours(2.0)


def test_where_nothing_is_known_nothing_is_waited_for(clock: SimpleNamespace) -> None:
    place = Neighbourhood(lambda: None, 60.0)
    place.look()
    place.wait()
    assert (clock.now, place.now, place.most, place.is_steady) == ([0.0], None, None, True)


# This computer


class Computer:
    """A /proc that time moves on: another program takes `share` of the first core, this one works on the second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s, self.own_s, self.busy_s, self.share = 100.0, 5.0, 10.0, 0.0
        (folder / "77").mkdir(parents=True)
        (folder / "78").mkdir()
        (folder / "self").mkdir()
        (folder / "78" / "stat").write_text("broken")
        self.name = "copy all"
        self.write()

    def write(self) -> None:
        taken, own = int(self.busy_s * TICKS), int(self.own_s * TICKS)
        (self.folder / "stat").write_text(counts(taken, own, passed=int(self.now_s * TICKS)))
        (self.folder / "77" / "stat").write_text(f"77 ({self.name}) R 1 1 1 0 -1 0 0 0 0 0 {taken} 0 0 0 20 0 1 0\n")

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += self.share * seconds
        self.write()

    def work(self, seconds: float) -> None:
        self.own_s += seconds
        self.sleep(seconds)


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    made = Computer(tmp_path / "proc")
    time = SimpleNamespace(monotonic=lambda: made.now_s, process_time=lambda: made.own_s, sleep=made.sleep)
    monkeypatch.setattr(neighbours, "time", time)
    monkeypatch.setattr(host_neighbours, "time", time)
    monkeypatch.setattr(host_neighbours, "PROC", made.folder)
    return made


def test_this_computer_names_the_greediest_program(computer: Computer) -> None:
    computer.share = 0.8
    found = HostNeighbours().look()
    assert found is not None
    assert found.cores == pytest.approx(0.8, abs=0.03)
    assert found.program == "copy all (process 77)"
    computer.name = "a) R 1\x1b[2J" + "x" * 99
    computer.write()
    found = HostNeighbours().look()
    assert found is not None
    assert found.program == "a) R 1?[2J" + "x" * 30 + " (process 77)"


def test_the_programs_own_work_is_no_neighbour(computer: Computer) -> None:
    watch = HostNeighbours()
    assert watch.look() == Neighbours(0.0)
    computer.work(2.0)
    assert watch.since_before() == Neighbours(0.0)
    computer.share = 0.5
    computer.work(2.0)
    found = watch.since_before()
    assert found is not None
    assert found.cores == pytest.approx(0.5, abs=0.02)


def test_a_computer_without_counts_is_not_known(tmp_path: Path) -> None:
    assert HostNeighbours(tmp_path).look() is None
    (tmp_path / "stat").write_bytes(b"cpu0 \xff\xfe\n")
    assert HostNeighbours(tmp_path).look() is None


@pytest.fixture
def device(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HostDevice]:
    monkeypatch.setattr(host, "allowed_cores", lambda: (0, 1))
    return lambda **settings: HostDevice(installed_runtimes()[0], **settings)


def test_a_session_on_a_busy_computer_waits_and_then_goes_on(
    device: Callable[..., HostDevice], computer: Computer
) -> None:
    computer.share = 0.9
    waited: list[str] = []
    busy = device(patience_s=4.0, on_wait=lambda found, waited_s: waited.append(found.program))
    began = computer.now_s
    with busy.session():
        assert 4.0 <= computer.now_s - began <= 6.0
        assert set(waited) == {"copy all (process 77)"}
        found = busy.neighbours()
        assert found is not None
        assert found.is_busy
        assert busy.is_steady()
        computer.share = 1.0
        computer.work(1.0)
        assert busy.is_steady()
    most = busy.most_neighbours()
    assert most is not None
    assert most.text() == "other programs take 1.00 processor cores, most of it copy all (process 77)"
    began = computer.now_s
    with busy.session():
        assert computer.now_s - began <= 1.0


def test_a_neighbour_that_comes_while_measuring_is_seen_without_waiting(
    device: Callable[..., HostDevice], computer: Computer
) -> None:
    host_device = device(patience_s=60.0)
    with host_device.session():
        computer.work(1.0)
        assert host_device.is_steady()
        computer.share = 1.0
        computer.work(20.0)  # a stretch of a slow network
        began = computer.now_s
        assert not host_device.is_steady()
        assert computer.now_s == began
        computer.share = 0.0
        host_device.settle()
        assert host_device.is_steady()
        assert host_device.neighbours() == Neighbours(0.0)
    most = host_device.most_neighbours()
    assert most is not None
    assert most.is_busy


def test_nobody_looks_for_a_waived_problem(device: Callable[..., HostDevice], computer: Computer) -> None:
    computer.share = 2.0
    waiving = device(patience_s=60.0, waived=[BUSY])
    began = computer.now_s
    with waiving.session():
        computer.work(1.0)
        assert waiving.is_steady()
        assert (waiving.neighbours(), waiving.most_neighbours(), computer.now_s) == (None, None, began + 1.0)
