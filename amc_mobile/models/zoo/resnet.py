"""Residual networks (He et al. 2016): ResNet-50, and CIFAR-10's ResNet-20, ResNet-56 and Plain-20.

The CIFAR nets' module names: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`; the public pretrained files of these
nets load by them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from amc_mobile.models.zoo.blocks import SMALL_INPUT, initialise, rounded_width

# (inner width, blocks) per stage; the outer width is four times the inner one
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
EXPANSION = 4


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = functional.relu(self.bn1(self.conv1(features)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        kept = features if self.downsample is None else self.downsample(features)
        return functional.relu(out + kept)


class ResNet50(nn.Module):
    """Total stride 32; 8 for inputs up to 64 pixels, with a 3x3 stem of stride 1 and no pooling after it."""

    def __init__(self, num_classes: int, width_multiplier: float, input_size: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = rounded_width(STAGES[0][0] * width_multiplier)
        is_small = input_size <= SMALL_INPUT
        kernel_size, stride = (3, 1) if is_small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool: nn.Module = nn.Identity() if is_small else nn.MaxPool2d(3, 2, 1)
        stages = []
        for stage, (width, blocks) in enumerate(STAGES):
            inner = rounded_width(width * width_multiplier)
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, inner, 2 if stage > 0 and block == 0 else 1))
                channels = inner * EXPANSION
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)"""
        features = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(self.avgpool(features).flatten(1))  # type: ignore[no-any-return]


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
    """The layers do not depend on `input_size`."""

    def __init__(
        self,
        num_classes: int,
        width_multiplier: float,
        input_size: int,
        in_channels: int = 3,
        *,
        blocks_per_stage: int,
        shortcut: bool = True,
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
