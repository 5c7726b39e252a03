"""The latency table: every sample of every pass, under its conditions, in one SQLite file.

Several processes may read and write the file at once. A pass is stored as soon as it is made, so that a killed profile
goes on with what is missing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.sqlite import insert

from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.latency.measurement import (
    KernelInfo,
    KernelMeasurement,
    ModelMeasurement,
    ModelRequest,
    Pass,
    model_key,
)

FORMAT_VERSION = 1  # 1: conditions, kernel, model, sample
APPLICATION_ID = 0x414D434C  # "AMCL": marks the file as ours
LOCK_TIMEOUT_S = 60.0
KEYS_PER_QUERY = 500  # SQLite's oldest limit on parameters is 999
DELETE_IT = "move the file away and run `amc-mobile profile` again"

_schema = sa.MetaData()
_conditions = sa.Table(
    "conditions",
    _schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("document", sa.String, nullable=False),
)
_kernel = sa.Table(
    "kernel",
    _schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("label", sa.String, nullable=False),
    sa.Column("document", sa.String, nullable=False),
)
_model = sa.Table(
    "model",
    _schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("template", sa.String, nullable=False, index=True),
    sa.Column("widths", sa.String, nullable=False),
)
_sample = sa.Table(  # one row per pass
    "sample",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("conditions", sa.String, sa.ForeignKey("conditions.key"), nullable=False),
    sa.Column("subject", sa.String, nullable=False),  # the key of a kernel or of a model
    sa.Column("samples_ms", sa.String, nullable=False),
    sa.Column("busy", sa.Boolean, nullable=False),
    sa.Column("warmup_runs", sa.Integer, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Index("sample_subject", "conditions", "subject"),
)


class LatencyTable:
    """Opens the table at `path` or makes an empty one. Close it, or use it as a context.

    Raises CorruptFile for files that are damaged, of another format version or another program's; InvalidInput where
    the file cannot be opened or stays locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder, not a latency table", next_step="check the workspace")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"{path.parent}: {error.strerror}", next_step="choose another --workspace") from error
        url = sa.URL.create("sqlite", database=str(path))
        self._engine = sa.create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
        sa.event.listen(self._engine, "connect", _prepare_connection)
        sa.event.listen(self._engine, "begin", _begin)
        try:
            self._check_or_create()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LatencyTable:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    # Writing

    def add_kernels(self, kernels: Iterable[KernelInfo]) -> None:
        """Names kernels, so that their passes can be shown. Known ones are left as they are."""
        rows = [{"key": k.key, "label": k.label, "document": json.dumps(k.to_document())} for k in kernels]
        self._insert_new(_kernel, rows)

    def add_models(self, requests: Iterable[ModelRequest]) -> None:
        """Names whole models, so that their passes can be found again."""
        rows = [{"key": r.key, "template": r.template, "widths": json.dumps(list(r.widths))} for r in requests]
        self._insert_new(_model, rows)

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
        with self._transaction(write=True) as connection:
            connection.execute(insert(_conditions).on_conflict_do_nothing(), [known])
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
        with self._transaction() as connection:
            for start in range(0, len(wanted), KEYS_PER_QUERY):
                query = sa.select(_sample.c.subject, _sample.c.samples_ms, _sample.c.busy).where(
                    _sample.c.conditions == conditions.key,
                    _sample.c.subject.in_(wanted[start : start + KEYS_PER_QUERY]),
                )
                for subject, samples, busy in connection.execute(query.order_by(_sample.c.id)):
                    found.setdefault(subject, []).append(self._pass(samples, busy))
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
        with self._transaction() as connection:
            for key, label, samples, busy in connection.execute(query):
                found.setdefault(key, (label, []))[1].append(self._pass(samples, busy))
        return {key: KernelMeasurement(key, label, tuple(passes), conditions) for key, (label, passes) in found.items()}

    def models(self, conditions: Conditions, template: str) -> list[tuple[NDArray[np.int64], ModelMeasurement]]:
        """The whole models of a template that were measured under exactly these conditions: widths and measurement."""
        query = (
            sa.select(_model.c.widths, _sample.c.samples_ms, _sample.c.busy, _sample.c.warmup_runs)
            .join(_sample, _sample.c.subject == _model.c.key)
            .where(_sample.c.conditions == conditions.key, _model.c.template == template)
            .order_by(_sample.c.id)
        )
        found: dict[str, tuple[int, list[Pass]]] = {}
        with self._transaction() as connection:
            for widths, samples, busy, warmup_runs in connection.execute(query):
                found.setdefault(widths, (warmup_runs, []))[1].append(self._pass(samples, busy))
        return [
            (self._widths(widths), ModelMeasurement(tuple(passes), conditions, warmup_runs))
            for widths, (warmup_runs, passes) in found.items()
        ]

    def model(self, conditions: Conditions, template: str, widths: Sequence[int]) -> ModelMeasurement | None:
        """The measurement of one plan, or None."""
        key = model_key(template, widths)
        query = sa.select(_sample.c.samples_ms, _sample.c.busy, _sample.c.warmup_runs).where(
            _sample.c.conditions == conditions.key, _sample.c.subject == key
        )
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(_sample.c.id)).all()
        if not rows:
            return None
        return ModelMeasurement(tuple(self._pass(row[0], row[1]) for row in rows), conditions, int(rows[0][2]))

    def conditions(self) -> list[Conditions]:
        """All conditions that something was measured under, oldest first."""
        query = sa.select(_conditions.c.document).order_by(sa.text("rowid"))
        with self._transaction() as connection:
            documents = connection.execute(query).scalars().all()
        try:
            return [Conditions.from_document(json.loads(document)) for document in documents]
        except (ValueError, InvalidInput) as error:
            raise CorruptFile(self.path, f"unreadable conditions ({error})", next_step=DELETE_IT) from error

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
            with self._transaction() as connection:
                models = int(connection.execute(count).scalar_one())
            rows = [
                {
                    "key": k.key, "label": k.label, "low_ms": k.low_ms, "passes": len(k.passes),
                    "flags": list(k.flags),
                }
                for k in kernels
            ]  # fmt: skip
            entries.append({"conditions": conditions.to_document(), "kernels": rows, "model_measurements": models})
        return {"path": str(self.path), "format_version": FORMAT_VERSION, "conditions": entries}

    # The file

    def _check_or_create(self) -> None:
        with self._transaction(write=True) as connection:
            application = connection.exec_driver_sql("PRAGMA application_id").scalar()
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            names = set(sa.inspect(connection).get_table_names())
            if not names and not application and not version:
                _schema.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT_VERSION}")
                return
            if application != APPLICATION_ID:
                raise CorruptFile(self.path, "is a database of another program", next_step=DELETE_IT)
            if version != FORMAT_VERSION:
                newer = isinstance(version, int) and version > FORMAT_VERSION
                why = f"has format {version}, this version reads {FORMAT_VERSION}"
                raise CorruptFile(self.path, why, next_step="update amc-mobile" if newer else DELETE_IT)
            problem = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if problem != "ok" or not set(_schema.tables) <= names:
                raise CorruptFile(self.path, f"is damaged ({problem})", next_step=DELETE_IT)

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(amc_write=write)
                with connection.begin():
                    yield connection
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise self._explained(error) from error

    def _explained(self, error: sa.exc.DBAPIError | sqlite3.Error) -> CorruptFile | InvalidInput:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
        if isinstance(cause, sqlite3.OperationalError):
            if "locked" in str(cause) or "busy" in str(cause):
                return InvalidInput(f"{self.path}: another process kept it locked", next_step="try again later")
            if "no such" not in str(cause):
                return InvalidInput(f"{self.path}: {cause}", next_step="check its permissions and the free space")
        return CorruptFile(self.path, f"is damaged or no latency table ({cause})", next_step=DELETE_IT)

    def _insert_new(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            with self._transaction(write=True) as connection:
                connection.execute(insert(table).on_conflict_do_nothing(), rows)

    def _pass(self, samples: str, busy: bool) -> Pass:
        try:
            return Pass(tuple(json.loads(samples)), bool(busy))
        except (TypeError, ValueError, InvalidInput) as error:
            raise CorruptFile(self.path, f"unreadable samples ({error})", next_step=DELETE_IT) from error

    def _widths(self, document: str) -> NDArray[np.int64]:
        try:
            widths = json.loads(document)
            if not isinstance(widths, list) or not all(type(w) is int for w in widths):
                raise ValueError(document)
        except (TypeError, ValueError) as error:
            raise CorruptFile(self.path, f"unreadable widths ({error})", next_step=DELETE_IT) from error
        return np.array(widths, dtype=np.int64)


def _prepare_connection(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are begun by `_begin` alone; the driver would begin them late and commit them early.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            # Another process is switching the new file at this moment; the mode is the file's, not the connection's.
            return


def _begin(connection: sa.Connection) -> None:
    # A transaction that will write takes its lock at once: upgrading later could fail instead of waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("amc_write") else "BEGIN")
