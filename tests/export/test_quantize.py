from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn

from amc_mobile.export.converters import quantize_onnx, quantize_tflite, to_onnx, to_tflite
from amc_mobile.export.parity import run_onnx, run_tflite, sqnr_db
from amc_mobile.formats import open_tflite, precision_problem

SHAPE = (1, 3, 8, 8)
NEEDS_TFLITE = pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the tflite extra")
RUNTIMES = ["onnxruntime", pytest.param("tflite", marks=NEEDS_TFLITE)]
EXPORT = {"onnxruntime": to_onnx, "tflite": to_tflite}
QUANTIZE = {"onnxruntime": quantize_onnx, "tflite": quantize_tflite}
RUN = {"onnxruntime": run_onnx, "tflite": run_tflite}

# Images differ in contrast; the strongest first, where a running average has forgotten them at the end.
CONTRAST = np.geomspace(4, 0.2, 16).reshape(16, 1, 1, 1)
IMAGES = (CONTRAST * np.random.default_rng(0).standard_normal((16, *SHAPE[1:]))).astype(np.float32)


@cache
def exported(runtime: str) -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 5)
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        EXPORT[runtime](model, SHAPE, path)
        return path.read_bytes()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_clips_none_of_the_images_it_was_calibrated_on(runtime: str) -> None:
    file = exported(runtime)
    int8 = QUANTIZE[runtime](file, "int8", IMAGES)
    assert sqnr_db(RUN[runtime](int8, IMAGES), RUN[runtime](file, IMAGES)) > 25


@NEEDS_TFLITE
@pytest.mark.parametrize("step", [1, -1])
def test_the_ranges_of_an_int8_tflite_file_are_those_of_all_images_in_any_order(step: int) -> None:
    int8 = quantize_tflite(exported("tflite"), "int8", IMAGES[::step])
    scale, _ = open_tflite(int8).get_input_details()[0]["quantization"]
    assert scale == pytest.approx((IMAGES.max() - IMAGES.min()) / 255, rel=1e-5)


def test_what_quantising_may_cost_is_limited_in_points_and_in_noise() -> None:
    assert precision_problem("int8", "top-1", 0.869, 0.776, 540, 7.4) == (
        "int8 costs 9.3 points of top-1, more than 2; its SQNR is 7.4 dB, below 10 dB"
    )
    assert precision_problem("int8", "top-1", 0.869, 0.850, 540, 25.0) == ""
    assert precision_problem("int8", "top-1", 0.869, 0.848, 540, 25.0) == "int8 costs 2.1 points of top-1, more than 2"
    assert precision_problem("int8", "top-1", 1.0, 0.875, 8, 25.0) == ""  # one image of eight
