"""Files written whole or not at all, lock files, and checked readers of JSON and TOML.

`to_document` and `from_document` convert frozen dataclasses to JSON values and back, every key and type checked.
JSON and TOML come from files, phones and other people: `parse_json` and `read_toml` limit their size, depth and
numbers. `parse_json` says in a ValueError what is wrong; its callers add the file and the next step.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
MAX_DOCUMENT_BYTES = 256 << 20  # the largest of ours, a log of all plans measured, takes some megabytes
MAX_TEXT_BYTES = 1 << 30  # of tables, which are read line by line
MAX_TOML_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_DIGITS = 40  # an integer of thousands of digits takes quadratic time
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_NAME_BYTES = 255  # of a file, on every file system in use
DELETE = "delete the file and run the step again"
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)  # or a whole string, which may hold any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it takes `path`'s place only when the block succeeds.

    A process killed at any moment leaves the old file or the new one, never half of either.
    """
    # Not tempfile: its files are readable by their owner alone, whatever the umask allows.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _named(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("xb").close()
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Adds `text` to the end of a file and sees that it is on the disk."""
    with _named(path), path.open("ab", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())


@contextmanager
def _named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the system that name no file, or a temporary one, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename == str(temporary):
            error.filename = str(path)
        raise


@contextmanager
def held(path: Path, refusal: Callable[[str], AmcMobileError]) -> Iterator[None]:
    """Holds the lock file `path` for this process. The system lets go of it when the process ends, however it ends.

    Raises what `refusal` makes of the holder: "process 4711 on HOST".
    """
    from filelock import lock_descriptor  # not before a lock is taken: it costs a quarter of the start-up

    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            if not lock_descriptor(file.fileno(), blocking=False):
                file.seek(0)
                raise refusal(file.read(200).strip() or "another process")
            if not _is_at(path, file):
                continue  # the last holder deleted the file in between
            file.truncate(0)
            with _named(path):  # unbuffered: a full disk is met here, not once more when the file is closed
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, document: dict[str, Any], *, format_version: int) -> None:
    """Writes `document` with its `format_version` first. NaN and infinity are refused (ValueError)."""
    versioned = {"format_version": format_version, **document}
    write_text(path, json.dumps(versioned, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *, format_version: int, next_step: str = DELETE) -> dict[str, Any]:
    """Reads what `write_json` wrote. Raises CorruptFile for broken text and for newer versions."""
    try:
        document = parse_json(read_bytes(path, MAX_DOCUMENT_BYTES))
    except ValueError as error:
        raise CorruptFile(path, f"not JSON ({error})", next_step=next_step) from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise CorruptFile(path, "has no format_version", next_step=next_step)
    if version > format_version:
        raise CorruptFile(
            path, f"has format {version}, this version reads up to {format_version}", next_step="update amc-mobile"
        )
    return Document(path, document, next_step)


class Document(dict[str, Any]):
    """An object of a file's JSON: a key that it lacks is a CorruptFile, as `document[key]` finds."""

    def __init__(self, path: Path, values: Mapping[str, Any], next_step: str) -> None:
        super().__init__({key: _of_file(path, value, next_step) for key, value in values.items()})
        self._path, self._next_step = path, next_step

    def __missing__(self, key: str) -> NoReturn:
        raise CorruptFile(self._path, f"has no {key}", next_step=self._next_step)


def _of_file(path: Path, value: Any, next_step: str) -> Any:
    if isinstance(value, dict):
        return Document(path, value, next_step)
    return [_of_file(path, item, next_step) for item in value] if isinstance(value, list) else value


LATER = {"later": True}  # metadata of a dataclass's field that older versions had not


