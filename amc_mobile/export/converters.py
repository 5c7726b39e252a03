"""Export with the formats' own converters: torch's for .onnx, litert-torch for .tflite."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree as pytree

from amc_mobile import store
from amc_mobile.errors import UnsupportedLayer, first_line
from amc_mobile.formats import ONNX, TFLITE
from amc_mobile.packing import unpacked


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the converters' talk from our users: warnings, logs, stdout and stderr, native code's as well.

    Process-wide while it lasts: other threads should not print meanwhile.
    """
    previous = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        stack.callback(logging.disable, previous)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(_native_output_redirected())
        yield


@contextlib.contextmanager
def _native_output_redirected() -> Iterator[None]:
    # The converter's C++ logs bypass sys.stderr and write to the descriptor itself.
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    with tempfile.TemporaryFile() as sink:
        saved = []
        try:
            for descriptor in (1, 2):
                try:
                    saved.append((descriptor, os.dup(descriptor)))
                except OSError:  # closed, as in a daemon: nothing to redirect
                    continue
                os.dup2(sink.fileno(), descriptor)
            yield
        finally:
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)


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
            raise TFLITE.missing("litert-torch") from error
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


Exporter = Callable[[nn.Module, Sequence[int], Path], None]
EXPORTERS: dict[str, Exporter] = {TFLITE.name: to_tflite, ONNX.name: to_onnx}  # by format
