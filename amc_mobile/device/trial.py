"""A tiny network in each format, run on a phone to see whether a library works there at all."""

from __future__ import annotations

import base64
import zlib

from amc_mobile.device.benchmark_model_passes import BenchmarkModelPasses
from amc_mobile.device.phone_device import PhoneDevice
from amc_mobile.device.runtime_library import BENCHMARK_MODEL

# The sum of two inputs, opset 13, as the package onnx writes it.
_ONNX = (
    "CAc6WQoQCgFhCgFiEgNzdW0iA0FkZBIEdGlueVoTCgFhEg4KDAgBEggKAggBCgIIBFoTCgFiEg4KDAgBEggKAggBCgIIBGIVCgNzdW0SDgoMCAES"
    "CAoCCAEKAggEQgQKABAN"
)
# The sum of two images of 8x8 pixels, packed by zlib.
_TFLITE = (
    "eNqTYGBgCHHzMWZg4GMQYRBg4GHgAIqwAHkMQB4DgwQQazAyMDADaUawDAPDg3///zNC5XnguliAJEQsAGQmEMdA9YgwgAAfmAap5UYyHwi4Yfos"
    "/kPMZYJiBqh+bGIg92QAsQHUTRuAejnA7oHIFZfmgsVBajmgGMS/gaQOJJcEFUdXxwMNCQaov5D1JOLQwwhns4D5ANORFiY="
)


def tiny_model(runtime: str) -> bytes:
    if runtime == "onnxruntime":
        return base64.b64decode(_ONNX)
    return zlib.decompress(base64.b64decode(_TFLITE))


def try_out(phone: PhoneDevice) -> None:
    """Runs a tiny network with the phone's library. Raises DeviceError naming what fails."""
    model = tiny_model(phone.library.runtime)
    if phone.library.runtime == BENCHMARK_MODEL:
        BenchmarkModelPasses(phone).try_out(model)
    else:
        phone.try_out(model)
