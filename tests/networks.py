"""Small networks with every kind of coupling between channels, for tests. Batch-norm statistics are random."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESOLUTION = 16


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with statistics that make folding or cutting a batch norm wrongly show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                scale = parameter[0].numel() ** -0.5 * 1.4
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                shape = module.running_mean.shape
                module.weight.copy_(torch.rand(shape, generator=generator) * 0.6 + 0.6)
                module.bias.copy_(torch.randn(shape, generator=generator) * 0.2)
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(shape, generator=generator) * 0.7 + 0.7)
    return model.eval()


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Chain(nn.Module):
    """No batch norm; dilation, PReLU, several activations, mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1, bias=False)
        self.wide = nn.Conv2d(12, 16, 3, 1, 2, dilation=2)
        self.act = nn.PReLU(16)
        self.last = nn.Conv2d(16, 12, (3, 1), 1, padding="same")
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.act(self.wide(F.silu(self.stem(x)))))
        return self.fc(F.leaky_relu(self.last(x)).mean((2, 3)))


class PaddedDepthwise(nn.Module):
    """MobileNetV2-like inverted residuals with TensorFlow's SAME padding done by F.pad and ZeroPad2d."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand = unit(8, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, 2, groups=24)
        self.project = nn.Conv2d(24, 16, 1)
        self.inner = nn.Sequential(unit(16, 32, 1), unit(32, 32, 3, groups=32), nn.Conv2d(32, 16, 1))
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.depthwise(F.pad(self.expand(self.stem(x)), (0, 1, 0, 1))))
        return self.fc(self.drop(pooled(x + self.inner(x))))


class PaddedShortcut(nn.Module):
    """CIFAR ResNet blocks with option-A shortcuts: strided slice and zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.a1, self.a2 = unit(8, 8), nn.Conv2d(8, 8, 3, 1, 1)
        self.b1, self.b2 = unit(8, 16, 3, 2), nn.Conv2d(16, 16, 3, 1, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a2(self.a1(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.fc(pooled(F.relu(shortcut + self.b2(self.b1(x)))))


class Bottleneck(nn.Module):
    """ResNet-50-like: projected shortcut, in-place addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.block = nn.Sequential(unit(8, 6, 1), unit(6, 6), nn.Conv2d(6, 16, 1))
        self.shortcut = nn.Conv2d(8, 16, 1)
        self.again = nn.Sequential(unit(16, 6, 1), unit(6, 6), nn.Conv2d(6, 16, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        y += self.shortcut(x)
        y = torch.relu_(y)
        return self.fc(pooled(y + self.again(y)))


class Flattened(nn.Module):
    """VGG-like: maps flattened into linear layers with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(unit(3, 8), nn.MaxPool2d(4), unit(8, 12), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(12 * 4, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class DenseUnit(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.squeeze = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.grow = nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(F.relu(self.squeeze(F.relu(self.norm(x)))))], 1)


class DenseLike(nn.Module):
    """Concatenations that grow, with a transition between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.one = nn.Sequential(DenseUnit(8, 6), DenseUnit(14, 6))
        self.transition = nn.Sequential(unit(20, 10, 1), nn.AvgPool2d(2))
        self.two = nn.Sequential(DenseUnit(10, 6), DenseUnit(16, 6))
        self.fc = nn.Linear(22, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.two(self.transition(self.one(self.stem(x))))))


class InceptionLike(nn.Module):
    """Parallel branches, concatenated and flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8, 3, 2)
        self.point = unit(8, 6, 1)
        self.wide = nn.Sequential(unit(8, 4, 1), unit(4, 10, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(8, 4, 1))
        self.shrink = nn.MaxPool2d(2)
        self.hidden = nn.Linear(20 * 16, 24)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.shrink(torch.cat([self.point(x), self.wide(x), self.pool(x)], 1))
        return self.fc(F.relu(self.hidden(x.flatten(1))))


def shuffled(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        depthwise = nn.Conv2d(half, half, 3, 1, 1, groups=half)
        self.branch = nn.Sequential(unit(half, half, 1), depthwise, unit(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        same, changed = x.chunk(2, 1)
        return shuffled(torch.cat([same, self.branch(changed)], 1))


class ShuffleDown(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs), unit(inputs, half, 1))
        self.right = nn.Sequential(
            unit(inputs, half, 1), nn.Conv2d(half, half, 3, 2, 1, groups=half), unit(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(torch.cat([self.left(x), self.right(x)], 1))


class ShuffleLike(nn.Module):
    """ShuffleNetV2-like: halves that stay equal, shuffled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(unit(3, 8, 3, 2), ShuffleDown(8, 32), ShuffleUnit(32), ShuffleUnit(32))
        self.last = unit(32, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.last(self.features(x))))


class SqueezeExcite(nn.Module):
    """MobileNetV3-like: channels scaled by a gate computed from their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 12, 3, 2)
        self.depthwise = unit(12, 12, 5, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 8, 1)
        self.hidden, self.fc = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(F.hardswish(self.hidden(pooled(self.project(x * gate)))))


class Upsampling(nn.Module):
    """Transposed convolution and interpolation, joined by a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = unit(3, 8), unit(8, 12, 3, 2)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.bottom = unit(12, 6, 3)
        self.fc = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        low = self.down(x)
        wide = F.interpolate(self.bottom(low), scale_factor=2, mode="nearest")
        return self.fc(pooled(torch.cat([x + self.up(low), wide], 1)))


class Grouped(nn.Module):
    """A grouped convolution: the channels on both sides stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.before = unit(3, 12, 3, 2), unit(12, 8)
        self.grouped, self.after = unit(8, 16, groups=4), unit(16, 10, 1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.after(self.grouped(self.before(self.stem(x))))))


class BareParameter(nn.Module):
    """A learnt scale that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = unit(3, 8, 3, 2), unit(8, 10)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.7))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.body(self.stem(x) * self.scale)))


class CalledTwice(nn.Module):
    """One module applied twice, and two convolutions that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = unit(3, 8, 3, 2), unit(8, 8)
        self.one, self.two = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.body(self.stem(x)))
        return self.fc(pooled(F.relu(self.one(x)) + torch.sigmoid(self.two(x))))


class HardCodedSplit(nn.Module):
    """Numbers of channels written in the code: these channels have to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.free = unit(3, 12, 3, 2), unit(12, 8)
        self.left, self.right = unit(4, 6), unit(4, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.free(self.stem(x)), [4, 4], 1)
        return self.fc(pooled(self.left(one) + self.right(other)))


class ControlFlowBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = self.convolution(x)
        return x


class ControlFlow(nn.Module):
    """A branch that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8, 3, 2)
        self.blocks = nn.Sequential(unit(8, 8), ControlFlowBlock())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.blocks(self.stem(x))))


class UnknownOperator(nn.Module):
    """An operator for which there is no rule."""

    class Cumulative(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8, 3, 2)
        self.middle = nn.Sequential(nn.Identity(), self.Cumulative())
        self.after = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.after(self.middle(self.stem(x)))))


