from __future__ import annotations

import numpy as np
import pytest

from amc_mobile.channels.structure import FIXED, ChannelIds, DimensionIds


def test_uniting_with_a_fixed_channel_fixes_the_whole_class() -> None:
    ids = ChannelIds()
    a, b = ids.fresh(3), ids.fresh(3)
    ids.unite(a, b)
    ids.unite(b[1], FIXED)
    assert ids.roots()[a].tolist() == [a[0], FIXED, a[2]]
    assert ids.roots()[b].tolist() == [a[0], FIXED, a[2]]


# Channels 0..3 of group 0 twice, two positions that stay, and group 1.
CONCATENATED = DimensionIds(
    np.array([0, 0, 0, 0, -1, -1, 1, 1, 0, 0, 0, 0]), np.array([0, 1, 2, 3, 0, 0, 0, 1, 0, 1, 2, 3])
)


def test_surviving_positions_follow_every_occurrence_of_a_channel() -> None:
    kept = [np.array([0, 3]), np.array([1])]
    assert CONCATENATED.surviving(kept).tolist() == [0, 3, 4, 5, 7, 8, 11]


@pytest.mark.parametrize("widths", [[4, 2], [2, 1], [3, 2]])
def test_the_count_is_the_number_of_surviving_positions(widths: list[int]) -> None:
    kept = [np.arange(width) for width in widths]
    assert CONCATENATED.count(np.array(widths)) == len(CONCATENATED.surviving(kept))
    assert CONCATENATED.count(np.array([widths, widths])).shape == (2,)


@pytest.mark.parametrize(
    "ids",
    [
        CONCATENATED,
        DimensionIds(np.zeros(6, dtype=np.int64), np.repeat(np.arange(3), 2)),
        DimensionIds(np.full(4, -1), np.zeros(4, dtype=np.int64)),
        DimensionIds(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)),
        DimensionIds(np.zeros(4, dtype=np.int64), np.array([3, 1, 2, 0])),
    ],
)
def test_runs_restore_the_ids(ids: DimensionIds) -> None:
    restored = DimensionIds.from_runs(ids.runs())
    assert restored.group.tolist() == ids.group.tolist()
    assert restored.position.tolist() == ids.position.tolist()
