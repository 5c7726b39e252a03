"""LiteRT's interpreter without its remarks: measuring and checking files share it."""

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
