"""A device whose speed the test sets, for a network of two convolutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import onnx

from amc_mobile.device.conditions import Conditions
from amc_mobile.device.device import Job, Neighbours, Pass

NETWORK = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
CONDITIONS = Conditions(
    device="bench", soc="Abacus 9", os="One 1", runtime="onnxruntime", runtime_version="1.0", library_sha256="ab",
    delegate="CPU", threads=1, cores="0", clock_mode="fixed",
)  # fmt: skip


def conv_ms(in_channels: int, out_channels: int) -> float:
    """As if output channels were filled up to the next multiple of 16."""
    return 0.05 + in_channels * (-(-out_channels // 16) * 16) * 1e-3


@dataclass
class Bench:
    """A device that takes `slowdown(label)` times what `cost` says of each convolution's channels."""

    now: Conditions = CONDITIONS
    slowdown: Callable[[str], float] = lambda label: 1.0
    cost: Callable[[int, int], float] = conv_ms
    jobs_per_batch: int = 1
    others: Neighbours | None = None

    def conditions(self) -> Conditions:
        return self.now

    def session(self) -> nullcontext[None]:
        return nullcontext()

    def passes(self, jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        for job in jobs:
            yield Pass((self.ms(job) * self.slowdown(job.label),) * job.timing.samples)

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[Pass, Pass]]:
        for _ in range(rounds):
            first, second = self.passes([before, after])
            yield first, second

    def ms(self, job: Job) -> float:
        if kernel := re.search(r"Conv.* (\d+)->(\d+) @", job.label):
            return self.cost(int(kernel[1]), int(kernel[2]))
        if " model" not in job.label:
            return 0.03
        weights = [tensor.dims for tensor in onnx.load_from_string(job.model()).graph.initializer]
        return 0.05 + sum(self.cost(dims[1], dims[0]) for dims in weights if len(dims) == 4)

    def is_steady(self) -> bool:
        return True

    def settle(self) -> None:
        raise AssertionError("nothing here gets hot")

    def neighbours(self) -> Neighbours | None:
        return self.others

    def screen(self) -> str:
        return ""

    def most_neighbours(self) -> Neighbours | None:
        return self.others
