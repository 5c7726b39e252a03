"""The formats' own exporters and quantisers: torch and ONNX Runtime for .onnx, LiteRT's for .tflite."""

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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from amc_mobile import store
from amc_mobile.errors import InvalidConfig, InvalidInput, UnsupportedLayer, first_line
from amc_mobile.export.parity import Floats, parts_of, tflite_ends, tflite_inputs
from amc_mobile.formats import BY_SUFFIX, FLOAT32, ONNX, PRECISIONS, TFLITE, open_tflite
from amc_mobile.packing import unpacked


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards what converters print, log and warn of, native code included.

    For the whole process: what other threads print meanwhile is lost, too.
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
    """Writes `path` (float32, one file, fixed shapes, input (N, C, H, W)). `model` is not changed.

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
    """Writes `path` (float32, fixed shapes). `model` is not changed.

    `input_shape`: (N, C, H, W) as the network takes it. In the file every four-dimensional input and output has its
    channels last. Raises MissingDependency without the `tflite` extra, UnsupportedLayer when the network cannot be
    converted.
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

Quantize = Callable[[bytes, str, Floats], bytes]
CALIBRATION_IMAGES = 64  # each costs an inference that keeps every activation
STAND_INS, PATCHES = 16, 4


def stand_in_images(input_shape: Sequence[int]) -> Floats:
    """Seeded patches and noise in place of normalised images, for an `input_shape` (N, C, H, W): latencies only.

    Patches keep activations alive that noise alone averages away; a scale of nearly 0 is refused by XNNPACK.
    """
    channels, height, width = input_shape[1:]
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((STAND_INS, channels, PATCHES, PATCHES))
    rows, columns = (np.arange(size) * PATCHES // size for size in (height, width))
    noise = rng.standard_normal((STAND_INS, channels, height, width))
    return (patches[:, :, rows[:, None], columns] + 0.5 * noise).astype(np.float32)


def calibration_choice(images: int) -> list[int]:
    """Which of so many images to take ranges from: spread over all, since data sets come sorted by class."""
    return sorted({int(i) for i in np.linspace(0, images - 1, CALIBRATION_IMAGES)})


def quantize_tflite(source: bytes, precision: str, images: Floats) -> bytes:
    """A float32 .tflite file in another precision. `images`: normalised, (N, C, H, W); int8 takes its ranges from them.

    int8: weights per channel, activations, input and output; operators that have no int8 form stay float32 between
    QUANTIZE and DEQUANTIZE. float16: weights only, computed in float32. Raises MissingDependency without the `tflite`
    extra, UnsupportedLayer when the quantiser gives up.
    """
    _check(precision, images)
    with quiet():
        try:
            from litert_quantizer import qtyping, recipe
            from litert_quantizer.quantizer import Quantizer
        except ImportError as error:
            raise TFLITE.missing(TFLITE.quantizer_package) from error
        try:
            if precision == "int8":
                static = recipe.static_wi8_ai8()
                quantizer, ranges = Quantizer(bytearray(source), static), _ranges(source, static, images)
            else:
                weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
                quantizer, ranges = Quantizer(bytearray(source)), None
                quantizer.update_quantization_recipe(
                    ".*",
                    qtyping.TFLOperationName.ALL_SUPPORTED,
                    qtyping.OpQuantizationConfig(
                        weight_tensor_config=weights,
                        compute_precision=qtyping.ComputePrecision.FLOAT,
                        explicit_dequantize=True,
                    ),
                    algorithm_key="float_casting",
                )
            return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)
        except Exception as error:  # the quantiser's errors share no base class
            raise UnsupportedLayer(
                "",
                f"litert-quantizer cannot make it {precision}: {first_line(error)}",
                next_step="stay with float32 (--fp32)",
            ) from error


def _check(precision: str, images: Floats) -> None:
    if precision not in PRECISIONS or precision == FLOAT32:
        raise InvalidInput(f"precision {precision!r} is not one to quantise to", next_step="use int8 or float16")
    if precision == "int8" and not len(images):
        raise InvalidInput("int8 needs calibration images", next_step="pass --calibration-images 64 to the search")


