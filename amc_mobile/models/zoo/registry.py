"""The networks that can be named, with what is usual for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from amc_mobile.models.zoo.mobilenet import MobileNetV1, MobileNetV2
from amc_mobile.models.zoo.resnet import CifarResNet, ResNet50
from amc_mobile.models.zoo.ssdlite import SsdLite
from amc_mobile.models.zoo.vgg import VGG16

# Mean and standard deviation per channel, for pixel values in 0..1.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # TensorFlow's: -1..1


# Of num_classes, width_multiplier, input_size and in_channels, which is 3 by default.
Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelEntry:
    name: str
    summary: str
    factory: Factory
    default_input_size: int
    default_classes: int
    smallest_input_size: int
    normalisation: Normalisation  # what the published weights of this network were trained with


PLAIN20 = partial(CifarResNet, blocks_per_stage=3, shortcut=False)
RESNET20, RESNET56 = (partial(CifarResNet, blocks_per_stage=blocks) for blocks in (3, 9))
MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry("mobilenet_v1", "MobileNet-V1", MobileNetV1, 224, 1000, 16, HALF),
        ModelEntry("mobilenet_v2", "MobileNetV2", MobileNetV2, 224, 1000, 16, HALF),
        ModelEntry("plain20", "Plain-20 for CIFAR-10, no shortcuts", PLAIN20, 32, 10, 4, IMAGENET),
        ModelEntry("resnet20", "ResNet-20 for CIFAR-10", RESNET20, 32, 10, 4, IMAGENET),
        ModelEntry("resnet56", "ResNet-56 for CIFAR-10", RESNET56, 32, 10, 4, IMAGENET),
        ModelEntry("resnet50", "ResNet-50", ResNet50, 224, 1000, 8, IMAGENET),
        ModelEntry("ssdlite_mobilenet_v2", "SSDLite detector on MobileNetV2", SsdLite, 320, 80, 32, HALF),
        ModelEntry("vgg16", "VGG-16 with batch norm", VGG16, 224, 1000, 32, IMAGENET),
    )
}