class FoldedSpace(nn.Module):
    """MobileViT-like: the places of each patch go into the batch, attention mixes the patches, and all goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 12, 3, 2)
        self.enter = nn.Conv2d(12, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.query_key_value, self.back = nn.Linear(8, 24), nn.Linear(8, 8)
        self.hidden, self.shrink = nn.Linear(8, 16), nn.Linear(16, 8)
        self.leave = unit(8, 10, 1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.stem(x))
        batch, channels, height, width = x.shape
        x = x.reshape(batch * channels * height // 2, 2, width // 2, 2).transpose(1, 2)
        x = x.reshape(batch, channels, height * width // 4, 4).transpose(1, 3).reshape(batch * 4, -1, channels)
        query, key, value = self.query_key_value(self.norm(x)).unsqueeze(1).chunk(3, -1)  # one head
        x = x + self.back(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        x = x + self.shrink(F.silu(self.hidden(x)))
        x = x.view(batch, 4, -1, channels).transpose(1, 3)
        x = x.reshape(batch * channels * height // 2, width // 2, 2, 2)
        x = x.transpose(1, 2).reshape(batch, channels, height, width)
        return self.fc(pooled(self.leave(x)))


class DepthwiseUpsampling(nn.Module):
    """A transposed convolution that filters each channel by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8, 3, 2)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8)
        self.after = unit(8, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.after(self.up(self.stem(x)))))


PRUNABLE: dict[str, Callable[[], nn.Module]] = {
    network.__name__: network
    for network in (
        Chain, PaddedDepthwise, PaddedShortcut, Bottleneck, Flattened, DenseLike, InceptionLike, ShuffleLike,
        SqueezeExcite, Upsampling, DepthwiseUpsampling, Grouped, BareParameter, CalledTwice, HardCodedSplit,
    )
}  # fmt: skip
WITH_ATTENTION: dict[str, Callable[[], nn.Module]] = {"FoldedSpace": FoldedSpace}


def example(batch: int = 2, channels: int = 3, resolution: int = RESOLUTION, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, resolution, resolution, generator=torch.Generator().manual_seed(seed))


def build(name: str, seed: int = 0) -> nn.Module:
    return randomised((PRUNABLE | WITH_ATTENTION)[name](), seed)
