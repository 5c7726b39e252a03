"""A device under load of other programs: what is measured then is flagged, and made again later."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from latency_toys import CONDITIONS, ToyDevice, conv, request

from amc_mobile.device import device as timing_module
from amc_mobile.device.device import Neighbours
from amc_mobile.latency.measurement import BUSY, KernelRequest, ModelMeasurement, ModelRequest, Pass
from amc_mobile.latency.protocol import (
    READINGS,
    ProtocolConfig,
    best_anchor,
    measure_kernels,
    measure_model,
    measure_models,
    measure_pair,
)
from amc_mobile.latency.table import LatencyTable

MS = {name: 0.1 * (index + 1) for index, name in enumerate("abcdefgh")} | {"anchor": 0.1}
BUSY_NOW, QUIET_NOW = Neighbours(1.0), Neighbours(0.05)
CONFIG = ProtocolConfig(anchor_every=4, model_passes=3, pair_rounds=2)


def busy_at(opens: int) -> Neighbours:
    return BUSY_NOW


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> ToyDevice:
    made = ToyDevice(MS, load_at=busy_at)
    monkeypatch.setattr(timing_module, "time", made.clock())
    return made


def kernel_requests(names: str) -> dict[str, KernelRequest]:
    made = [request(name, conv(8, 8 * (ord(name) - 96))) for name in names]
    return {r.key: r for r in made}


def opened(device: ToyDevice) -> Counter[str]:
    return Counter(name for name in device.opened if name != "anchor")


def test_a_neighbour_that_slows_all_alike_is_flagged_and_nothing_is_thrown_away_for_it(device: ToyDevice) -> None:
    device.slowdown = lambda opens: 1.07
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=CONFIG)
    assert {kernel.flags for kernel in found.values()} == {(BUSY,)}
    assert set(opened(device).values()) == {3 * 3}  # more than on a device left alone
    assert device.held == ["taken", "given back"]


def test_single_models_and_pairs_are_flagged_too(device: ToyDevice) -> None:
    assert BUSY in measure_model(device, b"a", CONFIG).flags
    pair = measure_pair(device, b"b", b"a", CONFIG)
    assert (BUSY in pair.before.flags, BUSY in pair.after.flags) == (True, True)
    device.load_at = lambda opens: QUIET_NOW
    assert BUSY not in measure_model(device, b"a", CONFIG).flags


def test_a_device_left_alone_later_is_measured_anew_once(device: ToyDevice, tmp_path: Path) -> None:
    device.slowdown = lambda opens: 1.07
    with LatencyTable(tmp_path / "t.sqlite") as table:

        def measure() -> dict[str, int]:
            device.opened.clear()
            found = measure_kernels(
                device, kernel_requests("abcd"), table=table, anchor=request("anchor"), config=CONFIG
            )
            assert min(kernel.low_ms for kernel in found.values()) == pytest.approx(0.1 * device.slowdown(0))
            return dict(opened(device))

        assert measure() == dict.fromkeys("abcd", 9)
        assert measure() == {}  # still busy: as good as it gets
        device.load_at = lambda opens: None
        assert measure() == {}  # unknown
        device.load_at, device.slowdown = lambda opens: QUIET_NOW, lambda opens: 1.0
        assert measure() == dict.fromkeys("abcd", 3)
        assert {kernel.flags for kernel in table.kernels(CONDITIONS).values()} == {()}
        device.load_at = busy_at
        assert measure() == {}


def test_passes_are_made_again_as_soon_as_the_neighbour_has_gone(device: ToyDevice) -> None:
    device.load_at = lambda opens: BUSY_NOW if opens <= READINGS + 8 else QUIET_NOW
    done: list[int] = []
    found = measure_kernels(
        device, kernel_requests("abcd"), anchor=request("anchor"), config=CONFIG,
        on_result=lambda number, total, key: done.append(number),
    )  # fmt: skip
    assert {kernel.flags for kernel in found.values()} == {()}
    assert {sum(not one.busy for one in kernel.passes) for kernel in found.values()} == {3}
    assert done[-4:] == [1, 2, 3, 4]


def test_a_neighbour_that_comes_and_goes_does_not_take_for_ever(device: ToyDevice) -> None:
    looks = [0]

    def flicker(opens: int) -> Neighbours:
        # Every stretch is flagged, and when a round is over nobody is there.
        looks[0] += 1
        return BUSY_NOW if device.opened and device.opened[-1] == "anchor" and looks[0] % 4 else QUIET_NOW

    device.load_at = flicker
    config = ProtocolConfig(anchor_every=4, anchor_total_repeats=2)
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert all(len(kernel.passes) >= 3 for kernel in found.values())
    assert sum(opened(device).values()) < 4 * 3 * 4


def test_models_beside_a_neighbour_are_measured_more_often_until_it_has_gone(device: ToyDevice) -> None:
    device.slowdown = lambda opens: 1.2 if opens < 20 else 1.01
    models = {r.key: r for r in (ModelRequest("net", (n,), name.encode) for n, name in enumerate("ab"))}
    found = measure_models(device, models, config=CONFIG)
    assert {len(model.passes) for model in found.values()} == {3 * 3}
    assert [model.low_ms for model in found.values()] == pytest.approx([0.101, 0.202])

    device.load_at = lambda opens: QUIET_NOW
    again = measure_models(device, models, config=CONFIG)
    assert {len(model.passes) for model in again.values()} == {3}


def test_the_drift_of_an_anchor_alone_does_not_start_over(device: ToyDevice) -> None:
    device.load_at = lambda opens: QUIET_NOW
    device.slowdown = lambda opens: 1.0 if opens <= READINGS else 2.0
    config = ProtocolConfig(anchor_every=4, anchor_repeats=0)
    found = measure_kernels(device, kernel_requests("abcd"), anchor=request("anchor"), config=config)
    assert {len(kernel.passes) for kernel in found.values()} == {9}
    assert {kernel.flags for kernel in found.values()} == {(BUSY,)}


# Anchors that the table knows


def test_what_the_table_knows_is_the_level_from_the_first_reading_on(device: ToyDevice, tmp_path: Path) -> None:
    device.load_at = lambda opens: None
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_kernels(device, kernel_requests("abcd"), table=table, config=CONFIG)
        device.slowdown = lambda opens: 1.2  # from before the first reading of the next session
        device.opened.clear()
        found = measure_kernels(device, kernel_requests("abcdefgh"), table=table, config=CONFIG)
    assert device.opened.count("a") > 0  # 0.1 ms long
    assert {kernel.label for kernel in found.values() if BUSY in kernel.flags} == {
        r.label for r in kernel_requests("efgh").values()
    }


def test_models_are_held_against_a_kernel_of_the_table(device: ToyDevice, tmp_path: Path) -> None:
    device.load_at = lambda opens: None
    kernels = kernel_requests("a")
    models = {r.key: r for r in (ModelRequest("net", (8 * n,), name.encode) for n, name in enumerate("bcd", 1))}
    with LatencyTable(tmp_path / "t.sqlite") as table:
        measure_kernels(device, kernels, table=table, config=CONFIG)
        device.slowdown = lambda opens: 1.2
        found = measure_models(device, models, table=table, anchor=next(iter(kernels.values())), config=CONFIG)
        assert all(BUSY in model.flags for model in found.values())


def test_the_best_anchor_is_nearest_to_a_tenth_of_a_millisecond() -> None:
    lows = {"short": 0.004, "good": 0.08, "long": 2.0}
    assert best_anchor({key: [Pass((low,)), Pass((low * 9,))] for key, low in lows.items()}) == "good"
    assert best_anchor({"none": []}) is None
    assert best_anchor({}) is None


# Statistics


@pytest.mark.parametrize(("quiet", "p50_ms"), [(2, 2.0), (3, 1.0)])
def test_the_p50_is_of_a_device_left_alone_once_there_is_enough_of_that(quiet: int, p50_ms: float) -> None:
    passes = (Pass((2.0,) * 20, busy=True),) * 5 + (Pass((1.0,) * 20),) * quiet
    measured = ModelMeasurement(passes, CONDITIONS, 4)
    assert measured.p50_ms == p50_ms
    assert measured.ci_high_ms == pytest.approx(p50_ms)
    assert math.isclose(measured.low_ms, 1.0)
    assert not measured.is_busy
