"""What memory a training takes: MobileNet-V2 0.5 on 10,000 images of 64 x 64, two batches of 128.

The peak of the process is printed after each step; what follows the second batch takes no more.
"""

from __future__ import annotations

import argparse
import resource

import torch

from amc_mobile.data.images import Dataset, ImageSet
from amc_mobile.data.split import held_out
from amc_mobile.models.loading import load_model
from amc_mobile.models.training import TrainConfig, train


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def synthetic(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    half = torch.full((3,), 0.5)
    return ImageSet(pixels, torch.arange(count) % 10, half, half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'torch and this program':30} {peak_mb():8.0f} MB")
    parts = held_out(Dataset(synthetic(options.images), synthetic(100), tuple("0123456789"), "synthetic"))
    print(f"{'images, held-out ones split off':30} {peak_mb():8.0f} MB")
    parts.train.fingerprint()
    network = load_model("mobilenet_v2", num_classes=10, width_multiplier=0.5, input_size=64, seed=0).module
    two = parts.train.subset(range(2 * options.batch_size))
    train(network, two, TrainConfig(epochs=1, batch_size=options.batch_size, threads=1), validate=parts.reward)
    print(f"{'trained':30} {peak_mb():8.0f} MB")


if __name__ == "__main__":
    main()
