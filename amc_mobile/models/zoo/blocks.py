"""Layers that several networks share."""

from __future__ import annotations

from torch import nn

# At or below this input size the networks for photographs start without reducing it.
SMALL_INPUT = 64


def rounded_width(channels: float) -> int:
    """`channels` to the nearest multiple of 8, at least 8 and never more than 10 % below `channels`.

    MobileNetV2's rule (Sandler et al. 2018). Multiples of 8 fill the vector registers of a phone's cores.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def stem_stride(input_size: int) -> int:
    """1 for inputs up to 64 pixels, else 2: small images would have shrunk to a point in the middle of the net."""
    return 1 if input_size <= SMALL_INPUT else 2


def size_after(size: int, stride: int) -> int:
    """The side of the map after a convolution of kernel 3 that pads as `conv_norm` does."""
    return (size + stride - 1) // stride


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    depthwise: bool = False,
    activation: bool = True,
    epsilon: float = 1e-5,
    input_size: int,
) -> nn.Sequential:
    """[padding], convolution, batch norm, [ReLU6], padded as TensorFlow's SAME for an input of side `input_size`.

    With stride 2 on an even side SAME pads the right and the bottom alone, which takes a layer of its own.
    """
    layers: list[nn.Module] = []
    padding = kernel_size // 2
    if stride == 2 and kernel_size == 3 and input_size % 2 == 0:
        layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
        padding = 0
    groups = in_channels if depthwise else 1
    layers.append(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False))
    layers.append(nn.BatchNorm2d(out_channels, eps=epsilon))
    if activation:
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers)


def initialise(model: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, small normal weights for Linear layers; in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # Depthwise: each output sees one channel, so the fan is the window alone.
            fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
