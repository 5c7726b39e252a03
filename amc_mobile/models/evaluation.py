"""Outputs and accuracy of a network on an image set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc_mobile.errors import InvalidInput
from amc_mobile.models.labelled_images import LabelledImages
from amc_mobile.models.task import CLASSIFICATION, Task


def logits(
    model: nn.Module,
    images: LabelledImages,
    batch_size: int = 64,
    *,
    channels_last: bool | None = None,
    bf16: bool = False,
) -> Tensor:
    """(N, ...) outputs on the CPU, in evaluation mode; the model's mode and weights are left as they were.

    `channels_last`: the memory layout of the batches; None tries one image, since `view` on a map needs the other.
    `bf16`: compute in bfloat16 where that is safe; the outputs are float32 all the same.
    """
    if len(images) == 0:
        raise InvalidInput("there are no images to evaluate on")
    if channels_last is None:
        channels_last = runs_channels_last(model, images.normalised(slice(0, 1)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    outputs = []
    with _evaluating(model), torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in range(0, len(images), batch_size):
            batch = images.normalised(slice(start, start + batch_size))
            outputs.append(model(batch.to(device).contiguous(memory_format=layout)).float().cpu())
    # Cloned outside inference mode: the result may take part in later computations.
    return torch.cat(outputs).clone()


def bf16_is_fast() -> bool:
    """Whether this CPU multiplies in bfloat16: then that takes about half the time of float32."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def runs_channels_last(model: nn.Module, example: Tensor) -> bool:
    """Whether the network runs in that memory layout. `example`: (N, C, H, W), on any device."""
    parameter = next(model.parameters(), None)
    images = example.to(parameter.device if parameter is not None else "cpu")
    try:
        with _evaluating(model), torch.inference_mode():
            model(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def evaluate(model: nn.Module, images: LabelledImages, batch_size: int = 64, *, task: Task = CLASSIFICATION) -> float:
    """The task's accuracy in [0, 1]: top-1 unless told."""
    return task.accuracy(logits(model, images, batch_size), images.labels)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Module by module: a network may hold frozen batch norms in another mode than the rest.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
