"""When fine-tuned weights are thrown away."""

from __future__ import annotations

import pytest
import torch

from amc_mobile.data import Dataset, ImageSet, split
from amc_mobile.workflows.finetune import clearly_worse
from amc_mobile.workflows.train import without_held_out


@pytest.mark.parametrize(
    ("won", "lost", "worse"),
    [(0, 0, False), (5, 2, False), (2, 3, False), (10, 14, False), (10, 16, True), (0, 2, True), (0, 1, False)],
)
def test_weights_are_thrown_away_only_when_clearly_worse(won: int, lost: int, worse: bool) -> None:
    before = torch.tensor([False] * won + [True] * lost + [True] * 40 + [False] * 9)
    after = torch.tensor([True] * won + [False] * lost + [True] * 40 + [False] * 9)
    assert clearly_worse(before, after) == worse


@pytest.mark.parametrize("reward", [1, 16, 30])
def test_training_sees_no_image_that_scores_plans(reward: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(300) % 3
    every = ImageSet(images, labels, torch.zeros(1), torch.ones(1))
    data = Dataset(every, every, ("a", "b", "c"), "toy")
    trained = {image.numpy().tobytes() for image in without_held_out(data, seed=4).images}
    scored = split(data, calibration=50, reward=reward, seed=4).reward.images
    assert len(trained) == 270
    assert not trained & {image.numpy().tobytes() for image in scored}
