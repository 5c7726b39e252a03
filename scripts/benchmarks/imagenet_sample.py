"""MobileNet-V1 0.75 with published ImageNet weights on a sample of ImageNet, within 4 GiB of memory.

Sensitivity of each channel group, then a search at half the latency of this computer, both through the command line's
own steps. The sample holds one training image per class: every accuracy here is on training images and says so.
Data and weights are read from the folder that AMC_MOBILE_DATA names; killed, the same command goes on where it was.
Exits 1 when the peak memory of this process and of those it started is above --most-gib.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import resource
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import amc_mobile as amc

TEST_IMAGES = 300


def sample(image_size: int = 224) -> amc.Dataset:
    """The whole sample, for `--data scripts/benchmarks/imagenet_sample.py:sample`."""
    folder = Path(os.environ["AMC_MOBILE_DATA"]) / "imagenet_sample"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = torch.empty((len(rows), 3, image_size, image_size), dtype=torch.uint8)
    with zipfile.ZipFile(folder / "imagenet_sample_1k_256.zip") as archive:
        for index, row in enumerate(rows):
            with Image.open(io.BytesIO(archive.read(row["file"]))) as image:
                pixels[index] = torch.from_numpy(np.array(amc.fitted(image.convert("RGB"), image_size))).permute(
                    2, 0, 1
                )
    labels = torch.tensor([int(row["label"]) for row in rows])
    half = torch.full((3,), 0.5)  # the published weights take pixels from -1 to 1
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = (order[TEST_IMAGES:].sort().values, order[:TEST_IMAGES].sort().values)
    train, test = (amc.ImageSet(pixels[part], labels[part], half, half) for part in parts)
    names = {int(row["label"]): row["name"] for row in rows}
    classes = tuple(names[label] for label in sorted(names))
    return amc.Dataset(train, test, classes, "ImageNet sample", accuracy_on="training images")


def peak_gib() -> float:
    """Of this process and of the largest one it started."""
    kib = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(kib) / 2**20


def measured(options: argparse.Namespace) -> dict[str, Any]:
    data = Path(os.environ["AMC_MOBILE_DATA"])
    space = amc.Workspace(options.workspace)
    network = space.network(
        "mobilenet_v1", width=0.75, data=f"{Path(__file__).resolve()}:sample",
        checkpoint=data / "imagenet_weights/mobilenet_v1_0.75_224.pt",
    )  # fmt: skip
    figures: dict[str, Any] = {}
    started = time.process_time()
    with amc.progress_bars(quiet=options.json) as progress:
        ratios = (0.5,) if options.quick else (0.25, 0.5, 0.75)
        cuts = space.sensitivity(network, ratios=ratios, reward_images=options.reward_images, progress=progress)
        figures["sensitivity"] = {"original_top1": cuts.original_top1, "images": cuts.images,
                                  "accuracy_on": cuts.accuracy_on, "points": len(cuts.points)}  # fmt: skip
        figures["most_sensitive"] = {point.group: point.top1 for point in cuts.most_sensitive()}
        figures["sensitivity_cpu_s"] = round(time.process_time() - started, 1)
        figures["peak_gib_after_sensitivity"] = round(peak_gib(), 2)
        budget = amc.Budget(macs_ratio=0.5) if options.macs else amc.Budget(latency_ratio=0.5)
        run = space.search(
            network, budget, None if options.macs else space.profile(network, progress=progress),
            policy=options.policy, episodes=12 if options.quick else options.episodes,
            reward_images=options.reward_images, name=f"imagenet-{budget.unit}-{options.policy}", progress=progress,
        )  # fmt: skip
    search = run.search()
    kept = ("test_top1", "test_images", "accuracy_on", "reward", "reward_top1", "macs", "original_macs", "measured_ms",
            "ci_high_ms", "cpu_s", "evaluations")  # fmt: skip
    figures["search"] = {key: getattr(search, key) for key in kept}
    report = run.report()
    assert "training images" in report.paths[0].read_text(), "the report hides what its accuracies are on"
    figures["text"] = [cuts.text(), report.text()]
    figures["peak_gib"] = round(peak_gib(), 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="one keep ratio and 12 episodes")
    parser.add_argument("--macs", action="store_true", help="half the MACs: nothing is profiled or measured")
    parser.add_argument("--policy", default="critic")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--reward-images", type=int, default=200)
    parser.add_argument("--most-gib", type=float, default=4.0)
    parser.add_argument("--workspace", type=Path, default=Path("imagenet-sample-workspace"))
    options = parser.parse_args()
    if "AMC_MOBILE_DATA" not in os.environ:
        sys.exit("AMC_MOBILE_DATA names no folder with the ImageNet sample and the published weights")
    figures = measured(options)
    texts = figures.pop("text")
    if options.json:
        print(json.dumps(figures, indent=1, default=dict))
    else:
        print("\n".join(texts))
        print(f"peak memory {figures['peak_gib']:.2f} GiB of {options.most_gib:g} allowed")
    if figures["peak_gib"] > options.most_gib:
        sys.exit(f"peak memory {figures['peak_gib']:.2f} GiB is above {options.most_gib:g} GiB")


if __name__ == "__main__":
    main()