def _ranges(source: bytes, static: Any, images: Floats) -> dict[str, Any]:
    """Tensor -> its smallest and largest value over all images, the statistic that ONNX Runtime's quantiser takes too.

    `Quantizer.calibrate` averages the images' extremes instead, which clips about every second image in every layer:
    over a deep network that costs more of the signal than the finer steps win.
    """
    from litert_quantizer.calibrator import Calibrator
    from litert_quantizer.recipe_manager import RecipeManager
    from litert_quantizer.utils.qsv_utils import min_max_update

    manager = RecipeManager()
    manager.load_quantization_recipe(static)
    calibrator = Calibrator(source, num_threads=1, qsv_update_func=min_max_update)
    calibrator.calibrate(_samples(source, images), manager)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    return ranges


def _samples(source: bytes, images: Floats) -> dict[str, list[dict[str, Any]]]:
    """Images as the file's signature names them, channels last."""
    interpreter = open_tflite(source)
    ((name, signature),) = interpreter.get_signature_list().items()
    sources = tflite_ends(interpreter)[0]
    arguments = sorted(signature["inputs"], key=lambda argument: (len(argument), argument))
    return {name: [dict(zip(arguments, tflite_inputs(image, sources), strict=True)) for image in images]}


def quantize_onnx(source: bytes, precision: str, images: Floats) -> bytes:
    """A float32 .onnx file in int8: QDQ form, weights per channel, input and output float32. `images`: (N, C, H, W).

    Activations are unsigned: on x86 ONNX Runtime has integer kernels for those only. Signed ones it converts inside a
    network, but a kernel that is cut out of one would be computed in float32. Raises InvalidConfig for float16,
    UnsupportedLayer when the quantiser gives up.
    """
    _check(precision, images)
    if precision not in ONNX.precisions:
        raise InvalidConfig(f".onnx files have no {precision}", next_step="export with --tflite, or with --int8")
    import onnx
    from onnxruntime import quantization as ort

    inputs = onnx.load_from_string(source).graph.input
    names = [value.name for value in inputs]
    shapes = [tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in inputs]
    batches = iter(
        [
            dict(zip(names, parts_of(image, shapes) if len(names) > 1 else [image[None]], strict=True))
            for image in images
        ]
    )

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Floats] | None:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "int8.onnx"
        try:
            ort.quantize_static(
                onnx.load_from_string(source), str(target), Reader(), quant_format=ort.QuantFormat.QDQ,
                per_channel=True, activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # its errors share no base class
            raise UnsupportedLayer(
                "", f"onnxruntime cannot make it int8: {first_line(error)}", next_step="stay with float32 (--fp32)"
            ) from error
        return target.read_bytes()


QUANTIZERS: dict[str, Quantize] = {TFLITE.name: quantize_tflite, ONNX.name: quantize_onnx}  # by format


def export_module(
    module: nn.Module,
    example_input: Tensor,
    path: Path | str,
    *,
    precision: str = FLOAT32,
    images: Tensor | Floats | Sequence[Any] = (),
) -> Path:
    """Writes any network, which needs no workspace, as .tflite or .onnx, by the suffix of `path`.

    `example_input`: (N, C, H, W). `precision`: "float32", "int8" or "float16"; int8 takes its ranges from 64 of
    `images`, (N, C, H, W) as the network takes them. Raises InvalidInput, UnsupportedLayer, MissingDependency.

        amc.export_module(module, torch.zeros(1, 3, 224, 224), "model.onnx")
    """
    path = Path(path)
    if path.suffix not in BY_SUFFIX:
        raise InvalidInput(f"{path} is neither of {', '.join(BY_SUFFIX)}", next_step="choose one of these suffixes")
    name = BY_SUFFIX[path.suffix].name
    EXPORTERS[name](module, tuple(example_input.shape), path)
    if precision != FLOAT32:
        chosen = np.asarray(images, dtype=np.float32)[calibration_choice(len(images)) if len(images) else []]
        path.write_bytes(QUANTIZERS[name](path.read_bytes(), precision, chosen))
    return path
