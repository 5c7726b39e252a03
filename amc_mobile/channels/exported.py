"""The `torch.export` graph of a network, with errors that name the module at fault."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from amc_mobile.errors import UnsupportedLayer


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The program of a copy of `model` in evaluation mode, with static shapes.

    Raises UnsupportedLayer naming the innermost module where the network fails to run or cannot be traced.
    """
    clone = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            clone(example)
    except Exception as error:
        where, line = where_it_failed(clone, error)
        raise UnsupportedLayer(
            where,
            f"does not run on an input of shape {tuple(example.shape)}{line}: {_first_line(error)}",
            next_step="check the network and its input size",
        ) from error
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(clone, (example,), strict=False)
    except Exception as error:  # torch.export has no common base class for what it cannot trace
        where, line = where_it_failed(clone, error)
        raise UnsupportedLayer(
            where,
            f"torch.export cannot trace it{line}: {_first_line(error)}",
            next_step="replace control flow that depends on the data by tensor operators",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints the whole graph when it fails; the error says it shorter. Its warnings are about
    how it copies a recurrent layer's weights."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def where_it_failed(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """(path of the innermost module of `model` that ran, " at `source` (file, line N)"); ("", "") where not known."""
    paths = {id(module): name for name, module in model.named_modules()}
    for cause in _causes(error):
        found: tuple[str, str] | None = None
        for frame in _frames(cause.__traceback__):
            owner = frame.tb_frame.f_locals.get("self")
            code = frame.tb_frame.f_code
            # torch's own call machinery also has the module as `self`; the line of interest is in its `forward`.
            if (
                isinstance(owner, nn.Module)
                and id(owner) in paths
                and not code.co_filename.endswith("nn/modules/module.py")
            ):
                summary = traceback.extract_tb(frame, limit=1)
                text = summary[0].line if summary else ""
                place = f"{Path(code.co_filename).name}, line {frame.tb_lineno}"
                found = paths[id(owner)], f" at `{text}` ({place})" if text else ""
        if found:
            return found
    return "", ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it, the root cause first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return reversed(chain)


def _frames(start: TracebackType | None) -> Iterator[TracebackType]:
    while start is not None:
        yield start
        start = start.tb_next


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
