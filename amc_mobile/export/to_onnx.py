"""Export to ONNX with torch's own exporter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree as pytree

from amc_mobile import store
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.export.converters import first_line, quiet
from amc_mobile.packing import unpacked

INPUT_NAME, OUTPUT_NAME = "input", "output"


def to_onnx(model: nn.Module, input_shape: Sequence[int], path: Path) -> None:
    """Writes `path` (float32, one file, fixed shapes, input (N, C, H, W)). `model` is left as it was.

    Several inputs and outputs are those of the network itself, numbered: input_0, output_1.

    Raises UnsupportedLayer when the network cannot be exported.
    """
    clone, inputs = unpacked(model, torch.zeros(tuple(input_shape)))
    with torch.no_grad():
        outputs = pytree.tree_leaves(clone(*inputs))
    with store.replacing(Path(path)) as temporary, quiet():
        try:
            torch.onnx.export(
                clone,
                inputs,
                str(temporary),
                dynamo=True,
                external_data=False,  # else the weights land in a second file
                input_names=_numbered(INPUT_NAME, len(inputs)),
                output_names=_numbered(OUTPUT_NAME, len(outputs)),
                verbose=False,
            )
        except OSError:  # of the disk, not of the network
            raise
        except Exception as error:
            raise UnsupportedLayer(
                "",
                f"torch.onnx cannot export it: {first_line(error)}",
                next_step="export with --tflite, or replace the operator named",
            ) from error


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
