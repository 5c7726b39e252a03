"""Runs an exported file on images with its own interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import MissingDependency

Floats = NDArray[np.float32]


def run_onnx(model: bytes, images: Floats) -> Floats:
    """`images`: (N, C, H, W), run one by one; returns (N, ...)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def tflite_interpreter(model: bytes, threads: int = 1) -> Any:
    """An interpreter with its tensors allocated."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependency("ai-edge-litert", "tflite") from error
    interpreter = Interpreter(model_content=model, num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def run_tflite(model: bytes, images: Floats) -> Floats:
    """`images`: (N, C, H, W), run one by one as (1, H, W, C); returns (N, ...). Integers are scaled at both ends."""
    interpreter = tflite_interpreter(model)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for image in images:
        interpreter.set_tensor(source["index"], _to_file(np.ascontiguousarray(image.transpose(1, 2, 0)[None]), source))
        interpreter.invoke()
        outputs.append(_from_file(interpreter.get_tensor(target["index"]), target))
    return np.concatenate(outputs)


def not_delegated(model: bytes) -> list[str] | None:
    """The operators of a .tflite file that XNNPACK leaves to LiteRT's own kernels; None where that is not told."""
    interpreter = tflite_interpreter(model)
    if not hasattr(interpreter, "_get_ops_details"):  # not part of its public interface
        return None
    details = interpreter._get_ops_details()
    delegates = [entry for entry in details if entry["op_name"] == "DELEGATE"]
    made = {int(value) for entry in delegates for value in entry["outputs"]}
    # What delegates read, and the file's outputs, must be made outside or handed out by a delegate.
    wanted = {int(value) for entry in delegates for value in entry["inputs"]}
    wanted |= {int(entry["index"]) for entry in interpreter.get_output_details()}
    found = []
    for entry in reversed([entry for entry in details if entry["op_name"] != "DELEGATE"]):
        if {int(value) for value in entry["outputs"]} & (wanted - made):
            wanted |= {int(value) for value in entry["inputs"]}
            found.append(str(entry["op_name"]))
    return found[::-1]


def _to_file(array: Floats, details: dict[str, Any]) -> NDArray[Any]:
    scale, zero = details["quantization"]
    kind = np.dtype(details["dtype"])
    if kind.kind == "f" or not scale:
        return array.astype(kind)
    limits = np.iinfo(kind)
    return np.asarray(np.clip(np.round(array / scale) + zero, limits.min, limits.max), kind)


def _from_file(array: NDArray[Any], details: dict[str, Any]) -> Floats:
    scale, zero = details["quantization"]
    if not scale:
        return array.astype(np.float32)
    return np.asarray((array.astype(np.float32) - zero) * scale, np.float32)
