"""MobileNet-V1 (Howard et al. 2017) and MobileNetV2 (Sandler et al. 2018).

MobileNet-V1's module names: `features.0` the stem, then `features.1`, `features.2`, ... alternately depthwise and
pointwise; `classifier`. Weights converted from Keras load by these names.

MobileNetV2's module names: `features.0` the stem, `features.1` to `features.17` the blocks with their layers in
`conv` ([expansion], depthwise, projection), `features.18` the last 1x1 convolution; `classifier`.
"""

from __future__ import annotations

from torch import Tensor, nn

from amc_mobile.models.zoo.blocks import conv_norm, initialise, rounded_width, size_after, stem_stride

STEM_CHANNELS = 32
# (output channels of the pointwise convolution, stride of the depthwise one)
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
EPSILON = 1e-3  # of the TensorFlow originals


class MobileNetV1(nn.Module):
    """Total stride 32, or 16 for inputs up to 64 pixels (stem of stride 1)."""

    def __init__(self, num_classes: int, width_multiplier: float, input_size: int, in_channels: int = 3) -> None:
        super().__init__()
        stride = stem_stride(input_size)
        channels = rounded_width(STEM_CHANNELS * width_multiplier)
        layers = [conv_norm(in_channels, channels, 3, stride=stride, epsilon=EPSILON, input_size=input_size)]
        size = size_after(input_size, stride)
        for width, stride in BLOCKS:
            layers.append(
                conv_norm(channels, channels, 3, stride=stride, depthwise=True, epsilon=EPSILON, input_size=size)
            )
            size = size_after(size, stride)
            out_channels = rounded_width(width * width_multiplier)
            layers.append(conv_norm(channels, out_channels, 1, epsilon=EPSILON, input_size=size))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, input_size, input_size) -> (N, classes)"""
        return self.classifier(self.pool(self.features(images)).flatten(1))  # type: ignore[no-any-return]


LAST_CHANNELS = 1280
# (expansion factor, output channels, blocks, stride of the first), table 2 of the paper
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, input_size: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers = [] if expansion == 1 else [conv_norm(in_channels, hidden, 1, input_size=input_size)]
        layers.append(conv_norm(hidden, hidden, 3, stride=stride, depthwise=True, input_size=input_size))
        layers.append(conv_norm(hidden, out_channels, 1, activation=False, input_size=input_size))
        self.conv = nn.Sequential(*layers)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.conv(features)
        return features + out if self.adds_input else out


class MobileNetV2(nn.Module):
    """Total stride 32, or 16 for inputs up to 64 pixels (stem of stride 1)."""

    def __init__(self, num_classes: int, width_multiplier: float, input_size: int, in_channels: int = 3) -> None:
        super().__init__()
        stride = stem_stride(input_size)
        channels = rounded_width(STEM_CHANNELS * width_multiplier)
        layers: list[nn.Module] = [conv_norm(in_channels, channels, 3, stride=stride, input_size=input_size)]
        size = size_after(input_size, stride)
        for expansion, width, blocks, first_stride in STAGES:
            out_channels = rounded_width(width * width_multiplier)
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, expansion, stride, size))
                channels, size = out_channels, size_after(size, stride)
        # Narrow variants keep the full last layer, as in the paper.
        last_channels = rounded_width(LAST_CHANNELS * max(1.0, width_multiplier))
        layers.append(conv_norm(channels, last_channels, 1, input_size=size))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last_channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, input_size, input_size) -> (N, classes)"""
        return self.classifier(self.pool(self.features(images)).flatten(1))  # type: ignore[no-any-return]
