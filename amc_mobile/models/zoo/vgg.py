"""VGG-16 with batch norm (Simonyan and Zisserman 2015). Module names as torchvision's `vgg16_bn`."""

from __future__ import annotations

from torch import Tensor, nn

from amc_mobile.models.zoo.blocks import SMALL_INPUT, initialise, rounded_width

# Widths of the 3x3 convolutions; None halves the map.
LAYERS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None)
HIDDEN = 4096
DROPOUT = 0.5


class VGG16(nn.Module):
    """Up to 64 pixels, average pooling and one Linear layer take the place of the three of the paper.

    `input_size` is at least 32.
    """

    def __init__(self, num_classes: int, width_multiplier: float, input_size: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in LAYERS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                out_channels = rounded_width(width * width_multiplier)
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
                channels = out_channels
        self.features = nn.Sequential(*layers)
        if input_size <= SMALL_INPUT:
            self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Linear(channels, num_classes))
        else:
            self.pool = nn.Identity()
            hidden = rounded_width(HIDDEN * width_multiplier)
            self.classifier = nn.Sequential(
                nn.Linear(channels * (input_size // 32) ** 2, hidden),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
                nn.Linear(hidden, num_classes),
            )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, input_size, input_size) -> (N, classes)"""
        return self.classifier(self.pool(self.features(images)).flatten(1))  # type: ignore[no-any-return]
