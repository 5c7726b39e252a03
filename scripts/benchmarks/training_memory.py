"""What memory a training takes: MobileNet-V2 0.5 on 10,000 images of 64 x 64 in batches of 128, one epoch.

The peak of the process is printed after each step. --quick: 1,000 images.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import torch

import amc_mobile as amc


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def synthetic(images: int = 10_000) -> amc.Dataset:
    """Random images, for `--data scripts/benchmarks/training_memory.py:synthetic`."""
    generator = torch.Generator().manual_seed(0)
    half = torch.full((3,), 0.5)

    def image_set(count: int) -> amc.ImageSet:
        pixels = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
        return amc.ImageSet(pixels, torch.arange(count) % 10, half, half)

    return amc.Dataset(image_set(images), image_set(100), tuple("0123456789"), "synthetic")


def few() -> amc.Dataset:
    return synthetic(1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'torch and this program':30} {peak_mb():8.0f} MB")
    images = few if options.quick else synthetic
    images()
    print(f"{'the images alone':30} {peak_mb():8.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        amc.Workspace(folder).train(
            "mobilenet_v2", width=0.5, data=f"{Path(__file__).resolve()}:{images.__name__}", epochs=1,
            batch_size=options.batch_size,
        )  # fmt: skip
    print(f"{'trained':30} {peak_mb():8.0f} MB")


if __name__ == "__main__":
    main()
