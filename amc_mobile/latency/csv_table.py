"""Latency tables as CSV, for people and pandas: one line per kernel and conditions, made here or by other tools."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from amc_mobile.device.conditions import FOREIGN_PROTOCOL, Conditions
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.latency.measurement import KernelMeasurement, Pass
from amc_mobile.latency.shapes import KernelShape
from amc_mobile.latency.table import LatencyTable
from amc_mobile.latency.table_rows import Contents, StoredPass

CSV_COLUMNS = (
    "conditions", "device", "soc", "os", "runtime", "runtime_version", "threads", "key", "kernel", "ms", "passes",
    "samples", "flags",
)  # fmt: skip


def to_csv(table: LatencyTable) -> str:
    """One line per kernel and conditions, the slowest first; `ms` is the lowest 20th percentile over passes."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for conditions in table.conditions():
        for kernel in sorted(table.kernels(conditions).values(), key=lambda k: -k.low_ms):
            writer.writerow(_csv_row(kernel))
    return out.getvalue()


def from_csv(
    path: Path, text: str, conditions: Conditions, *, kernel: Sequence[str], ms: str, run: str | None = None,
    shape: Mapping[str, str] | None = None, network: str | None = None,
) -> Contents:  # fmt: skip
    """A table of another tool. `kernel`: the columns that together name a kernel; `ms`: that of its milliseconds.

    With `run`, a kernel may stand there once per value of that column; else once. `shape`: field of KernelShape ->
    column; plans can then be predicted. `network`: the column that says which whole model a kernel is part of. Raises
    CorruptFile with the line for missing columns, numbers that cannot be latencies or sizes and kernels that stand
    there twice.
    """
    reader = csv.DictReader(io.StringIO(text), strict=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    kernels: dict[str, tuple[str, Mapping[str, Any]]] = {}
    passes: list[StoredPass] = []
    seen: dict[tuple[str, str], int] = {}
    try:
        shape = shape or {}
        wanted = dict.fromkeys((*kernel, ms, *shape.values(), *(name for name in (run, network) if name)))
        missing = [name for name in wanted if name not in (reader.fieldnames or [])]
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
                    told = KernelShape.from_row({name: row[column] or "" for name, column in shape.items()})
                except InvalidInput as error:
                    raise CorruptFile(path, f"line {number}: {error.message}") from error
                document["shape"] = told.to_document()
            if network:
                document["network"] = row[network] or ""
            key = hashlib.sha256(json.dumps(document, allow_nan=False).encode()).hexdigest()
            which = (key, row[run] if run else "")
            if which in seen:
                raise CorruptFile(
                    path, f"line {number}: {label} stands in line {seen[which]} already",
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


def _csv_row(kernel: KernelMeasurement) -> dict[str, Any]:
    c = kernel.conditions
    return {
        "conditions": c.key[:12], "device": c.device, "soc": c.soc, "os": c.os, "runtime": c.runtime,
        "runtime_version": c.runtime_version, "threads": c.threads, "key": kernel.key, "kernel": kernel.label,
        "ms": repr(kernel.low_ms), "passes": len(kernel.passes), "samples": sum(map(len, kernel.samples_ms)),
        "flags": " ".join(kernel.flags),
    }  # fmt: skip


def _number(path: Path, line: int, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise CorruptFile(path, f"line {line}: {text!r} is not a number") from error
    if not math.isfinite(value) or value <= 0:
        raise CorruptFile(path, f"line {line}: a latency of {text} ms is not possible")
    return value
