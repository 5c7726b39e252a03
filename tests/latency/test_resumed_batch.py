"""A process that is killed while a device works on: the next one takes the results instead of measuring again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from latency_toys import CONDITIONS, ToyDevice, conv, request

from amc_mobile.device import device as timing_module
from amc_mobile.device.device import Job, TimedPass
from amc_mobile.latency.measurement import KernelRequest, Pass
from amc_mobile.latency.protocol import ProtocolConfig, StoredStretches, StretchPlan, measure_kernels
from amc_mobile.latency.table import LatencyTable

MS = {name: 0.1 * (index + 1) for index, name in enumerate("abcdefgh")}
CONFIG = ProtocolConfig(anchor_every=5, min_passes=3, max_passes=3)
PLAN = StretchPlan((("a", "b"), ("b", "a")), {"a": 1, "b": 0}, "b", 0.25, in_a_row=1, repeats_left=7)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@dataclass
class WorksOn(ToyDevice):
    """Does all jobs that it was given, whatever becomes of the process that gave them."""

    jobs_per_batch: int = 15
    left: tuple[str, list[str], list[TimedPass]] | None = None

    def unfinished(self) -> str:
        return self.left[0] if self.left else ""

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[TimedPass, None, None]:
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


def kernel_requests(names: str = "abcdefgh") -> dict[str, KernelRequest]:
    made = [request(name, conv(8, 8 * (ord(name) - 96))) for name in names]
    return {r.key: r for r in made}


def device(monkeypatch: pytest.MonkeyPatch, slow: range = range(0)) -> WorksOn:
    made = WorksOn(MS, slowdown=lambda opens: 2.0 if opens in slow else 1.0)
    monkeypatch.setattr(timing_module, "time", made.clock())
    return made


def stored(table: LatencyTable) -> Mapping[str, tuple[Pass, ...]]:
    return table.passes(CONDITIONS, kernel_requests())


@pytest.mark.parametrize("slow", [range(0), range(12, 20)], ids=["steady", "drifting"])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_what_the_device_did_alone_is_taken_and_nothing_is_measured_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int, slow: range
) -> None:
    undisturbed = device(monkeypatch, slow)
    with LatencyTable(tmp_path / "undisturbed.sqlite") as table:
        measure_kernels(undisturbed, kernel_requests(), table=table, config=CONFIG)
        wanted = stored(table)
    killed = device(monkeypatch, slow)
    with Killing(tmp_path / "killed.sqlite") as table:
        table.after = after
        with pytest.raises(Killed):
            measure_kernels(killed, kernel_requests(), table=table, config=CONFIG)
        assert killed.left is not None
        table.after = math.inf
        found = measure_kernels(killed, kernel_requests(), table=table, config=CONFIG)
        assert {key: len(passes) for key, passes in stored(table).items()} == dict.fromkeys(wanted, 3)
    assert {kernel.flags for kernel in found.values()} == {()}
    # The anchor's first readings come once more in a batch that a new process orders for itself.
    assert len(killed.opened) <= len(undisturbed.opened) + 3
    assert Counter(killed.opened)["a"] <= Counter(undisturbed.opened)["a"] + 3


def test_a_batch_of_other_work_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy = device(monkeypatch)
    with Killing(tmp_path / "t.sqlite") as table:
        table.after = 1
        with pytest.raises(Killed):
            measure_kernels(toy, kernel_requests(), table=table, config=CONFIG)
        before = len(toy.opened)
        table.after = math.inf
        measure_kernels(toy, kernel_requests("abc"), table=table, config=CONFIG)
        assert len(toy.opened) > before
    with LatencyTable(tmp_path / "new.sqlite") as table:
        toy = device(monkeypatch)
        toy.left = (replace(PLAN, stored={"a": 1, "b": 0}).to_text(), [], [])
        measure_kernels(toy, kernel_requests(), table=table, config=CONFIG)
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
