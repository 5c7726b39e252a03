"""The networks that can be named, with what is usual for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from amc_mobile.models.zoo.mobilenet import mobilenet_v1, mobilenet_v2
from amc_mobile.models.zoo.resnet import plain20, resnet20, resnet50, resnet56
from amc_mobile.models.zoo.ssdlite import ssdlite_mobilenet_v2
from amc_mobile.models.zoo.vgg import vgg16

# Mean and standard deviation per channel, for pixel values in 0..1.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # TensorFlow's: -1..1


class Factory(Protocol):
    def __call__(
        self, num_classes: int = ..., width_multiplier: float = ..., input_size: int = ..., in_channels: int = ...
    ) -> nn.Module: ...


@dataclass(frozen=True)
class ModelEntry:
    name: str
    summary: str
    factory: Factory
    default_input_size: int
    default_classes: int
    smallest_input_size: int
    normalisation: Normalisation  # what the published weights of this network were trained with
    million_macs: float  # at the defaults, width 1.0


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry("mobilenet_v1", "MobileNet-V1", mobilenet_v1, 224, 1000, 16, HALF, 568.7),
        ModelEntry("mobilenet_v2", "MobileNetV2", mobilenet_v2, 224, 1000, 16, HALF, 300.8),
        ModelEntry("plain20", "Plain-20 for CIFAR-10, no shortcuts", plain20, 32, 10, 4, IMAGENET, 40.55),
        ModelEntry("resnet20", "ResNet-20 for CIFAR-10", resnet20, 32, 10, 4, IMAGENET, 40.55),
        ModelEntry("resnet56", "ResNet-56 for CIFAR-10", resnet56, 32, 10, 4, IMAGENET, 125.5),
        ModelEntry("resnet50", "ResNet-50", resnet50, 224, 1000, 8, IMAGENET, 4089.2),
        ModelEntry(
            "ssdlite_mobilenet_v2", "SSDLite detector on MobileNetV2", ssdlite_mobilenet_v2, 320, 80, 32, HALF, 783.9
        ),
        ModelEntry("vgg16", "VGG-16 with batch norm", vgg16, 224, 1000, 32, IMAGENET, 15470.3),
    )
}
