"""SSDLite on MobileNetV2 (Liu et al. 2016; Sandler et al. 2018, section 6.2): boxes and classes in one pass.

Module names: `backbone` the MobileNetV2 features; `extras` the further, smaller maps; `classification_heads` and
`regression_heads`, a depthwise and a 1x1 convolution for each map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc_mobile.models.task import ASPECT_RATIOS, Detection, SsdAnchors
from amc_mobile.models.zoo.blocks import conv_norm, initialise, rounded_width, size_after, stem_stride
from amc_mobile.models.zoo.mobilenet import InvertedResidual, MobileNetV2

EXTRA_CHANNELS = (512, 256, 256, 128)
# The spread that suits ReLUs, of the few outputs here, would start with offsets and logits far off: a loss of 80, whose
# gradients spoil the backbone.
HEAD_STD = 0.01
TAPPED_BLOCK = 14  # its expansion is the first map: the last one of half the backbone's stride


class SsdLite(nn.Module):
    """Maps of stride 16 and 32 and up to four more, down to one cell; strides 8 and 16 for inputs up to 64 pixels.

    `task`: how its outputs are read; see `amc_mobile.models.task`.
    """

    def __init__(self, num_classes: int, width_multiplier: float, input_size: int, in_channels: int = 3) -> None:
        super().__init__()
        self.logits_per_anchor = 1 + num_classes
        self.backbone = MobileNetV2(1, width_multiplier, input_size, in_channels).features
        tapped, last = self.backbone[TAPPED_BLOCK], self.backbone[-1]
        assert isinstance(tapped, InvertedResidual)
        side = -(-input_size // (8 * stem_stride(input_size)))
        sizes, channels = [side, size_after(side, 2)], [_width(tapped.conv[0]), _width(last)]
        self.extras = nn.ModuleList()
        for width in EXTRA_CHANNELS:
            if sizes[-1] == 1:
                break
            out_channels = rounded_width(width * width_multiplier)
            self.extras.append(_extra(channels[-1], out_channels, sizes[-1]))
            channels.append(out_channels)
            sizes.append(size_after(sizes[-1], 2))
        anchors = len(ASPECT_RATIOS) + 1
        self.classification_heads = nn.ModuleList(
            _head(c, anchors * (num_classes + 1), size) for c, size in zip(channels, sizes, strict=True)
        )
        self.regression_heads = nn.ModuleList(
            _head(c, anchors * 4, size) for c, size in zip(channels, sizes, strict=True)
        )
        initialise(self)
        for head in (*self.classification_heads, *self.regression_heads):
            nn.init.normal_(head[-1].weight, std=HEAD_STD)
        self.task = Detection(SsdAnchors(tuple(sizes)).boxes(), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, input_size, input_size) -> (N, anchors, 1 + classes + 4): logits, background first, then offsets."""
        maps = []
        features = images
        for index, block in enumerate(self.backbone):
            if index == TAPPED_BLOCK and isinstance(block, InvertedResidual):
                expansion, *others = block.conv
                features = expansion(features)
                maps.append(features)
                for layer in others:
                    features = layer(features)
            else:
                features = block(features)
        maps.append(features)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        logits = _by_anchor(self.classification_heads, maps, self.logits_per_anchor)
        return torch.cat([logits, _by_anchor(self.regression_heads, maps, 4)], dim=2)


def _width(block: nn.Module) -> int:
    """Output channels of a `conv_norm`."""
    return next(layer.out_channels for layer in block.children() if isinstance(layer, nn.Conv2d))


def _extra(in_channels: int, out_channels: int, input_size: int) -> nn.Sequential:
    middle = rounded_width(out_channels / 2)
    return nn.Sequential(
        conv_norm(in_channels, middle, 1, input_size=input_size),
        conv_norm(middle, middle, 3, stride=2, depthwise=True, input_size=input_size),
        conv_norm(middle, out_channels, 1, input_size=size_after(input_size, 2)),
    )


def _head(in_channels: int, outputs: int, input_size: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(in_channels, in_channels, 3, depthwise=True, input_size=input_size),
        nn.Conv2d(in_channels, outputs, 1),
    )


def _by_anchor(heads: nn.ModuleList, maps: list[Tensor], per_anchor: int) -> Tensor:
    """(N, C, H, W) of each map -> (N, anchors, per_anchor)"""
    outputs = [head(features).permute(0, 2, 3, 1) for head, features in zip(heads, maps, strict=True)]
    return torch.cat([x.reshape(x.shape[0], -1, per_anchor) for x in outputs], dim=1)