def to_document(value: Any) -> Any:
    """JSON values only. A number that is not finite becomes null: JSON has none.

    Fields of LATER are left out at their default: what an older version wrote is written again as it was. Objects with
    a `to_document` of their own give that.
    """
    if hasattr(value, "to_document"):
        return value.to_document()
    if is_dataclass(value):
        return {
            f.name: to_document(getattr(value, f.name))
            for f in fields(value)
            if not (f.metadata.get("later") and getattr(value, f.name) == f.default)
        }
    if isinstance(value, Mapping):
        return {str(key): to_document(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_document(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def from_document(kind: type[T], document: object, where: str, *, next_step: str = DELETE) -> T:
    """Builds the dataclass `kind` from what `to_document` gave; a field with a default may be missing.

    A class with a `from_document` of its own reads its part. `where`: what the document is called in messages.
    Raises InvalidInput, naming the place of a missing, unknown or wrong value.
    """
    try:
        built: T = _read(kind, document, where)
    except ValueError as error:
        raise InvalidInput(str(error), next_step=next_step) from error
    except InvalidInput as error:  # of a dataclass that checks its values
        raise InvalidInput(f"{where}: {error.message}", next_step=error.next_step or next_step) from error
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
    if hasattr(kind, "from_document"):
        return kind.from_document(value)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    return _read_scalar(kind, value, where)


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    named = [kind for kind in kinds if kind is not type(None)]
    if len(named) > 1 and is_dataclass(named[0]) and isinstance(value, dict):
        named = [kind for kind in named if value.keys() <= {f.name for f in fields(kind)}] or named
        return _read(named[0], value, where)
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
        raise ValueError(
            f"{where}: unknown keys {', '.join(unknown) or 'none'}; missing keys {', '.join(missing) or 'none'}"
        )
    hints = _hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    _require(type(value) is kind, where, value, kind.__name__)
    return value


def _require(holds: bool, where: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{where} is {str(value)[:60]!r}, not {expected}")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Raises CorruptFile where it cannot be read or is larger than `max_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CorruptFile(path, f"cannot be read ({why})", next_step="check the path and its permissions") from error
    if len(content) > max_bytes:
        raise CorruptFile(path, f"is larger than {max_bytes >> 20} MiB", next_step="check that it is the right file")
    return content


def read_lines(path: Path, *, next_step: str) -> list[str]:
    """The lines of a text file. Raises CorruptFile."""
    try:
        return read_bytes(path, MAX_TEXT_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFile(path, "is not text", next_step=next_step) from error


def parse_json(content: str | bytes) -> Any:
    """A JSON value. Raises ValueError for text that is none, and beyond the limits of depth and numbers."""
    if len(content) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    _check_depth(text)
    try:
        document = _DECODER.decode(text)
        return _encodable(document) if _SURROGATE.search(text) else document
    except RecursionError as error:  # a caller deep in the stack leaves less than MAX_DEPTH
        raise ValueError("nested too deeply") from error


def parse_object(content: str | bytes) -> dict[str, Any]:
    """As `parse_json`; raises ValueError for what is no object, too."""
    document = parse_json(content)
    if not isinstance(document, dict):
        raise ValueError("no object")
    return document


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file that a person wrote; its integers have at most 64 bits. Raises InvalidConfig."""
    try:
        document = tomllib.loads(read_bytes(path, MAX_TOML_BYTES).decode("utf-8"))
        _check_values(document, MAX_DEPTH)
    except CorruptFile as error:
        raise InvalidConfig(error.message, next_step="check the file") from error
    except RecursionError as error:
        raise InvalidConfig(f"{path}: not TOML: nested too deeply", next_step="correct that line") from error
    except ValueError as error:
        raise InvalidConfig(f"{path}: not TOML: {error}", next_step="correct that line") from error
    return document


def is_file(path: Path) -> bool:
    """As `Path.is_file`; False for a path that no file system takes, too."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_file_name(text: object) -> bool:
    """Whether `text`, from a document, names a file within a folder: no path, nothing that a file system refuses."""
    if not isinstance(text, str) or not text.isprintable() or text in ("", ".", "..") or set(text) & set("/\\"):
        return False
    return len(text.encode()) <= MAX_NAME_BYTES  # printable text holds no surrogates


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKETS.finditer(text):
        sign = match[0]
        depth += (sign in ("[", "{")) - (sign in ("]", "}"))
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")


def _check_values(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_values(item, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number has more than 64 bits")


def _encodable(value: Any) -> Any:
    """`value` with a ? for each half of a surrogate pair, which no file, terminal or database takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MAX_DIGITS]} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_no_constant)
