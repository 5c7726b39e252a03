"""Functions from a user's own Python file, named as `path/to/file.py:function`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from amc_mobile.errors import InvalidInput


def names_a_function(spec: str) -> bool:
    """Whether `spec` reads `something.py:function`."""
    file, separator, function = spec.rpartition(":")
    return bool(separator) and file.endswith(".py") and function.isidentifier()


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `path/to/file.py:function` names. This runs the file.

    While the file runs, its folder can be imported from, as when Python starts it.
    Raises InvalidInput when there is no such file, when running it fails, or when it has no such function.
    """
    if not names_a_function(spec):
        raise InvalidInput(f"{spec!r} is not of the form path/to/file.py:function")
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InvalidInput(f"no file {file!r}, named by {spec!r}", next_step="give the path of an existing .py file")
    module = _run_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        listed = ", ".join(found) or "nothing callable"
        raise InvalidInput(f"{file} has no function {name!r}; it has {listed}", next_step=f"use {file}:FUNCTION")
    return function  # type: ignore[no-any-return]


def _run_file(path: Path) -> ModuleType:
    path = path.resolve()
    name = f"amc_mobile_user_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise InvalidInput(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and torch.export look their own module up while the file runs.
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InvalidInput(
            f"running {path} failed: {type(error).__name__}: {error}",
            next_step=f"try `python {path}` and fix the file",
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module
