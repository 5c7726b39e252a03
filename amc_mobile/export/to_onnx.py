"""Export to ONNX with torch's own exporter."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from amc_mobile import store
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.export.converters import first_line, quiet

INPUT_NAME, OUTPUT_NAME = "input", "output"


def to_onnx(model: nn.Module, input_shape: Sequence[int], path: Path) -> None:
    """Writes `path` (float32, one file, fixed shapes, input (N, C, H, W)). `model` is left as it was.

    Raises UnsupportedLayer when the network cannot be exported.
    """
    clone = copy.deepcopy(model).cpu().eval()
    example = torch.zeros(tuple(input_shape))
    with store.replacing(Path(path)) as temporary, quiet():
        try:
            torch.onnx.export(
                clone,
                (example,),
                str(temporary),
                dynamo=True,
                external_data=False,  # else the weights land in a second file
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                verbose=False,
            )
        except Exception as error:
            raise UnsupportedLayer(
                "",
                f"torch.onnx cannot export it: {first_line(error)}",
                next_step="export with --tflite, or replace the operator named",
            ) from error
