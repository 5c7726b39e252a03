"""Frozen dataclasses to JSON documents and back, with every key and type checked on the way in."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from amc_mobile.errors import InvalidInput

T = TypeVar("T")


def to_document(value: Any) -> Any:
    """JSON values only. A number that is not finite becomes null: JSON has none."""
    if is_dataclass(value):
        return {f.name: to_document(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_document(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_document(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def from_document(kind: type[T], document: object, where: str = "report") -> T:
    """Builds the dataclass `kind`. Raises InvalidInput, naming the place of a missing, unknown or wrong value."""
    built: T = _read(kind, document, where)
    return built


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(kind), value, where)
    if origin is Literal:
        _require(value in get_args(kind), where, value, " or ".join(map(str, get_args(kind))))
        return value
    if origin is tuple:
        _require(isinstance(value, list), where, value, "a list")
        return tuple(_read(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        _require(isinstance(value, dict), where, value, "an object")
        return {key: _read(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    return _read_scalar(kind, value, where)


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    named = [kind for kind in kinds if kind is not type(None)]
    if len(named) == 1:
        return _read(named[0], value, where)
    _require(type(value) in named, where, value, "a text, a number or a truth value")
    return value


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), where, value, "an object")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(value.keys() - known.keys())
    missing = sorted(
        name for name, f in known.items() if name not in value and f.default is MISSING and f.default_factory is MISSING
    )
    if unknown or missing:
        raise InvalidInput(
            f"{where}: unknown keys {', '.join(unknown) or 'none'}; missing keys {', '.join(missing) or 'none'}",
            next_step="run `amc-mobile report` again",
        )
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    _require(type(value) is kind, where, value, kind.__name__)
    return value


def _require(holds: bool, where: str, value: Any, wanted: str) -> None:
    if not holds:
        raise InvalidInput(f"{where} is {str(value)[:60]!r}, not {wanted}", next_step="run `amc-mobile report` again")
