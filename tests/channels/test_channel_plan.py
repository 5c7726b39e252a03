from __future__ import annotations

import json

import numpy as np
import pytest

from amc_mobile.channels.plan import PruningPlan, grid
from amc_mobile.errors import InvalidInput

CHANNELS = {"stem": 32, "body": 64}


def test_a_full_plan_keeps_every_channel() -> None:
    plan = PruningPlan.full(CHANNELS)
    assert plan.widths.tolist() == [32, 64]
    assert plan.kept()["body"].tolist() == list(range(64))


def test_a_plan_survives_being_saved_as_json() -> None:
    order = {"stem": np.arange(32)[::-1], "body": np.arange(64)}
    plan = PruningPlan.from_widths(CHANNELS, [8, 16]).with_order(order)
    restored = PruningPlan.from_document(json.loads(json.dumps(plan.to_document())))
    assert restored == plan


def test_the_kept_indices_are_the_first_of_the_order_sorted() -> None:
    order = {"stem": np.array([30, 2, 17, *range(0, 2), *range(3, 17), *range(18, 30), 31]), "body": np.arange(64)}
    plan = PruningPlan.from_widths(CHANNELS, [3, 64]).with_order(order)
    assert plan.kept()["stem"].tolist() == [2, 17, 30]


def test_without_indices_the_first_channels_stay() -> None:
    assert PruningPlan.from_widths(CHANNELS, np.array([4, 8])).kept()["stem"].tolist() == [0, 1, 2, 3]


def test_keeping_rounds_up_to_the_multiple_and_changes_one_group() -> None:
    plan = PruningPlan.full(CHANNELS).keeping("body", 0.3)
    assert plan.kept_channels == {"stem": 32, "body": 24}
    assert PruningPlan.full(CHANNELS).keeping("body", 0.01, multiple=1).kept_channels["body"] == 2


@pytest.mark.parametrize("widths", [[1, 64], [33, 64], [0, 64]])
def test_a_plan_refuses_widths_outside_the_group(widths: list[int]) -> None:
    with pytest.raises(InvalidInput, match=f"stem: cannot keep {widths[0]} of 32"):
        PruningPlan.from_widths(CHANNELS, widths)


@pytest.mark.parametrize("indices", [(0, 1), (0, 1, 1), (2, 1, 0), (0, 1, 32), (-1, 0, 1)])
def test_a_plan_refuses_indices_that_do_not_fit(indices: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="stem"):
        PruningPlan(CHANNELS, {"stem": 3, "body": 64}, {"stem": indices})


def test_a_plan_refuses_groups_of_another_network() -> None:
    with pytest.raises(InvalidInput, match="does not fit groups"):
        PruningPlan(CHANNELS, {"stem": 32})


@pytest.mark.parametrize("document", [{}, {"channels": 3}, {"channels": {"a": "x"}, "kept_channels": {}}])
def test_reading_something_else_than_a_plan_is_an_error(document: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        PruningPlan.from_document({"kept_indices": None, **document})


@pytest.mark.parametrize(
    ("channels", "widths"),
    [
        (64, [16, 24, 32, 40, 48, 56, 64]),
        (32, [8, 16, 24, 32]),
        (16, [4, 8, 12, 16]),
        (8, [2, 4, 6, 8]),
        (3, [2, 3]),
        (35, [8, 16, 24, 32, 35]),
    ],
)
def test_the_grid_has_aligned_widths_and_the_full_width(channels: int, widths: list[int]) -> None:
    assert grid(channels).tolist() == widths


@pytest.mark.parametrize("channels", range(1, 70))
@pytest.mark.parametrize("ratio", [0.05, 0.2, 1.0])
def test_the_grid_never_goes_below_its_lowest_width(channels: int, ratio: float) -> None:
    widths = grid(channels, min_keep_ratio=ratio)
    assert widths[-1] == channels
    assert widths[0] >= min(channels, max(2, ratio * channels))
