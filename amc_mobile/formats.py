"""What is known about the formats of exported files and the number formats in them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amc_mobile.errors import MissingDependency

REMARK = b"INFO: "  # begins a line that says which delegate runs; warnings and errors begin otherwise
STDERR = 2  # C++ writes there, whatever sys.stderr is


def unprepared(model: bytes, threads: int = 1) -> Any:
    """An interpreter without tensors. Raises ValueError or RuntimeError for bytes that are no model."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependency("ai-edge-litert", "tflite") from error
    return Interpreter(model_content=model, num_threads=threads)


def prepare(interpreter: Any) -> None:
    """Allocates the tensors, which creates the delegate. Raises ValueError or RuntimeError."""
    with _without_remarks():
        interpreter.allocate_tensors()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Leaves out REMARK lines that C++ writes to stderr meanwhile; all others appear at the end.

    Its log level is compiled in: no variable and no function of the library changes it.
    """
    if sys.stderr is None:  # closed; another file may have its number
        yield
        return
    sys.stderr.flush()
    kept = os.dup(STDERR)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not line.startswith(REMARK):
                    os.write(STDERR, line)


FLOAT32 = "float32"
PRECISIONS = (FLOAT32, "int8", "float16")
MOST_LOST = 0.02  # of the accuracy; what a quantised file may lose without a warning
LEAST_SQNR_DB = 10.0  # below it the noise has more than a tenth of the signal's power
REMEDY = "try the other format, `--fp16` (.tflite only) or `--fp32`, or quantise a less pruned network"


def precision_problem(precision: str, metric: str, before: float, after: float, images: int, sqnr_db: float) -> str:
    """What a quantised file loses too much of; empty where it does not.

    `before`, `after`: accuracies of the float32 and of the quantised file on so many test images; one image less is no
    loss.
    """
    found = []
    if before - after > MOST_LOST and (before - after) * images > 1.5:
        found.append(
            f"{precision} costs {100 * (before - after):.1f} points of {metric}, more than {100 * MOST_LOST:.0f}"
        )
    if sqnr_db < LEAST_SQNR_DB:
        found.append(f"its SQNR is {sqnr_db:.1f} dB, below {LEAST_SQNR_DB:.0f} dB")
    return "; ".join(found)
