from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from latency_toys import CONDITIONS, conv, passes

from amc_mobile.errors import InvalidInput
from amc_mobile.latency.measurement import KernelMeasurement
from amc_mobile.latency.sharing import anchors, judge
from amc_mobile.latency.table import LatencyTable


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
