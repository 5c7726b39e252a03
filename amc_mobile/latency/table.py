"""The latency table: every sample of every pass, under its conditions, in a SQLite file or a PostgreSQL database.

Several processes may read and write it at once. A pass is stored as soon as it is made, so that a killed profile goes
on with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import InvalidInput, MissingLatency
from amc_mobile.latency import storage
from amc_mobile.latency.measurement import KernelMeasurement, ModelMeasurement, Pass
from amc_mobile.latency.requests import KernelInfo, ModelRequest, model_key
from amc_mobile.latency.storage import DELETE_IT, FORMAT_VERSION, open_storage
from amc_mobile.latency.table_rows import Contents, add_contents, read_adoptions, read_contents, read_pass, read_widths
from amc_mobile.store import parse_object

KEYS_PER_QUERY = 500  # SQLite's oldest limit on parameters is 999

_conditions, _kernel, _model, _sample = storage.conditions, storage.kernel, storage.model, storage.sample


class LatencyTable:
    """Opens the table at `location`, a path or the URL of a PostgreSQL database, or makes an empty one.

    Close it, or use it as a context. Raises CorruptFile for files that are damaged, of another format version or
    another program's; InvalidInput where it cannot be opened or stays locked.
    """

    def __init__(self, location: Path | str) -> None:
        self._storage = open_storage(location)
        self.name = self._storage.name
        try:
            self._storage.check_or_create()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LatencyTable:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._storage.close()

    # Writing

    def add_kernels(self, kernels: Iterable[KernelInfo]) -> None:
        """Names kernels, so that their passes can be shown. Known ones are left as they are."""
        rows = [{"key": k.key, "label": k.label, "document": json.dumps(k.to_document())} for k in kernels]
        self._storage.insert_new(_kernel, rows)

    def add_models(self, requests: Iterable[ModelRequest]) -> None:
        """Names whole models, so that their passes can be found again."""
        rows = [{"key": r.key, "template": r.template, "widths": json.dumps(list(r.widths))} for r in requests]
        self._storage.insert_new(_model, rows)

    def add_passes(self, conditions: Conditions, passes: Iterable[tuple[str, Pass]], *, warmup_runs: int) -> None:
        """Adds passes of kernels or models, all or none. `passes`: (key, pass)."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        rows = [
            {
                "conditions": conditions.key, "subject": key, "samples_ms": json.dumps(one.samples_ms),
                "busy": one.busy, "warmup_runs": warmup_runs, "created": now,
            }
            for key, one in passes
        ]  # fmt: skip
        if not rows:
            return
        known = {"key": conditions.key, "document": json.dumps(conditions.to_document())}
        with self._storage.transaction(write=True) as connection:
            connection.execute(self._storage.insert_ignoring(_conditions), [known])
            connection.execute(sa.insert(_sample), rows)

    def add_model_measurement(self, template: str, widths: Sequence[int], measurement: ModelMeasurement) -> None:
        """Adds the passes of a model that was measured by itself."""
        request = ModelRequest(template, tuple(int(w) for w in widths), bytes)
        self.add_models([request])
        rows = [(request.key, one) for one in measurement.passes]
        self.add_passes(measurement.conditions, rows, warmup_runs=measurement.warmup_runs)

    # Reading

    def passes(self, conditions: Conditions, keys: Iterable[str]) -> dict[str, tuple[Pass, ...]]:
        """The passes under exactly these conditions, in the order made; keys without any are left out."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, list[Pass]] = {}
        with self._storage.transaction() as connection:
            for start in range(0, len(wanted), KEYS_PER_QUERY):
                query = sa.select(_sample.c.subject, _sample.c.samples_ms, _sample.c.busy).where(
                    _sample.c.conditions == conditions.key,
                    _sample.c.subject.in_(wanted[start : start + KEYS_PER_QUERY]),
                )
                for subject, samples, busy in connection.execute(query.order_by(_sample.c.id)):
                    found.setdefault(subject, []).append(read_pass(self._storage, samples, busy))
        return {key: tuple(passes) for key, passes in found.items()}

    def kernels(self, conditions: Conditions) -> dict[str, KernelMeasurement]:
        """Every kernel that was measured under exactly these conditions."""
        query = (
            sa.select(_kernel.c.key, _kernel.c.label, _sample.c.samples_ms, _sample.c.busy)
            .join(_sample, _sample.c.subject == _kernel.c.key)
            .where(_sample.c.conditions == conditions.key)
            .order_by(_sample.c.id)
        )
        found: dict[str, tuple[str, list[Pass]]] = {}
        with self._storage.transaction() as connection:
            for key, label, samples, busy in connection.execute(query):
                found.setdefault(key, (label, []))[1].append(read_pass(self._storage, samples, busy))
        return {key: KernelMeasurement(key, label, tuple(passes), conditions) for key, (label, passes) in found.items()}

    def kernel_documents(self) -> dict[str, dict[str, Any]]:
        """Key -> what is known of each kernel; of imported ones, what their table told."""
        with self._storage.transaction() as connection:
            rows = connection.execute(sa.select(_kernel.c.key, _kernel.c.document)).all()
        try:
            return {key: parse_object(document) for key, document in rows}
        except (TypeError, ValueError) as error:
            raise self._storage.corrupt(f"unreadable kernels ({error})", next_step=DELETE_IT) from error

    def models(self, conditions: Conditions, template: str) -> list[tuple[NDArray[np.int64], ModelMeasurement]]:
        """The whole models of a template that were measured under exactly these conditions: widths and measurement."""
        query = (
            sa.select(_model.c.widths, _sample.c.samples_ms, _sample.c.busy, _sample.c.warmup_runs)
            .join(_sample, _sample.c.subject == _model.c.key)
            .where(_sample.c.conditions == conditions.key, _model.c.template == template)
            .order_by(_sample.c.id)
        )
        found: dict[str, tuple[int, list[Pass]]] = {}
        with self._storage.transaction() as connection:
            for widths, samples, busy, warmup_runs in connection.execute(query):
                found.setdefault(widths, (warmup_runs, []))[1].append(read_pass(self._storage, samples, busy))
        return [
            (read_widths(self._storage, widths), ModelMeasurement(tuple(passes), conditions, warmup_runs))
            for widths, (warmup_runs, passes) in found.items()
        ]

    def model(self, conditions: Conditions, template: str, widths: Sequence[int]) -> ModelMeasurement | None:
        """The measurement of one plan, or None."""
        key = model_key(template, widths)
        query = sa.select(_sample.c.samples_ms, _sample.c.busy, _sample.c.warmup_runs).where(
            _sample.c.conditions == conditions.key, _sample.c.subject == key
        )
        with self._storage.transaction() as connection:
            rows = connection.execute(query.order_by(_sample.c.id)).all()
        if not rows:
            return None
        return ModelMeasurement(
            tuple(read_pass(self._storage, row[0], row[1]) for row in rows), conditions, int(rows[0][2])
        )

    def conditions(self) -> list[Conditions]:
        """All conditions that something was measured under, oldest first."""
        first = sa.select(sa.func.min(_sample.c.id)).where(_sample.c.conditions == _conditions.c.key)
        query = sa.select(_conditions.c.document).order_by(first.scalar_subquery())
        with self._storage.transaction() as connection:
            documents = connection.execute(query).scalars().all()
        try:
            return [Conditions.from_document(parse_object(document)) for document in documents]
        except (ValueError, InvalidInput) as error:
            raise self._storage.corrupt(f"unreadable conditions ({error})", next_step=DELETE_IT) from error

    def nothing_under(self, conditions: Conditions) -> MissingLatency:
        """The error for conditions that nothing was measured under: tells how the nearest ones in the table differ."""
        known = [other.differences(conditions) for other in self.conditions()]
        nearest = min(known, key=len, default={})
        because = ", ".join(
            f"{name} was {before or 'unknown'}, is {now or 'unknown'}" for name, (before, now) in nearest.items()
        )
        return MissingLatency(
            [f"any kernel under {conditions.runtime}, {conditions.threads} thread(s)"],
            because=f"measured when {because}" if because else "",
        )

    def summary(self) -> dict[str, Any]:
        """For `table show`: per conditions, the kernels (slowest first) and the number of whole models."""
        entries = []
        for conditions in self.conditions():
            kernels = sorted(self.kernels(conditions).values(), key=lambda k: -k.low_ms)
            count = (
                sa.select(sa.func.count(sa.distinct(_sample.c.subject)))
                .join(_model, _model.c.key == _sample.c.subject)
                .where(_sample.c.conditions == conditions.key)
            )
            with self._storage.transaction() as connection:
                models = int(connection.execute(count).scalar_one())
            rows = [
                {"key": k.key, "label": k.label, "low_ms": k.low_ms, "passes": len(k.passes), "flags": list(k.flags)}
                for k in kernels
            ]
            entries.append({"conditions": conditions.to_document(), "kernels": rows, "model_measurements": models})
        return {"path": self.name, "format_version": FORMAT_VERSION, "conditions": entries}

    # Everything at once

    def contents(self) -> Contents:
        """All rows, the passes in the order made."""
        known = {conditions.key: conditions for conditions in self.conditions()}
        return read_contents(self._storage, known)

    def add_contents(self, contents: Contents) -> int:
        """Adds what the table lacks, all or nothing; returns how many passes were new.

        A pass with the samples of one that is there is the same pass, each counted once; an adoption on record stays
        as it is. Raises InvalidInput for passes and adoptions whose conditions or subject are not part of `contents`.
        """
        return add_contents(self._storage, contents)

    # Adoption of kernels that were measured under other conditions

    def adopt(self, conditions: Conditions, source: Conditions, keys: Iterable[str], ratio: float) -> int:
        """Copies the kernels `keys` measured under `source` to `conditions`, times `ratio`; returns how many passes.

        Where that came from stays on record. Raises InvalidInput when the conditions already have kernels of `keys`.
        """
        found = self.passes(source, keys)
        if self.passes(conditions, found):
            raise InvalidInput("kernels were already measured under these conditions", next_step="nothing to adopt")
        rows = [
            (key, Pass(tuple(value * ratio for value in one.samples_ms), one.busy))
            for key, passes in found.items()
            for one in passes
        ]
        self.add_passes(conditions, rows, warmup_runs=0)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._storage.insert_new(
            storage.adoption,
            [{"conditions": conditions.key, "source": source.key, "ratio": ratio, "created": now}],
        )
        return len(rows)

    def adoptions(self) -> dict[tuple[str, str], float]:
        """(Key of conditions, key of those that some of its kernels were measured under) -> the ratio applied."""
        with self._storage.transaction() as connection:
            return {(one.conditions, one.source): one.ratio for one in read_adoptions(connection)}
