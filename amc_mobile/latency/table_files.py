"""Latency tables as files: bundles of JSON lines, CSV, and the tables of other tools.

Bundles: the first line holds format, version and counts, the last one the SHA-256 of the lines between: a file that
was cut off or edited is refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc_mobile.device.conditions import FOREIGN_PROTOCOL, Conditions
from amc_mobile.device.device import Pass
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.latency.measurement import model_key
from amc_mobile.latency.table import Adoption, Contents, LatencyTable, StoredPass
from amc_mobile.store import parse_object

if TYPE_CHECKING:
    from amc_mobile.kernels.kernel import Kernel


_SIZE = re.compile(r"[0-9]{1,9}")
CONVOLUTIONS = ("conv", "conv1x1", "depthwise")
OPERATORS = {
    "conv": ("conv2d", "convolution", "convkxk"),
    "conv1x1": ("pw", "pointwise"),
    "depthwise": ("dw", "dwconv", "depthwiseconv", "depthwiseconv2d", "depthwiseconvolution"),
    "linear": ("fc", "dense", "gemm", "matmul", "fullyconnected"),
    "pool": (
        "averagepool2d", "averagepool", "avgpool", "maxpool2d", "maxpool", "mean", "reducemean", "globalaveragepool",
    ),
    "add": ("sum", "eltwise"),
}  # fmt: skip
_OPERATOR_OF = {word: name for name, words in OPERATORS.items() for word in (name, *words)}


@dataclass(frozen=True)
class KernelShape:
    """What decides a kernel's latency besides the device. Maps and windows are square: their height counts.

    `operator`: a key of OPERATORS, or the tool's own word in small letters without signs. `window`: 0 where it is
    unknown; a window of 1 makes a "conv" a "conv1x1".
    """

    operator: str
    in_channels: int
    out_channels: int
    out_size: int = 1
    stride: int = 1
    window: int = 0

    @classmethod
    def of(cls, kernel: Kernel) -> KernelShape:
        main = kernel.main
        operator = operator_named(main.kind)
        if operator not in CONVOLUTIONS:
            return cls(operator, main.in_channels, main.out_channels, main.out_map[0] if main.out_map else 1)
        return cls(
            operator, main.in_channels, main.out_channels, main.out_map[0] if main.out_map else 1,
            main.strides[0] if main.strides else 1, main.window[0] if operator != "conv1x1" else 0,
        )  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> KernelShape:
        """`row`: field -> text. Raises InvalidInput for what is no positive number."""
        numbers: dict[str, int] = {}
        for name in SHAPE_FIELDS[1:]:
            if name not in row:
                continue
            text = row[name]
            if not _SIZE.fullmatch(text) or (int(text) < 1 and name != "window"):
                raise InvalidInput(f"{name} {text!r} is not a positive number")
            numbers[name] = int(text)
        operator = operator_named(row["operator"])
        if operator == "conv" and numbers.get("window") == 1:
            operator = "conv1x1"
        if operator not in CONVOLUTIONS:
            numbers["stride"] = 1
        if operator not in ("conv", "depthwise"):
            numbers["window"] = 0
        return cls(operator, **numbers)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> KernelShape:
        """Raises InvalidInput where that is no shape."""
        try:
            return cls.from_row({key: str(value) for key, value in document.items()})
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"not the shape of a kernel: {document!r}") from error

    def to_document(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def place(self) -> KernelShape:
        """The same with no channels: kernels of one place differ in their channels only."""
        return replace(self, in_channels=0, out_channels=0)

    @property
    def channels(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels

    @property
    def label(self) -> str:
        window = f" {self.window}x{self.window}" if self.window else ""
        step = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.operator}{window}{step} {self.in_channels}->{self.out_channels} @{self.out_size}x{self.out_size}"


SHAPE_FIELDS = tuple(field.name for field in fields(KernelShape))
NEEDED_FIELDS = ("operator", "in_channels", "out_channels")


def operator_named(word: str) -> str:
    plain = "".join(letter for letter in word.lower() if letter.isalnum())
    return _OPERATOR_OF.get(plain, plain)


FORMAT = "amc-mobile latency table"
FORMAT_VERSION = 2  # 1: conditions, kernels, models, passes; 2: adoptions too
READABLE = (1, 2)
AGAIN = "export the table again"


def to_lines(contents: Contents) -> list[str]:
    """The lines of a bundle."""
    body = [_line(kind="conditions", key=k, document=c.to_document()) for k, c in contents.conditions.items()]
    body += [_line(kind="kernel", key=k, label=v[0], document=v[1]) for k, v in contents.kernels.items()]
    body += [_line(kind="model", key=k, template=v[0], widths=v[1]) for k, v in contents.models.items()]
    body += [
        _line(
            kind="pass", conditions=p.conditions, subject=p.subject, samples_ms=p.one.samples_ms, busy=p.one.busy,
            warmup_runs=p.warmup_runs, created=p.created,
        )
        for p in contents.passes
    ]  # fmt: skip
    body += [_line(kind="adoption", **asdict(adopted)) for adopted in contents.adoptions]
    head = _line(format=FORMAT, format_version=FORMAT_VERSION, lines=len(body), passes=len(contents.passes))
    return [head, *body, _line(kind="end", sha256=_digest(body))]


def from_lines(path: Path, lines: Sequence[str]) -> Contents:
    """What `to_lines` wrote, now or in an older version. Raises CorruptFile, with the line, for anything else.

    `path`: for messages.
    """
    head = _document(path, 1, lines[0]) if lines else {}
    if head.get("format") != FORMAT:
        raise CorruptFile(path, "is no bundle of a latency table", next_step=AGAIN)
    version = head.get("format_version")
    if version not in READABLE:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        why = f"has format {version}, this version reads {FORMAT_VERSION}"
        raise CorruptFile(path, why, next_step="update amc-mobile" if newer else AGAIN)
    body = list(lines[1:-1])
    end = _document(path, len(lines), lines[-1])
    if end.get("kind") != "end" or len(body) != head.get("lines"):
        raise CorruptFile(path, f"was cut off: {len(body)} of {head.get('lines')} lines are there", next_step=AGAIN)
    if end.get("sha256") != _digest(body):
        raise CorruptFile(path, "was changed after it was written", next_step=AGAIN)
    conditions: dict[str, Conditions] = {}
    kernels: dict[str, tuple[str, Mapping[str, Any]]] = {}
    models: dict[str, tuple[str, tuple[int, ...]]] = {}
    passes: list[StoredPass] = []
    adoptions: dict[str, Adoption] = {}
    for number, text in enumerate(body, start=2):
        row = _document(path, number, text)
        try:
            kind, key = row["kind"], str(row.get("key", ""))
            if kind == "conditions":
                found = Conditions.from_document(row["document"])
                _once(conditions, key, key == found.key)
                conditions[key] = found
            elif kind == "kernel":
                document = row["document"]
                _once(kernels, key, bool(key) and isinstance(document, dict))
                kernels[key] = (str(row["label"]), document)
            elif kind == "model":
                template, widths = str(row["template"]), tuple(_count(width) for width in row["widths"])
                _once(models, key, key == model_key(template, widths))
                models[key] = (template, widths)
            elif kind == "pass":
                place = str(row["conditions"]), str(row["subject"])
                made = Pass(tuple(row["samples_ms"]), bool(row["busy"]))
                passes.append(StoredPass(*place, made, _count(row["warmup_runs"]), str(row["created"])))
            elif kind == "adoption":
                place = str(row["conditions"]), str(row["source"])
                adopted = Adoption(*place, _ratio(row["ratio"]), str(row["created"]))
                pair = f"{adopted.source} for {adopted.conditions}"
                _once(adoptions, pair, bool(adopted.source))
                adoptions[pair] = adopted
            else:
                raise ValueError(f"unknown kind {kind!r}")
        except KeyError as error:
            raise CorruptFile(path, f"line {number}: no {error}", next_step=AGAIN) from error
        except (TypeError, ValueError, InvalidInput) as error:
            raise CorruptFile(path, f"line {number}: {error}", next_step=AGAIN) from error
    return Contents(conditions, kernels, models, passes, list(adoptions.values()))


def _once(known: Mapping[str, object], key: str, fits: bool) -> None:
    if key in known:
        raise ValueError(f"key {key[:12]} is there twice")
    if not fits:
        raise ValueError(f"key {key[:12]!r} does not belong to its document")


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:40]} is no count")
    return value


def _ratio(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"kernels cannot be adopted times {value!r}")
    return float(value)


def _line(**document: Any) -> str:
    return json.dumps(document, allow_nan=False)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _document(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise CorruptFile(path, f"line {number} is not a JSON object ({error})", next_step=AGAIN) from error


DESCRIBED = ("device", "soc", "os", "runtime", "runtime_version", "threads")  # of the conditions, in a CSV file
CSV_COLUMNS = ("conditions", *DESCRIBED, "key", "kernel", *SHAPE_FIELDS, "layer", "ms", "passes", "samples", "flags")


def to_csv(table: LatencyTable, layers: Mapping[str, Sequence[str]]) -> str:
    """One line per kernel and conditions, the slowest first; `ms` is the lowest 20th percentile over passes.

    `layers`: by label of a kernel, the layers that are known to run it. A `window` of 0 is unknown or has no meaning.
    """
    import pandas as pd

    frames = [pd.DataFrame(columns=CSV_COLUMNS)]  # of an empty table
    shapes = {key: _shape_columns(document) for key, document in table.kernel_documents().items()}
    for conditions in table.conditions():
        described = {name: getattr(conditions, name) for name in DESCRIBED}
        kernels = table.to_frame(conditions).rename(columns={"low_ms": "ms"})
        for name in SHAPE_FIELDS:
            kernels[name] = [shapes[key].get(name) for key in kernels["key"]]
        kernels["layer"] = [" ".join(layers.get(label, ())) for label in kernels["kernel"]]
        frames.append(kernels.assign(conditions=conditions.key[:12], **described))
    text: str = pd.concat(frames[1:] or frames).to_csv(columns=CSV_COLUMNS, index=False, lineterminator="\n")
    return text


def _shape_columns(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of a kernel's document; empty where an imported table does not have the shape."""
    from amc_mobile.kernels.kernel import Kernel

    if "operators" not in document:
        return dict(document.get("shape", {}))
    return KernelShape.of(Kernel.from_document(document)).to_document()


