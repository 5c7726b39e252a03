"""Rows of a latency table as they are stored, and all of them at once to be added to another table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from amc_mobile.device.conditions import AGAIN, Conditions
from amc_mobile.errors import InvalidInput
from amc_mobile.latency.measurement import Pass
from amc_mobile.latency.storage import DELETE_IT, Storage, adoption, kernel, model, sample
from amc_mobile.latency.storage import conditions as conditions_table
from amc_mobile.store import parse_json, parse_object


@dataclass(frozen=True)
class StoredPass:
    """A pass with everything that the table keeps of it. `conditions`, `subject`: keys."""

    conditions: str
    subject: str
    one: Pass
    warmup_runs: int
    created: str


@dataclass(frozen=True)
class Adoption:
    """On record: kernels of `conditions` that were measured under `source`, times `ratio`. Both are keys."""

    conditions: str
    source: str
    ratio: float
    created: str


@dataclass(frozen=True)
class Contents:
    """Everything in a table, or a part of it to be added to another.

    `kernels`: key -> (label, document); `models`: key -> (template, widths).
    """

    conditions: Mapping[str, Conditions]
    kernels: Mapping[str, tuple[str, Mapping[str, Any]]]
    models: Mapping[str, tuple[str, tuple[int, ...]]]
    passes: Sequence[StoredPass]
    adoptions: Sequence[Adoption] = ()


def read_contents(storage: Storage, conditions: Mapping[str, Conditions]) -> Contents:
    """All rows, the passes in the order made. `conditions`: those of the table, by key."""
    with storage.transaction() as connection:
        kernels = connection.execute(sa.select(kernel.c.key, kernel.c.label, kernel.c.document)).all()
        models = connection.execute(sa.select(model.c.key, model.c.template, model.c.widths)).all()
        columns = (
            sample.c.conditions, sample.c.subject, sample.c.samples_ms, sample.c.busy, sample.c.warmup_runs,
            sample.c.created,
        )  # fmt: skip
        rows = connection.execute(sa.select(*columns).order_by(sample.c.id)).all()
        adoptions = read_adoptions(connection)
    try:
        documents = {key: (label, parse_object(document)) for key, label, document in kernels}
    except (TypeError, ValueError) as error:
        raise storage.corrupt(f"unreadable kernels ({error})", next_step=DELETE_IT) from error
    return Contents(
        conditions,
        documents,
        {key: (template, tuple(read_widths(storage, widths).tolist())) for key, template, widths in models},
        [StoredPass(r[0], r[1], read_pass(storage, r[2], r[3]), int(r[4]), r[5]) for r in rows],
        adoptions,
    )


def add_contents(storage: Storage, contents: Contents) -> int:
    """Adds what the table lacks, all or nothing; returns how many passes were new. See `LatencyTable.add_contents`."""
    for adopted in contents.adoptions:
        if adopted.conditions not in contents.conditions:
            raise InvalidInput(
                f"kernels were adopted under unknown conditions {adopted.conditions[:12]!r}", next_step=AGAIN
            )
    for one in contents.passes:
        if one.conditions not in contents.conditions:
            raise InvalidInput(f"a pass was measured under unknown conditions {one.conditions[:12]!r}", next_step=AGAIN)
        if one.subject not in contents.kernels and one.subject not in contents.models:
            raise InvalidInput(f"a pass is of an unknown kernel or model {one.subject[:12]!r}", next_step=AGAIN)
    tables: list[tuple[sa.Table, list[dict[str, Any]]]] = [
        (
            conditions_table,
            [{"key": k, "document": json.dumps(c.to_document())} for k, c in contents.conditions.items()],
        ),
        (kernel, [{"key": k, "label": v[0], "document": json.dumps(v[1])} for k, v in contents.kernels.items()]),
        (model, [{"key": k, "template": v[0], "widths": json.dumps(v[1])} for k, v in contents.models.items()]),
        (adoption, [asdict(adopted) for adopted in contents.adoptions]),
    ]
    with storage.transaction(write=True) as connection:
        for table, rows in tables:
            if rows:
                connection.execute(storage.insert_ignoring(table), rows)
        stored = sa.select(sample.c.conditions, sample.c.subject, sample.c.samples_ms)
        known = Counter(tuple(row) for row in connection.execute(stored))
        fresh = []
        for one in contents.passes:
            samples = json.dumps(one.one.samples_ms)
            if known[one.conditions, one.subject, samples] > 0:
                known[one.conditions, one.subject, samples] -= 1
                continue
            fresh.append(
                {
                    "conditions": one.conditions,
                    "subject": one.subject,
                    "samples_ms": samples,
                    "busy": one.one.busy,
                    "warmup_runs": one.warmup_runs,
                    "created": one.created,
                }
            )
        if fresh:
            connection.execute(sa.insert(sample), fresh)
    return len(fresh)


def read_adoptions(connection: sa.Connection) -> list[Adoption]:
    """All that is on record, in the order made."""
    columns = adoption.c
    query = sa.select(columns.conditions, columns.source, columns.ratio, columns.created)
    rows = connection.execute(query.order_by(columns.created, columns.conditions, columns.source)).all()
    return [Adoption(conditions, source, float(ratio), created) for conditions, source, ratio, created in rows]


def read_pass(storage: Storage, samples: str, busy: bool) -> Pass:
    """A pass from its columns. Raises what `Storage.corrupt` gives."""
    try:
        return Pass(tuple(parse_json(samples)), bool(busy))
    except (TypeError, ValueError, InvalidInput) as error:
        raise storage.corrupt(f"unreadable samples ({error})", next_step=DELETE_IT) from error


def read_widths(storage: Storage, document: str) -> NDArray[np.int64]:
    """Widths (groups,) from their column. Raises what `Storage.corrupt` gives."""
    try:
        widths = parse_json(document)
        if not isinstance(widths, list) or not all(type(w) is int and 0 < w < 2**31 for w in widths):
            raise ValueError(document)
    except (TypeError, ValueError) as error:
        raise storage.corrupt(f"unreadable widths ({error})", next_step=DELETE_IT) from error
    return np.array(widths, dtype=np.int64)
