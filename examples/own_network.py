"""A network and images of your own, pruned by hand and by a search: python examples/own_network.py [FOLDER]"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

import amc_mobile as amc


class OwnNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(maps.mean((2, 3)))


def own_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one bright quarter, which is the label: images uint8 (N, C, H, W), labels (N,)."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 100, (count, 3, 32, 32), np.uint8)
    labels = generator.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        top, left = 16 * (label // 2), 16 * (label % 2)
        image[:, top : top + 16, left : left + 16] += 100
    return images, labels


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


torch.manual_seed(0)
network = OwnNetwork().eval()  # with random weights; yours are trained
example = torch.zeros(1, 3, 32, 32)
train, test = own_images(400, seed=0), own_images(100, seed=1)

# By hand: a plan says how many channels each group keeps.
groups = amc.find_groups(network, example)
print("channels:", groups.channels)
plan = amc.PruningPlan.full(groups.channels).keeping("first", 0.5).keeping("second", 0.25)
by_hand = amc.prune(network, plan, example, images=torch.from_numpy(train[0][:64]) / 255)
print(f"by hand: {parameters(network)} -> {parameters(by_hand)} parameters")

# By a search, within half of the multiply-accumulates (MACs).
space = amc.Workspace(sys.argv[1] if len(sys.argv) > 1 else "amc-workspace")
opened = space.network(network, example_input=example, data=(train, test))
run = space.search(
    opened, amc.Budget(macs_ratio=0.5), episodes=10, untrained=True, calibration_images=64, reward_images=32
)
print("search keeps:", dict(run.plan().kept_channels))
found = run.search()
print(f"cost: {found.macs:,.0f} of {found.original_macs:,.0f} MACs")

smaller = amc.load_pruned(run.folder)
print(f"by search: {parameters(network)} -> {parameters(smaller)} parameters")
