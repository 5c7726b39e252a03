"""A network and images of your own, pruned by a plan made by hand: python examples/own_network.py"""

from __future__ import annotations

import torch
from torch import nn

import amc_mobile as amc

network = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
images = torch.randn(64, 3, 32, 32)

groups = amc.find_groups(network, images[:1])
print("channel groups:", groups.channels)
plan = amc.PruningPlan.full(groups.channels).keeping(groups.names[0], 0.5).keeping(groups.names[1], 0.25)
smaller = amc.prune(network.eval(), plan, images[:1], images=images)
print("kept:", dict(plan.kept_channels))
print("parameters:", *(sum(p.numel() for p in module.parameters()) for module in (network, smaller)))
print("outputs:", tuple(smaller(images).shape))
