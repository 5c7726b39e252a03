"""Does an exported file compute what torch computed?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.errors import InvalidInput
from amc_mobile.export.interpret import Floats, run_onnx, run_tflite

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


def file_logits(path: Path, images: Floats) -> Floats:
    """(N, ...) outputs of a .tflite or .onnx file for `images` (N, C, H, W)."""
    if path.suffix not in (".tflite", ".onnx"):
        raise InvalidInput(f"{path}: not a .tflite or .onnx file")
    run = run_tflite if path.suffix == ".tflite" else run_onnx
    return run(path.read_bytes(), np.asarray(images, dtype=np.float32))


def first_class(outputs: Floats) -> Classes:
    """(N,) of logits (N, classes)."""
    found: Classes = outputs.argmax(axis=1)
    return found


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
