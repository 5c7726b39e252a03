"""Export to TFLite with litert-torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree as pytree

from amc_mobile import store
from amc_mobile.errors import MissingDependency, UnsupportedLayer
from amc_mobile.export.converters import first_line, quiet
from amc_mobile.packing import unpacked


def to_tflite(model: nn.Module, input_shape: Sequence[int], path: Path) -> None:
    """Writes `path` (float32, fixed shapes). `model` is left as it was.

    `input_shape`: (N, C, H, W) as the network takes it; the file takes (N, H, W, C), and gives four-dimensional
    outputs channels last as well; so with each of several inputs and outputs of the network itself.
    Raises MissingDependency without the `tflite` extra, UnsupportedLayer when the
    network cannot be converted.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # read when the converter is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet():
        try:
            import litert_torch
        except ImportError as error:
            raise MissingDependency("litert-torch", "tflite") from error
    clone, inputs = unpacked(model, torch.zeros(tuple(input_shape)))
    with torch.no_grad():
        given = pytree.tree_leaves(clone(*inputs))
    images_in, images_out = ([i for i, tensor in enumerate(side) if tensor.ndim == 4] for side in (inputs, given))
    moved = tuple(tensor.permute(0, 2, 3, 1).contiguous() if tensor.ndim == 4 else tensor for tensor in inputs)
    with store.replacing(Path(path)) as temporary, quiet():
        try:
            channels_last = litert_torch.to_channel_last_io(clone, args=images_in, outputs=images_out or None)
            converted = litert_torch.convert(channels_last, moved)
            converted.export(str(temporary))
        except OSError:  # of the disk, not of the network
            raise
        except Exception as error:
            raise UnsupportedLayer(
                "",
                f"litert-torch cannot convert it: {first_line(error)}",
                next_step="export with --onnx, or replace the operator named",
            ) from error
