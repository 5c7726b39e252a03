"""The published weights reach their published accuracy: names, padding and normalisation are right."""

from __future__ import annotations

import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc_mobile.data.images import ImageSet
from amc_mobile.data.sources import fitted, load_dataset
from amc_mobile.models.loading import load_model
from amc_mobile.models.task import evaluate

pytestmark = pytest.mark.skipif(
    "AMC_MOBILE_DATA" not in os.environ, reason="AMC_MOBILE_DATA names no folder with the published weights"
)
DATA = Path(os.environ.get("AMC_MOBILE_DATA", ""))
EVERY = 20  # of the sample's images: 50 take a few seconds


def imagenet_sample(normalisation: tuple[tuple[float, ...], tuple[float, ...]]) -> ImageSet:
    with zipfile.ZipFile(DATA / "imagenet_sample/imagenet_sample_1k_256.zip") as archive:
        names = sorted(archive.namelist())[::EVERY]
        images = [fitted(Image.open(BytesIO(archive.read(name))).convert("RGB"), 224) for name in names]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    labels = torch.tensor([int(name[:3]) for name in names])
    return ImageSet(pixels, labels, torch.tensor(normalisation[0]), torch.tensor(normalisation[1]))


@pytest.mark.parametrize(("name", "file", "top1"), [("resnet20", "12fca82f", 0.91), ("resnet56", "4bfd9763", 0.94)])
def test_cifar_resnets_reach_their_accuracy(name: str, file: str, top1: float) -> None:
    loaded = load_model(name, checkpoint=DATA / f"cifar10/{name}-{file}.th")
    test = load_dataset(f"cifar10:{DATA}/cifar10/cifar10_lossless.npz", normalisation=loaded.normalisation).test
    # 200 of the 500 images; the accuracies given are those of all of them.
    assert evaluate(loaded.module, test.subset(range(200))) == pytest.approx(top1, abs=0.05)


@pytest.mark.parametrize(
    ("name", "width", "file", "top1"),
    [
        ("mobilenet_v1", 0.25, "mobilenet_v1_0.25_224.pt", 0.567),
        ("mobilenet_v1", 0.75, "mobilenet_v1_0.75_224.pt", 0.84),
        ("mobilenet_v2", 1.0, "mobilenet_v2_1.0_224_bnfolded.pt", 0.865),
    ],
)
def test_mobilenets_reach_their_accuracy(name: str, width: float, file: str, top1: float) -> None:
    loaded = load_model(name, width_multiplier=width, checkpoint=DATA / "imagenet_weights" / file)
    assert loaded.normalisation is not None
    # Three standard errors of 50 images at these accuracies are 0.15 to 0.2.
    assert evaluate(loaded.module, imagenet_sample(loaded.normalisation)) == pytest.approx(top1, abs=0.15)
