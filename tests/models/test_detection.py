"""Anchors, the loss, and the objects that a detector finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from amc_mobile.data.images import Dataset
from amc_mobile.data.sources import load_dataset
from amc_mobile.data.split import split
from amc_mobile.errors import InvalidInput
from amc_mobile.models.loading import load_model
from amc_mobile.models.task import (
    CLASSIFICATION,
    Detection,
    Detections,
    SsdAnchors,
    average_precision,
    corners,
    decoded,
    encoded,
    evaluate,
    logits,
    matched,
    mean_average_precision,
    overlaps,
    suppressed,
)
from amc_mobile.models.training import TrainConfig, train

ANCHORS = SsdAnchors((4, 2, 1)).boxes()
TASK = Detection(ANCHORS, 3)
NOTHING = (-1.0, 0.0, 0.0, 0.0, 0.0)


def saying(labels: torch.Tensor, sureness: float = 9.0) -> torch.Tensor:
    """The outputs that a network without fault gives."""
    classes, boxes = TASK.matching(labels)
    scores = torch.nn.functional.one_hot(classes, 4).float() * sureness
    return torch.cat([scores, encoded(boxes, ANCHORS.expand_as(boxes))], dim=2)


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_dataset("shapes", image_size=32)


def test_there_are_four_anchors_a_cell_in_the_middle_of_it() -> None:
    assert ANCHORS.shape == ((16 + 4 + 1) * 4, 4)
    assert ANCHORS[:4, :2].tolist() == [[0.125, 0.125]] * 4
    assert ANCHORS[4, :2].tolist() == [0.375, 0.125]  # row by row
    assert ANCHORS[0, 2:].tolist() == pytest.approx([0.2, 0.2])
    assert float(ANCHORS[1, 2] / ANCHORS[1, 3]) == pytest.approx(2.0)
    assert ANCHORS[-4, 2:].tolist() == pytest.approx([0.95, 0.95])


def test_offsets_are_decoded_to_the_box_they_were_made_of() -> None:
    low = torch.rand(len(ANCHORS), 2, generator=torch.Generator().manual_seed(0)) * 0.5
    boxes = torch.cat([low, low + 0.3], dim=1)
    torch.testing.assert_close(decoded(encoded(boxes, ANCHORS), ANCHORS), boxes)


def test_overlaps_are_shared_area_over_joint_area() -> None:
    one = torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    others = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.2, 0.0, 0.6, 0.4], [0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(overlaps(one, others), torch.tensor([[1.0, 1 / 3, 0.0, 0.0]]))


def test_suppression_keeps_the_best_of_each_class() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.4, 0.41], [0.0, 0.0, 0.4, 0.42], [0.5, 0.5, 0.9, 0.9]])
    assert suppressed(boxes, torch.tensor([0, 0, 1, 0]), 0.45).tolist() == [0, 2, 3]


def test_every_object_has_an_anchor_however_little_they_overlap() -> None:
    tiny = (1.0, 0.49, 0.49, 0.51, 0.51)
    labels = torch.tensor([[tiny, NOTHING], [NOTHING, NOTHING]])
    classes, boxes = TASK.matching(labels)
    assert [int((row > 0).sum()) for row in classes] == [1, 0]
    assert classes.max() == 2
    assert boxes[0, classes[0] > 0].tolist() == [pytest.approx(tiny[1:])]


def test_an_anchor_stands_for_the_object_that_it_overlaps_most() -> None:
    box = corners(ANCHORS[20])
    labels = torch.tensor([[(0.0, *(box + 0.02).tolist()), (2.0, *box.tolist())]])
    assert int(TASK.matching(labels)[0][0, 20]) == 3


def test_the_loss_is_nothing_for_the_outputs_that_are_wanted_and_more_for_others() -> None:
    labels = torch.tensor([[(0.0, 0.1, 0.1, 0.4, 0.4), (2.0, 0.5, 0.5, 1.0, 1.0)]])
    outputs = saying(labels, 30.0)
    assert float(TASK.loss(outputs, labels, 0.0)) == pytest.approx(0.0, abs=1e-6)
    moved = outputs.clone()
    moved[..., 4:] += 1.0
    assert float(TASK.loss(moved, labels, 0.0)) == pytest.approx(4 * 0.5)  # smooth L1 of 1, four offsets a matched one
    assert float(TASK.loss(-outputs, labels, 0.0)) > 20


def test_three_background_anchors_count_for_each_matched_one() -> None:
    labels = torch.tensor([[(1.0, *corners(ANCHORS[20]).tolist())]])
    outputs = saying(labels, 30.0)
    matched = int((TASK.matching(labels)[0] > 0).sum())
    background = (TASK.matching(labels)[0][0] == 0).nonzero().flatten()
    for wrong in (1, 3 * matched, 3 * matched + 5):
        mistaken = outputs.clone()
        mistaken[0, background[:wrong], 1] = 60.0  # 30 above background
        assert float(TASK.loss(mistaken, labels, 0.0)) == pytest.approx(30 * min(wrong, 3 * matched) / matched)


def test_distilling_asks_for_nothing_where_the_student_agrees() -> None:
    labels = torch.tensor([[(1.0, 0.1, 0.1, 0.5, 0.5)]])
    targets = saying(labels)
    assert float(TASK.distillation_loss(targets, targets, 4.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(TASK.distillation_loss(torch.zeros_like(targets), targets, 4.0)) > 1


def test_a_network_without_fault_scores_all(shapes: Dataset) -> None:
    labels = shapes.test.labels[:40]
    outputs = saying(labels)
    assert TASK.accuracy(outputs, labels) == pytest.approx(1.0)
    assert bool(TASK.right(outputs, labels).all())
    assert TASK.accuracy(outputs.roll(1, 0), labels) < 0.3


def test_an_image_with_one_object_too_many_is_not_right() -> None:
    two = torch.tensor([[(0.0, 0.0, 0.0, 0.4, 0.4), (1.0, 0.5, 0.5, 1.0, 1.0)]])
    one = torch.tensor([[(0.0, 0.0, 0.0, 0.4, 0.4), NOTHING]])
    assert [bool(TASK.right(saying(found), there)) for found, there in [(two, two), (two, one), (one, two)]] == [
        True, False, False,
    ]  # fmt: skip


def test_boxes_move_with_the_mirrored_image(shapes: Dataset) -> None:
    pixels, labels = shapes.train.images[:64], shapes.train.labels[:64]
    moved, boxes = TASK.augmented(pixels, labels, torch.Generator().manual_seed(0), mirrors=True)
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(pixels, moved, strict=True)])
    assert 16 < int(flipped.sum()) < 48
    torch.testing.assert_close(moved[flipped], pixels[flipped].flip(3))
    assert torch.equal(boxes[~flipped], labels[~flipped])
    is_object = labels[..., 0] >= 0
    picked = is_object & flipped[:, None]
    torch.testing.assert_close(boxes[picked][:, 1], 1 - labels[picked][:, 3])
    torch.testing.assert_close(boxes[picked][:, [2, 4]], labels[picked][:, [2, 4]])
    assert torch.equal(boxes[..., 0], labels[..., 0])
    assert torch.equal(TASK.augmented(pixels, labels, torch.Generator(), mirrors=False)[0], pixels)


def test_drawn_shapes_lie_in_their_boxes(shapes: Dataset) -> None:
    for images in (shapes.train, shapes.test):
        objects = images.labels[images.labels[..., 0] >= 0]
        assert set(objects[:, 0].tolist()) == {0.0, 1.0, 2.0}
        assert bool(((objects[:, 1:] >= 0) & (objects[:, 1:] <= 1)).all())
        assert float((objects[:, 3:] - objects[:, 1:3]).min()) >= 0.19
    only = shapes.train.labels[:, 1, 0] < 0
    image, box = shapes.train.images[only][0].float(), shapes.train.labels[only][0, 0, 1:] * 32
    inside = image[:, int(box[1]) + 1 : int(box[3]), int(box[0]) + 1 : int(box[2])]
    assert float((inside.mean((1, 2)) - image[:, 0, :].mean(1)).abs().max()) > 20


def test_the_same_shapes_are_drawn_again(shapes: Dataset) -> None:
    other = load_dataset("shapes", image_size=32)
    assert other.train.fingerprint() == shapes.train.fingerprint() != other.test.fingerprint()
    assert other.test.fingerprint() == shapes.test.fingerprint()


def test_images_with_boxes_are_split_by_the_class_of_their_first_object(shapes: Dataset) -> None:
    parts = split(shapes, calibration=60, reward=60, seed=0)
    counts = torch.bincount(parts.reward.classes[:, 0], minlength=3) / 60
    wanted = torch.bincount(shapes.train.classes[:, 0], minlength=3) / len(shapes.train)
    assert float((counts - wanted).abs().max()) < 0.03


def test_training_from_scratch_finds_the_objects_that_it_learnt(shapes: Dataset) -> None:
    loaded = load_model("ssdlite_mobilenet_v2", num_classes=3, width_multiplier=0.25, input_size=32)
    few, others = shapes.train.subset(range(96)), shapes.test.subset(range(16))
    config = TrainConfig(epochs=24, learning_rate=0.02, batch_size=16, threads=1, augment=False)
    reports = train(loaded.module, few, config, task=loaded.task, validate=others)
    assert evaluate(loaded.module, few, task=loaded.task) > 0.3
    assert reports[-1].train_top1 is None  # mean average precision takes a whole set
    assert reports[-1].validation_top1 == evaluate(loaded.module, others, task=loaded.task)
    outputs = logits(loaded.module, few)
    assert outputs.shape == (96, len(loaded.task.anchors), 8)  # type: ignore[attr-defined]


def test_a_fresh_detector_knows_nothing_instead_of_being_far_off(shapes: Dataset) -> None:
    loaded = load_model("ssdlite_mobilenet_v2", num_classes=3, width_multiplier=0.25, input_size=32)
    outputs = loaded.module.train()(shapes.train.subset(range(32)).normalised()).detach()
    assert float(outputs.abs().max()) < 2  # boxes are the anchors, nearly, and all classes as likely


def test_labels_of_another_task_or_shape_are_refused(shapes: Dataset) -> None:
    labels = shapes.test.labels
    TASK.check_labels(labels)
    for wrong, message, next_step in (
        (torch.zeros(4, dtype=torch.int64), "classes of whole images", "--data shapes"),
        (labels[..., :4], "are no boxes", "(N, objects, 5) float32"),
        (labels.long(), "are no boxes", "(N, objects, 5) float32"),
    ):
        with pytest.raises(InvalidInput, match=message) as refused:
            TASK.check_labels(wrong)
        assert next_step in refused.value.next_step
    with pytest.raises(InvalidInput, match="are boxes"):
        CLASSIFICATION.check_labels(labels)


OWN = """
from torch import nn
from amc_mobile.models.task import Detection
from amc_mobile.models.task import SsdAnchors


