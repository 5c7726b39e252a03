"""A latency table as a bundle: JSON lines that are read back whole.

The first line holds format, version and counts, the last one the SHA-256 of the lines between: a file that was cut off
or edited is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.latency.measurement import Pass
from amc_mobile.latency.requests import model_key
from amc_mobile.latency.table_rows import Adoption, Contents, StoredPass
from amc_mobile.store import parse_object

FORMAT = "amc-mobile latency table"
FORMAT_VERSION = 2  # 1: conditions, kernels, models, passes; 2: adoptions besides
READABLE = (1, 2)
AGAIN = "export the table again"


def to_lines(contents: Contents) -> list[str]:
    """The lines of a bundle."""
    body = [_line(kind="conditions", key=k, document=c.to_document()) for k, c in contents.conditions.items()]
    body += [_line(kind="kernel", key=k, label=v[0], document=v[1]) for k, v in contents.kernels.items()]
    body += [_line(kind="model", key=k, template=v[0], widths=v[1]) for k, v in contents.models.items()]
    for one in contents.passes:
        body.append(
            _line(
                kind="pass",
                conditions=one.conditions,
                subject=one.subject,
                samples_ms=one.one.samples_ms,
                busy=one.one.busy,
                warmup_runs=one.warmup_runs,
                created=one.created,
            )
        )
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
                one = Pass(tuple(row["samples_ms"]), bool(row["busy"]))
                passes.append(
                    StoredPass(
                        str(row["conditions"]),
                        str(row["subject"]),
                        one,
                        _count(row["warmup_runs"]),
                        str(row["created"]),
                    )
                )
            elif kind == "adoption":
                adopted = Adoption(
                    str(row["conditions"]), str(row["source"]), _ratio(row["ratio"]), str(row["created"])
                )
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
        raise ValueError(f"key {key[:12]} stands there twice")
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
