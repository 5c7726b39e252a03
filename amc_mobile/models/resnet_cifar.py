"""The small nets of CIFAR-10: ResNet-20 and ResNet-56 (He et al. 2016, section 4.2) and Plain-20, ResNet-20's twin
without shortcuts.

Module names: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`; the public pretrained files of these nets load by them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.models.blocks import initialise, rounded_width

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions, with a shortcut or without.

    Where the size changes, the shortcut takes every second pixel and fills new channels with zeros on both sides
    (option A of the paper): it has no weights.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut
        self.stride = stride
        added = out_channels - in_channels
        self.added_channels = (added // 2, added - added // 2)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = functional.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        if self.shortcut:
            kept = features if self.stride == 1 else features[:, :, :: self.stride, :: self.stride]
            if any(self.added_channels):
                kept = functional.pad(kept, (0, 0, 0, 0, *self.added_channels))
            out = out + kept
        return functional.relu(out)


class CifarResNet(nn.Module):
    def __init__(
        self, num_classes: int, width_multiplier: float, in_channels: int, *, blocks_per_stage: int, shortcut: bool
    ) -> None:
        super().__init__()
        widths = [rounded_width(width * width_multiplier) for width in WIDTHS]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels, stages = widths[0], []
        for stage, width in enumerate(widths):
            blocks = []
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Block(channels, width, stride, shortcut=shortcut))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)"""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean((2, 3)))  # type: ignore[no-any-return]


def resnet20(
    num_classes: int = 10, width_multiplier: float = 1.0, input_size: int = 32, in_channels: int = 3
) -> CifarResNet:
    """The layers do not depend on `input_size`."""
    return CifarResNet(num_classes, width_multiplier, in_channels, blocks_per_stage=3, shortcut=True)


def resnet56(
    num_classes: int = 10, width_multiplier: float = 1.0, input_size: int = 32, in_channels: int = 3
) -> CifarResNet:
    """The layers do not depend on `input_size`."""
    return CifarResNet(num_classes, width_multiplier, in_channels, blocks_per_stage=9, shortcut=True)


def plain20(
    num_classes: int = 10, width_multiplier: float = 1.0, input_size: int = 32, in_channels: int = 3
) -> CifarResNet:
    """The layers do not depend on `input_size`."""
    return CifarResNet(num_classes, width_multiplier, in_channels, blocks_per_stage=3, shortcut=False)