def from_csv(
    path: Path, text: str, conditions: Conditions, *, kernel: Sequence[str], ms: str, run: str | None = None,
    shape: Mapping[str, str] | None = None, network: str | None = None,
) -> Contents:  # fmt: skip
    """A table of another tool. `kernel`: the columns that together name a kernel; `ms`: that of its milliseconds.

    With `run`, a kernel may occur once per value of that column; else once. `shape`: field of KernelShape ->
    column; plans can then be predicted. `network`: the column that says which whole model a kernel is part of. Raises
    CorruptFile with the line for missing columns, numbers that cannot be latencies or sizes and kernels that occur
    twice.
    """
    reader = csv.DictReader(io.StringIO(text), strict=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    kernels: dict[str, tuple[str, Mapping[str, Any]]] = {}
    passes: list[StoredPass] = []
    seen: dict[tuple[str, str], int] = {}
    try:
        shape = shape or {}
        columns = dict.fromkeys((*kernel, ms, *shape.values(), *(name for name in (run, network) if name)))
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            have = ", ".join(reader.fieldnames or [])
            raise CorruptFile(path, f"has no column {', '.join(missing)}", next_step=f"its columns are: {have}")
        for number, row in enumerate(reader, start=2):
            named = {name: row[name] for name in kernel}
            if any(value in (None, "") for value in named.values()):
                raise CorruptFile(path, f"line {number}: an empty {' or '.join(kernel)}")
            label = " ".join(named.values()) if len(named) == 1 else " ".join(f"{k}={v}" for k, v in named.items())
            document: dict[str, Any] = {"foreign": named}
            if shape:
                try:
                    described = KernelShape.from_row({name: row[column] or "" for name, column in shape.items()})
                except InvalidInput as error:
                    raise CorruptFile(path, f"line {number}: {error.message}") from error
                document["shape"] = described.to_document()
            if network:
                document["network"] = row[network] or ""
            key = hashlib.sha256(json.dumps(document, allow_nan=False).encode()).hexdigest()
            which = (key, row[run] if run else "")
            if which in seen:
                raise CorruptFile(
                    path, f"line {number}: {label} is in line {seen[which]} already",
                    next_step="name more columns with --kernel, or the column of repeated runs with --run",
                )  # fmt: skip
            seen[which] = number
            kernels[key] = (label, document)
            passes.append(StoredPass(conditions.key, key, Pass((_number(path, number, row[ms]),)), 0, now))
    except csv.Error as error:
        raise CorruptFile(path, f"is no CSV ({error})") from error
    if not passes:
        raise CorruptFile(path, "has no rows")
    return Contents({conditions.key: conditions}, kernels, {}, passes)


def foreign_conditions(device: str, **known: Any) -> Conditions:
    """Conditions of measurements made by another tool; what is not known says so."""
    unknown = Conditions(
        device, "unknown", "unknown", "unknown", "unknown", "", "unknown", 1, "unknown", "unknown", FOREIGN_PROTOCOL
    )
    return replace(unknown, **{key: value for key, value in known.items() if value is not None})


def _number(path: Path, line: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise CorruptFile(path, f"line {line}: {text!r} is not a number") from error
    if not math.isfinite(value) or value <= 0:
        raise CorruptFile(path, f"line {line}: a latency of {text} ms is not possible")
    return value
