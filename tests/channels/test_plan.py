from __future__ import annotations

import json

import numpy as np
import pytest

from amc_mobile.channels.plan import PruningPlan, grid
from amc_mobile.errors import InvalidInput
from amc_mobile.store import from_document, to_document

CHANNELS = {"stem": 32, "body": 64}


def test_a_full_plan_keeps_every_channel_and_without_indices_the_first_ones_stay() -> None:
    plan = PruningPlan.full(CHANNELS)
    assert plan.widths.tolist() == [32, 64]
    assert plan.kept()["body"].tolist() == list(range(64))
    assert PruningPlan.from_widths(CHANNELS, np.array([4, 8])).kept()["stem"].tolist() == [0, 1, 2, 3]


def test_the_kept_indices_are_the_first_of_the_order_sorted_and_survive_being_saved() -> None:
    order = {"stem": np.array([30, 2, 17, *range(2), *range(3, 17), *range(18, 30), 31]), "body": np.arange(64)}
    plan = PruningPlan.from_widths(CHANNELS, [3, 64]).with_order(order)
    assert plan.kept()["stem"].tolist() == [2, 17, 30]
    assert from_document(PruningPlan, json.loads(json.dumps(to_document(plan))), "plan") == plan


def test_keeping_rounds_up_to_the_multiple_and_changes_one_group() -> None:
    plan = PruningPlan.full(CHANNELS).keeping("body", 0.3)
    assert plan.kept_channels == {"stem": 32, "body": 24}
    assert PruningPlan.full(CHANNELS).keeping("body", 0.01, multiple=1).kept_channels["body"] == 2


@pytest.mark.parametrize("stem", [1, 33, 0])
def test_a_plan_refuses_widths_outside_the_group(stem: int) -> None:
    with pytest.raises(InvalidInput, match=f"stem: cannot keep {stem} of 32"):
        PruningPlan.from_widths(CHANNELS, [stem, 64])


@pytest.mark.parametrize("indices", [(0, 1), (0, 1, 1), (2, 1, 0), (0, 1, 32), (-1, 0, 1)])
def test_a_plan_refuses_indices_that_do_not_fit(indices: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="stem"):
        PruningPlan(CHANNELS, {"stem": 3, "body": 64}, {"stem": indices})


@pytest.mark.parametrize(
    "change", [{"channels": 3}, {"channels": {"stem": "x"}}, {"kept_channels": {"stem": 32}}, {"kept_indices": [1]},
               {"channels": {"stem": 10**30}, "kept_channels": {"stem": 10**30}}],
)  # fmt: skip
def test_a_document_that_is_no_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        from_document(PruningPlan, {**to_document(PruningPlan.full(CHANNELS)), **change}, "plan")


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


@pytest.mark.parametrize("ratio", [0.05, 0.2, 1.0])
def test_the_grid_never_goes_below_its_lowest_width(ratio: float) -> None:
    for channels in range(1, 70):
        widths = grid(channels, min_keep_ratio=ratio)
        assert widths[-1] == channels
        assert widths[0] >= min(channels, max(2, ratio * channels))
