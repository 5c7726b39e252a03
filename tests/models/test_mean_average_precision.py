from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amc_mobile.models.task import Detections, average_precision, matched, mean_average_precision

LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)
Found = tuple[tuple[float, float, float, float], int, float]


def detections(*found: Found) -> Detections:
    boxes, classes, scores = zip(*found, strict=True) if found else ((), (), ())
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64),
        torch.tensor(scores),
    )  # fmt: skip


def objects(*there: tuple[int, tuple[float, float, float, float]]) -> Tensor:
    return torch.tensor([(kind, *box) for kind, box in there]).reshape(-1, 5)


@pytest.mark.parametrize(
    ("hits", "there", "expected"),
    [
        ([True, True], 2, 1.0),
        ([True, False, True], 2, (1 + 2 / 3) / 2),
        ([False, True, True], 2, (2 / 3 + 2 / 3) / 2),  # the higher precision later on counts from the start
        ([True, False], 4, 0.25),
        ([False, False], 3, 0.0),
        ([], 2, 0.0),
    ],
)
def test_the_average_precision_is_the_one_counted_by_hand(hits: list[bool], there: int, expected: float) -> None:
    scores = torch.linspace(0.9, 0.1, len(hits))
    assert average_precision(torch.tensor(hits, dtype=torch.bool), scores, there) == pytest.approx(expected)
    backwards = average_precision(torch.tensor(hits[::-1], dtype=torch.bool), scores.flip(0), there)
    assert backwards == pytest.approx(expected)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    found = detections((LEFT, 0, 0.9), (LEFT, 0, 0.8), (RIGHT, 0, 0.7))
    assert matched(found, objects((0, LEFT), (0, RIGHT))).tolist() == [True, False, True]


def test_the_class_and_half_an_overlap_are_needed() -> None:
    # Moved by a third of its side a box shares 2/3 of 4/3: just one half.
    near, far = (0.13, 0.0, 0.53, 0.4), (0.14, 0.0, 0.54, 0.4)
    there = objects((0, LEFT))
    assert matched(detections((near, 0, 0.5)), there).tolist() == [True]
    assert matched(detections((far, 0, 0.5)), there).tolist() == [False]
    assert matched(detections((LEFT, 1, 0.5)), there).tolist() == [False]


def test_the_mean_is_over_the_classes_that_occur() -> None:
    found = [detections((LEFT, 0, 0.9), (RIGHT, 1, 0.6)), detections((RIGHT, 0, 0.8)), detections((LEFT, 2, 0.9))]
    there = [objects((0, LEFT), (1, RIGHT)), objects((0, LEFT)), objects()]
    # Class 0: one of two found, class 1: all; what is said of class 2, which is nowhere, counts for nothing.
    assert mean_average_precision(found, there) == pytest.approx((0.5 + 1.0) / 2)


def test_detections_of_all_images_are_ranked_together() -> None:
    found = [detections((LEFT, 0, 0.3)), detections((LEFT, 0, 0.9))]
    there = [objects((0, LEFT)), objects((0, RIGHT))]
    assert mean_average_precision(found, there) == pytest.approx(0.5 * 0.5)


def test_without_detections_nothing_is_found() -> None:
    assert mean_average_precision([detections()], [objects((0, LEFT))]) == 0.0
