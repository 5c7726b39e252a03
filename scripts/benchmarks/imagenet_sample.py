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

from amc_mobile.cli_options import progress_bars
from amc_mobile.data.images import Dataset, ImageSet
from amc_mobile.data.sources import fitted
from amc_mobile.workflows.profile import profile_device
from amc_mobile.workflows.report import report_run
from amc_mobile.workflows.search import search_plan
from amc_mobile.workflows.search_config import SearchConfig, SensitivityConfig
from amc_mobile.workflows.sensitivity import sensitivity
from amc_mobile.workflows.workspace import Settings, Workspace

TEST_IMAGES = 300
# Pixels of the published weights are scaled to -1 .. 1.
MEAN = STD = 0.5


def sample(image_size: int = 224) -> Dataset:
    """The whole sample, for `--data scripts/benchmarks/imagenet_sample.py:sample`."""
    folder = Path(os.environ["AMC_MOBILE_DATA"]) / "imagenet_sample"
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = torch.empty((len(rows), 3, image_size, image_size), dtype=torch.uint8)
    with zipfile.ZipFile(folder / "imagenet_sample_1k_256.zip") as archive:
        for index, row in enumerate(rows):
            with Image.open(io.BytesIO(archive.read(row["file"]))) as image:
                pixels[index] = torch.from_numpy(np.array(fitted(image.convert("RGB"), image_size))).permute(2, 0, 1)
    labels = torch.tensor([int(row["label"]) for row in rows])
    mean, std = torch.full((3,), MEAN), torch.full((3,), STD)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = (order[TEST_IMAGES:].sort().values, order[:TEST_IMAGES].sort().values)
    train, test = (ImageSet(pixels[part], labels[part], mean, std) for part in parts)
    names = {int(row["label"]): row["name"] for row in rows}
    classes = tuple(names[label] for label in sorted(names))
    return Dataset(train, test, classes, "ImageNet sample", accuracy_on="training images")


def peak_gib() -> float:
    """Of this process and of the largest one it started."""
    kib = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(kib) / 2**20


def measured(options: argparse.Namespace) -> dict[str, Any]:
    data = Path(os.environ["AMC_MOBILE_DATA"])
    settings = Settings(
        model="mobilenet_v1", width_multiplier=0.75, data=f"{Path(__file__).resolve()}:sample",
        checkpoint=str(data / "imagenet_weights/mobilenet_v1_0.75_224.pt"), seed=0,
    )  # fmt: skip
    space = Workspace(options.workspace)
    figures: dict[str, Any] = {}
    started = time.process_time()
    with progress_bars(options.json) as progress:
        ratios = (0.5,) if options.quick else (0.25, 0.5, 0.75)
        cuts = SensitivityConfig(ratios, reward_images=options.reward_images)
        found = sensitivity(space, settings, cuts, progress=progress)
        figures["sensitivity"] = {"original_top1": found.original_top1, "images": found.images,
                                  "accuracy_on": found.accuracy_on, "points": len(found.points)}  # fmt: skip
        figures["most_sensitive"] = {point.group: point.top1 for point in found.most_sensitive()}
        figures["sensitivity_cpu_s"] = round(time.process_time() - started, 1)
        figures["peak_gib_after_sensitivity"] = round(peak_gib(), 2)
        if not options.macs:
            profile_device(space, settings, progress=progress)
        wanted = SearchConfig(
            latency_ratio=None if options.macs else 0.5, macs_ratio=0.5 if options.macs else None,
            policy=options.policy, episodes=12 if options.quick else options.episodes,
            reward_images=options.reward_images,
        )  # fmt: skip
        name = f"imagenet-{wanted.unit}-{wanted.policy}"
        outcome = search_plan(space, settings, wanted, run=name, progress=progress)
    search = outcome.document()
    kept = ("test_top1", "test_images", "accuracy_on", "reward", "reward_top1", "macs", "original_macs", "measured_ms",
            "ci_high_ms", "budget", "cpu_s", "evaluations")  # fmt: skip
    figures["search"] = {key: search[key] for key in kept}
    report = report_run(space, run=name)
    assert "training images" in report.paths[0].read_text(), "the report hides what its accuracies are on"
    figures["text"] = [found.text(), outcome.text()]
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
        print(json.dumps(figures, indent=1))
    else:
        print("\n".join(texts))
        print(f"peak memory {figures['peak_gib']:.2f} GiB of {options.most_gib:g} allowed")
    if figures["peak_gib"] > options.most_gib:
        sys.exit(f"peak memory {figures['peak_gib']:.2f} GiB is above {options.most_gib:g} GiB")


if __name__ == "__main__":
    main()
