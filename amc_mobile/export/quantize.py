"""Quantise an exported file: int8 with scales from calibration images, or float16 weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amc_mobile.errors import InvalidConfig, InvalidInput, UnsupportedLayer, first_line
from amc_mobile.export.converters import quiet
from amc_mobile.export.parity import Floats, parts_of, tflite_ends, tflite_inputs
from amc_mobile.formats import FLOAT32, ONNX, PRECISIONS, TFLITE, open_tflite

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
