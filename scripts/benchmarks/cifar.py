"""The CIFAR-10 images and the pretrained ResNets that benchmarks read from the folder AMC_MOBILE_DATA names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import amc_mobile as amc

WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}


def data_folder() -> Path:
    """Ends the program where AMC_MOBILE_DATA is not set."""
    if not (root := os.environ.get("AMC_MOBILE_DATA")):
        sys.exit("set AMC_MOBILE_DATA to the folder with cifar10/cifar10_lossless.npz and the pretrained ResNets")
    return Path(root)


def pretrained(space: amc.Workspace, model: str, root: Path) -> amc.Network:
    """`model`: a key of WEIGHTS."""
    folder = root / "cifar10"
    return space.network(model, checkpoint=folder / WEIGHTS[model], data=f"cifar10:{folder / 'cifar10_lossless.npz'}")
