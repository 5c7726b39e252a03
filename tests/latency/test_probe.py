"""Steps and classes read from kernels of known cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from latency_toys import GRIDS, TEMPLATE, add, conv, smooth_ms

from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.kernel_fit import kernel_points
from amc_mobile.latency.probe import (
    ChannelSteps,
    KernelType,
    aligned_multiple,
    find_steps,
    judge_steps,
    probe_points,
    probe_widths,
)

Cost = Callable[[int], float]
WIDTHS = np.array(probe_widths(128))


def filled(tile: int) -> Cost:
    return lambda width: 0.002 + 0.001 * math.ceil(width / tile) * tile


def outside(aligned: int, times: float, cost: Cost) -> Cost:
    return lambda width: cost(width) * (times if width % aligned else 1)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (filled(1), (1, 1)),
        (lambda width: 0.03, (1, 1)),  # nothing but launch
        (lambda width: 0.002 + 0.001 * width**0.8, (1, 1)),
        *((filled(tile), (tile, 1)) for tile in (4, 8, 16, 32, 64)),
        *((outside(aligned, 1.4, filled(1)), (1, aligned)) for aligned in (4, 8, 16, 32)),
        (outside(4, 1.5, filled(16)), (16, 4)),
        (outside(16, 1.5, filled(8)), (8, 16)),
        (outside(16, 1.03, filled(1)), (1, 1)),  # no slower than the noise
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_judges_tiles_and_classes(cost: Cost, expected: tuple[int, int], noise: float) -> None:
    for seed in range(20 if noise else 1):
        spread = 1 + noise * np.random.default_rng(seed).standard_normal(len(WIDTHS))
        found = judge_steps(WIDTHS, np.array([cost(int(width)) for width in WIDTHS]) * spread)
        assert found[:2] == expected, seed


def test_tells_how_much_slower_a_width_outside_the_class_is() -> None:
    _, aligned, slowdown = judge_steps(WIDTHS, np.array([outside(16, 1.4, filled(1))(int(w)) for w in WIDTHS]))
    assert aligned == 16
    assert 0.3 < slowdown < 0.4  # 1.4 times the cost of one channel less


def test_finds_each_axis_of_a_type_by_its_longest_line() -> None:
    rows = [(conv(32, width), filled(16)(width)) for width in probe_widths(64)]
    rows += [(conv(width, 64), filled(4)(width) * 3) for width in probe_widths(64)]
    rows += [(add(width), filled(1)(width)) for width in probe_widths(64)]
    rows += [(conv(8, width, size=4), 0.01) for width in probe_widths(16)]  # fewer tiles: not looked at
    found = {(steps.kernel_type.name, steps.axis): steps for steps in find_steps(rows)}
    assert set(found) == {("conv 1x1", "in"), ("conv 1x1", "out"), ("add", "in and out")}
    assert {key: steps.tile for key, steps in found.items()} == {
        ("conv 1x1", "in"): 4, ("conv 1x1", "out"): 16, ("add", "in and out"): 1,
    }  # fmt: skip
    assert found["conv 1x1", "out"].example == conv(32, 64).label
    assert found["conv 1x1", "out"].points == len(probe_widths(64))


def test_types_of_data_stay_apart() -> None:
    def as_int8(kernel: Kernel) -> Kernel:
        return replace(kernel, operators=tuple(replace(o, dtype="int8") for o in kernel.operators))

    rows = [(conv(32, width), filled(16)(width)) for width in probe_widths(64)]
    rows += [(as_int8(conv(32, width)), filled(32)(width)) for width in probe_widths(64)]
    assert {s.kernel_type.dtype: s.tile for s in find_steps(rows)} == {"float32": 16, "int8": 32}


def test_a_profile_alone_says_nothing() -> None:
    points = kernel_points(TEMPLATE, GRIDS).values()  # type: ignore[arg-type]
    kernels = [TEMPLATE.kernel_at(site, widths) for site, widths in points]
    assert find_steps((kernel, smooth_ms(kernel)) for kernel in kernels) == []


def test_probes_one_site_of_each_type_and_axis_at_widths_it_has() -> None:
    points = probe_points(TEMPLATE)  # type: ignore[arg-type]
    kernels = [TEMPLATE.kernel_at(site, widths) for site, widths in points]
    channels = {(k.main.in_channels, k.main.out_channels) for k in kernels if k.main.name == "CONV_2D"}
    # 64 channels are the most there are: of "first" as it gives them, of "second" as it takes them.
    assert channels == {(32, w) for w in probe_widths(64)} | {(w, 24) for w in probe_widths(64)}
    assert {k.main.out_channels for k in kernels if k.main.name == "ADD"} == set(probe_widths(24))
    assert len(kernels) == 2 * len(probe_widths(64)) + len(probe_widths(24))
    assert all(1 <= w <= size for _, widths in points for w, size in zip(widths, TEMPLATE.sizes, strict=True))


def test_narrow_groups_are_not_probed() -> None:
    assert probe_widths(8) == []
    assert probe_widths(9) == [3, 4, 5, 7, 8, 9]


@pytest.mark.parametrize(("classes", "multiple"), [((), 8), ((1, 4), 8), ((16, 4), 16), ((16, 32), 32)])
def test_the_multiple_is_common_to_all_classes(classes: tuple[int, ...], multiple: int) -> None:
    kind = KernelType("conv 1x1", "float32")
    found = [ChannelSteps(kind, "out", 64, aligned, 0.4, 15, "", 1.0) for aligned in classes]
    assert aligned_multiple(found) == multiple
