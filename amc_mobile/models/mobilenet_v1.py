"""MobileNet-V1 (Howard et al. 2017): depthwise and pointwise convolutions in turn.

Module names: `features.0` the stem, then `features.1`, `features.2`, ... alternately depthwise and pointwise;
`classifier`. Weights converted from Keras load by these names.
"""

from __future__ import annotations

from torch import Tensor, nn

from amc_mobile.models.blocks import conv_norm, initialise, rounded_width, size_after, stem_stride

STEM_CHANNELS = 32
# (output channels of the pointwise convolution, stride of the depthwise one)
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
EPSILON = 1e-3  # of the TensorFlow originals


class MobileNetV1(nn.Module):
    def __init__(self, num_classes: int, width_multiplier: float, input_size: int, in_channels: int) -> None:
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


def mobilenet_v1(
    num_classes: int = 1000, width_multiplier: float = 1.0, input_size: int = 224, in_channels: int = 3
) -> MobileNetV1:
    """Total stride 32, or 16 for inputs up to 64 pixels (stem of stride 1)."""
    return MobileNetV1(num_classes, width_multiplier, input_size, in_channels)
