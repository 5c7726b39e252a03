"""What both converters need: silence, and the cause of a failure in one line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


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


def first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