class Own(nn.Module):
    def __init__(self, task, outputs):
        super().__init__()
        self.task = task
        self.layer = nn.Conv2d(3, outputs, 8, stride=8)

    def forward(self, images):
        return self.layer(images).permute(0, 2, 3, 1).reshape(images.shape[0], -1, 8)


def detector(input_size=16):
    return Own(Detection(SsdAnchors((2,)).boxes(), 3), 4 * 8)


def wrong(input_size=16):
    return Own(Detection(SsdAnchors((3,)).boxes(), 3), 4 * 8)


def classifier(input_size=16):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.task = "a name of the user's own"
    return net
"""


def test_a_network_of_the_user_says_its_task(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    loaded = load_model(f"{tmp_path}/own.py:detector")
    assert (loaded.task.metric, loaded.num_classes) == ("mAP@0.5", 3)
    assert load_model(f"{tmp_path}/own.py:classifier").task.metric == "top-1"
    with pytest.raises(InvalidInput, match=r"gives \(1, 16, 8\), its anchors and classes ask for \(1, 36, 8\)"):
        load_model(f"{tmp_path}/own.py:wrong")


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


def test_the_mean_is_over_the_classes_that_occur_and_all_images_are_ranked_together() -> None:
    found = [detections((LEFT, 0, 0.9), (RIGHT, 1, 0.6)), detections((RIGHT, 0, 0.8)), detections((LEFT, 2, 0.9))]
    there = [objects((0, LEFT), (1, RIGHT)), objects((0, LEFT)), objects()]
    # Class 0: one of two found, class 1: all; what is said of class 2, which is nowhere, counts for nothing.
    assert mean_average_precision(found, there) == pytest.approx((0.5 + 1.0) / 2)
    found = [detections((LEFT, 0, 0.3)), detections((LEFT, 0, 0.9))]
    assert mean_average_precision(found, [objects((0, LEFT)), objects((0, RIGHT))]) == pytest.approx(0.5 * 0.5)
    assert mean_average_precision([detections()], [objects((0, LEFT))]) == 0.0
