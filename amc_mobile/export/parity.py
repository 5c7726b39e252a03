"""Does an exported file compute what torch computed?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import InvalidInput
from amc_mobile.formats import BY_SUFFIX, TFLITE, open_onnx, open_tflite

Floats = NDArray[np.float32]


def run_onnx(model: bytes, images: Floats) -> Floats:
    """`images`: (N, C, H, W), run one by one; returns (N, ...). Several inputs lie behind each other in
    (N, numbers, ...), several outputs in (N, numbers)."""
    session = open_onnx(model)
    inputs = session.get_inputs()
    rows = []
    for image in images:
        parts = [image[None]] if len(inputs) == 1 else parts_of(image, [tuple(source.shape) for source in inputs])
        given = session.run(None, {source.name: part for source, part in zip(inputs, parts, strict=True)})
        rows.append(_joined([np.asarray(output, np.float32) for output in given]))
    return np.concatenate(rows)


def parts_of(image: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    """Arrays of these `shapes`, the batch of one included, that lie behind each other in `image`."""
    sizes = [math.prod(shape) for shape in shapes]
    cuts = np.split(image.reshape(-1), np.cumsum(sizes)[:-1])
    return [np.ascontiguousarray(part.reshape(shape)) for part, shape in zip(cuts, shapes, strict=True)]


def _joined(outputs: list[Floats]) -> Floats:
    """One output as it is, several behind each other. All with a batch of one."""
    return outputs[0] if len(outputs) == 1 else np.concatenate([output.reshape(1, -1) for output in outputs], 1)


def run_tflite(model: bytes, images: Floats) -> Floats:
    """`images`: (N, C, H, W), run one by one as (1, H, W, C); returns (N, ...), maps as (N, C, H, W). Integers are
    scaled at both ends. Several inputs and outputs as in `run_onnx`."""
    interpreter = open_tflite(model)
    sources, targets = tflite_ends(interpreter)
    rows = []
    for image in images:
        for source, part in zip(sources, tflite_inputs(image, sources), strict=True):
            interpreter.set_tensor(source["index"], _to_file(part, source))
        interpreter.invoke()
        outputs = [_from_file(interpreter.get_tensor(target["index"]), target) for target in targets]
        rows.append(_joined([o.transpose(0, 3, 1, 2) if o.ndim == 4 else o for o in outputs]))
    return np.concatenate(rows)


def tflite_ends(interpreter: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs in the order of the network's own: that of a shipped file; a converter numbers them."""
    signatures = interpreter.get_signature_list()
    sides = (interpreter.get_input_details(), interpreter.get_output_details())
    if not signatures or max(map(len, sides)) == 1:
        return sides
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    ends = (runner.get_input_details(), runner.get_output_details())
    if not all(NUMBERED.fullmatch(name) for side in ends for name in side):
        return sides
    return tuple([side[name] for name in sorted(side, key=_number)] for side in ends)  # type: ignore[return-value]


NUMBERED = re.compile(r"(?:args|output)_([0-9]+)")  # by LiteRT's converter


def _number(name: str) -> int:
    return int(NUMBERED.fullmatch(name)[1])  # type: ignore[index]


def tflite_inputs(image: Floats, sources: Sequence[dict[str, Any]]) -> list[Floats]:
    """What a file's inputs are given, channels last, for one image (C, H, W) or for several inputs in a row."""
    if len(sources) == 1:
        return [np.ascontiguousarray(image.transpose(1, 2, 0)[None])]
    shapes = [tuple(int(n) for n in source["shape"]) for source in sources]
    first = [(shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape for shape in shapes]
    parts = parts_of(image, first)
    return [np.ascontiguousarray(p.transpose(0, 2, 3, 1)) if p.ndim == 4 else p for p in parts]


def not_delegated(model: bytes) -> list[str] | None:
    """The operators of a .tflite file that XNNPACK leaves to LiteRT's own kernels; None where LiteRT does not say."""
    interpreter = open_tflite(model)
    if not hasattr(interpreter, "_get_ops_details"):  # not part of its public interface
        return None
    details = interpreter._get_ops_details()
    delegates = [entry for entry in details if entry["op_name"] == "DELEGATE"]
    made = {int(value) for entry in delegates for value in entry["outputs"]}
    # What delegates read, and the file's outputs, must be made outside or handed out by a delegate.
    needed = {int(value) for entry in delegates for value in entry["inputs"]}
    needed |= {int(entry["index"]) for entry in interpreter.get_output_details()}
    names = []
    for entry in reversed([entry for entry in details if entry["op_name"] != "DELEGATE"]):
        if {int(value) for value in entry["outputs"]} & (needed - made):
            needed |= {int(value) for value in entry["inputs"]}
            names.append(str(entry["op_name"]))
    return names[::-1]


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


MOST_DB = 200.0
Classes = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Parity:
    """An exported file against torch on the same images."""

    max_abs: float  # largest difference of any output
    largest_logit: float  # of torch, to judge `max_abs` by
    top1_agreement: float  # share of images (of anchors, for detectors) with the same first class
    images: int

    def to_document(self) -> dict[str, Any]:
        return asdict(self)


def run_file(path: Path | str, images: Floats) -> Floats:
    """(N, ...) float32 outputs of a .tflite or .onnx file, int8 ones too, for normalised `images` (N, C, H, W).

    amc.run_file("model.tflite", images.numpy()).argmax(1)
    """
    path = Path(path)
    if path.suffix not in BY_SUFFIX:
        raise InvalidInput(f"{path}: not a {' or '.join(BY_SUFFIX)} file")
    run = run_tflite if path.suffix == TFLITE.suffix else run_onnx
    return run(path.read_bytes(), np.asarray(images, dtype=np.float32))


def first_class(outputs: Floats) -> Classes:
    """(N,) of logits (N, classes)."""
    classes: Classes = outputs.argmax(axis=1)
    return classes


def parity(outputs: Floats, reference: Floats, classes: Callable[[Floats], Classes] = first_class) -> Parity:
    """`outputs` of the file and `reference` of torch, both (N, ...); `classes` reads what they say off them."""
    return Parity(
        max_abs=float(np.abs(outputs - reference).max()),
        largest_logit=float(np.abs(reference).max()),
        top1_agreement=float((classes(outputs) == classes(reference)).mean()),
        images=len(reference),
    )


def sqnr_db(outputs: Floats, reference: Floats) -> float:
    """Signal over quantisation noise of `outputs`, in dB, up to MOST_DB where they are equal."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(np.asarray(outputs, np.float64) - reference).sum())
    return 10 * math.log10(signal / noise) if signal and noise else MOST_DB
