"""The latency table: every sample of every pass, under its conditions, in a SQLite file or a PostgreSQL database.

Several processes may read and write it at once. A pass is stored as soon as it is made, so that a killed profile goes
on with what is missing.
"""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from amc_mobile.device.conditions import AGAIN, Conditions
from amc_mobile.device.device import Job, Neighbours, Pass
from amc_mobile.errors import (
    AmcMobileError,
    CorruptFile,
    DeviceError,
    InvalidConfig,
    InvalidInput,
    MissingDependency,
    MissingLatency,
)
from amc_mobile.kernels.kernel import Kernel
from amc_mobile.latency.database_url import URL_FORM, WAYS, asked_password, password_of, take_password
from amc_mobile.latency.measurement import KernelInfo, KernelMeasurement, ModelMeasurement, ModelRequest
from amc_mobile.store import parse_json, parse_object

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1  # 1: conditions, kernel, model, sample; adoption, where there is none yet, is added
APPLICATION_ID = 0x414D434C  # "AMCL": marks the file as ours
LOCK_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10
NO_PASSWORD = "no password supplied"  # what libpq says
DELETE_IT = "move the file away and run `amc-mobile profile` again"

SCHEMA = sa.MetaData()
CONDITIONS = sa.Table(
    "conditions",
    SCHEMA,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("document", sa.String, nullable=False),
)
KERNEL = sa.Table(
    "kernel",
    SCHEMA,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("label", sa.String, nullable=False),
    sa.Column("document", sa.String, nullable=False),
)
MODEL = sa.Table(
    "model",
    SCHEMA,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("template", sa.String, nullable=False, index=True),
    sa.Column("widths", sa.String, nullable=False),
)
SAMPLE = sa.Table(  # one row per pass
    "sample",
    SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("conditions", sa.String, sa.ForeignKey("conditions.key"), nullable=False),
    sa.Column("subject", sa.String, nullable=False),  # the key of a kernel or of a model
    sa.Column("samples_ms", sa.String, nullable=False),
    sa.Column("busy", sa.Boolean, nullable=False),
    sa.Column("warmup_runs", sa.Integer, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Index("sample_subject", "conditions", "subject"),
)
CORE_TABLES = frozenset(SCHEMA.tables)
ADOPTION = sa.Table(  # passes under `conditions` that were measured under `source`, times `ratio`
    "adoption",
    SCHEMA,
    sa.Column("conditions", sa.String, sa.ForeignKey("conditions.key"), primary_key=True),
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("ratio", sa.Float, nullable=False),
    sa.Column("created", sa.String, nullable=False),
)
VERSION = sa.Table("amc_mobile_format", sa.MetaData(), sa.Column("version", sa.Integer, nullable=False))


def open_storage(location: Path | str) -> Storage:
    """A path is a SQLite file; text with `://` in it is the URL of a PostgreSQL database.

    Raises InvalidConfig for other URLs, MissingDependency without psycopg, and what `LatencyTable` raises.
    """
    if isinstance(location, Path) or "://" not in location:
        return SqliteFile(Path(location))
    return PostgresDatabase(location)


class Storage(ABC):
    """An open database. `name`: for messages, without a password."""

    name: str
    engine: sa.Engine

    @abstractmethod
    def check_or_create(self) -> None:
        """Raises what `corrupt` gives for tables that are not ours or of another format version."""

    @abstractmethod
    def corrupt(self, why: str, *, next_step: str = "") -> AmcMobileError:
        """The error for contents that cannot be used."""

    @abstractmethod
    def explained(self, error: sa.exc.DBAPIError | sqlite3.Error) -> AmcMobileError:
        """What went wrong in our words."""

    @abstractmethod
    def insert_ignoring(self, table: sa.Table) -> sa.Insert:
        """An insert that leaves rows with a known key as they are."""

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[sa.Connection]:
        try:
            with self.engine.connect() as plain:
                connection = plain.execution_options(amc_write=write)
                with connection.begin():
                    yield connection
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise self.explained(error) from error

    def insert_new(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            with self.transaction(write=True) as connection:
                connection.execute(self.insert_ignoring(table), rows)

    def close(self) -> None:
        self.engine.dispose()


class SqliteFile(Storage):
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder, not a latency table", next_step="check the workspace")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"{path.parent}: {error.strerror}", next_step="choose another --workspace") from error
        url = sa.URL.create("sqlite", database=str(path))
        self.engine = sa.create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
        sa.event.listen(self.engine, "connect", _prepare_connection)
        sa.event.listen(self.engine, "begin", _begin)

    def check_or_create(self) -> None:
        with self.transaction(write=True) as connection:
            application = connection.exec_driver_sql("PRAGMA application_id").scalar()
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            names = set(sa.inspect(connection).get_table_names())
            if not names and not application and not version:
                SCHEMA.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT_VERSION}")
                return
            if application != APPLICATION_ID:
                raise self.corrupt("is a database of another program", next_step=DELETE_IT)
            _check_version(self, version, DELETE_IT)
            problem = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if problem != "ok" or not names >= CORE_TABLES:
                raise self.corrupt(f"is damaged ({problem})", next_step=DELETE_IT)
            ADOPTION.create(connection, checkfirst=True)

    def corrupt(self, why: str, *, next_step: str = "") -> AmcMobileError:
        return CorruptFile(self.path, why, next_step=next_step)

    def explained(self, error: sa.exc.DBAPIError | sqlite3.Error) -> AmcMobileError:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
        if isinstance(cause, sqlite3.OperationalError):
            if "locked" in str(cause) or "busy" in str(cause):
                return InvalidInput(f"{self.path}: another process kept it locked", next_step="try again later")
            if "no such" not in str(cause):
                return InvalidInput(f"{self.path}: {cause}", next_step="check its permissions and the free space")
        return self.corrupt(f"is damaged or no latency table ({cause})", next_step=DELETE_IT)

    def insert_ignoring(self, table: sa.Table) -> sa.Insert:
        return sqlite.insert(table).on_conflict_do_nothing()


class PostgresDatabase(Storage):
    def __init__(self, text: str) -> None:
        self.name = take_password(text)
        try:
            url = sa.make_url(self.name)
        except (sa.exc.ArgumentError, ValueError) as error:
            raise InvalidConfig(f"--table {self.name!r} is no database URL", next_step=URL_FORM) from error
        if url.drivername not in ("postgresql", "postgresql+psycopg"):
            raise InvalidConfig(f"--table {self.name}: {url.drivername} is not supported", next_step=URL_FORM)
        if find_spec("psycopg") is None:
            raise MissingDependency("psycopg", "postgresql")
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"), connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
        )
        sa.event.listen(self.engine, "do_connect", self._connect)

    def _connect(self, dialect: Any, _record: object, positional: Any, named: dict[str, Any]) -> Any:
        """Connects with the password that this process knows, that PostgreSQL finds, or that the user types."""
        if (password := password_of(self.name)) is not None:
            named["password"] = password
        try:
            return dialect.connect(*positional, **named)
        except dialect.loaded_dbapi.OperationalError as error:
            if NO_PASSWORD not in str(error) or (password := asked_password(self.name)) is None:
                raise
            named["password"] = password
            return dialect.connect(*positional, **named)

    def check_or_create(self) -> None:
        with self.transaction(write=True) as connection:
            # Two programs that find the database empty must not both fill it.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(APPLICATION_ID)))
            names = set(sa.inspect(connection).get_table_names())
            if VERSION.name not in names:
                if names & CORE_TABLES:
                    raise self.corrupt("holds tables of another program", next_step="use an empty database")
                SCHEMA.create_all(connection)
                VERSION.create(connection)
                connection.execute(sa.insert(VERSION).values(version=FORMAT_VERSION))
                return
            _check_version(self, connection.execute(sa.select(VERSION.c.version)).scalar(), "use an empty database")
            if not names >= CORE_TABLES:
                raise self.corrupt("lacks some of its tables", next_step="use an empty database")
            ADOPTION.create(connection, checkfirst=True)

    def corrupt(self, why: str, *, next_step: str = "") -> AmcMobileError:
        return InvalidInput(f"{self.name}: {why}", next_step=next_step)

    def explained(self, error: sa.exc.DBAPIError | sqlite3.Error) -> AmcMobileError:
        cause = str(error.orig if isinstance(error, sa.exc.DBAPIError) else error).strip().splitlines()
        lacks_password = any(NO_PASSWORD in line for line in cause)
        return InvalidInput(
            f"{self.name}: {cause[0] if cause else error}",
            next_step=WAYS if lacks_password else "check the server and the URL",
        )

    def insert_ignoring(self, table: sa.Table) -> sa.Insert:
        return postgresql.insert(table).on_conflict_do_nothing()


def _check_version(storage: Storage, version: object, next_step: str) -> None:
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        why = f"has format {version}, this version reads {FORMAT_VERSION}"
        raise storage.corrupt(why, next_step="update amc-mobile" if newer else next_step)


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


KEYS_PER_QUERY = 500  # SQLite's oldest limit on parameters is 999


@dataclass(frozen=True)
class TableEntry:
    """What was measured under one set of conditions: kernels, the slowest first, and how many whole models."""

    conditions: Conditions
    kernels: tuple[KernelMeasurement, ...]
    model_measurements: int


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
        self._storage.insert_new(KERNEL, rows)

    def add_models(self, requests: Iterable[ModelRequest]) -> None:
        """Names whole models, so that their passes can be found again."""
        rows = [{"key": r.key, "template": r.template, "widths": json.dumps(list(r.widths))} for r in requests]
        self._storage.insert_new(MODEL, rows)

    def add_passes(self, conditions: Conditions, passes: Iterable[tuple[str, Pass]], *, warmup_runs: int) -> None:
        """Adds passes of kernels or models, all or none. `passes`: (key, pass)."""
        now = _now()
        rows = [_sample_row(StoredPass(conditions.key, key, one, warmup_runs, now)) for key, one in passes]
        if not rows:
            return
        with self._storage.transaction(write=True) as connection:
            connection.execute(self._storage.insert_ignoring(CONDITIONS), [_conditions_row(conditions)])
            connection.execute(sa.insert(SAMPLE), rows)

    # Reading

    def passes(self, conditions: Conditions, keys: Iterable[str]) -> dict[str, tuple[Pass, ...]]:
        """The passes under exactly these conditions, in the order made; keys without any are left out."""
        subjects = list(dict.fromkeys(keys))
        found: dict[str, list[Pass]] = {}
        with self._storage.transaction() as connection:
            for start in range(0, len(subjects), KEYS_PER_QUERY):
                query = sa.select(SAMPLE.c.subject, SAMPLE.c.samples_ms, SAMPLE.c.busy).where(
                    SAMPLE.c.conditions == conditions.key,
                    SAMPLE.c.subject.in_(subjects[start : start + KEYS_PER_QUERY]),
                )
                for subject, samples, busy in connection.execute(query.order_by(SAMPLE.c.id)):
                    found.setdefault(subject, []).append(read_pass(self._storage, samples, busy))
        return {key: tuple(passes) for key, passes in found.items()}

    def kernels(self, conditions: Conditions) -> dict[str, KernelMeasurement]:
        """Every kernel that was measured under exactly these conditions."""
        query = (
            sa.select(KERNEL.c.key, KERNEL.c.label, SAMPLE.c.samples_ms, SAMPLE.c.busy)
            .join(SAMPLE, SAMPLE.c.subject == KERNEL.c.key)
            .where(SAMPLE.c.conditions == conditions.key)
            .order_by(SAMPLE.c.id)
        )
        measured: dict[str, tuple[str, list[Pass]]] = {}
        with self._storage.transaction() as connection:
            for key, label, samples, busy in connection.execute(query):
                measured.setdefault(key, (label, []))[1].append(read_pass(self._storage, samples, busy))
        return {
            key: KernelMeasurement(key, label, tuple(passes), conditions) for key, (label, passes) in measured.items()
        }

    def to_frame(self, conditions: Conditions) -> pd.DataFrame:
        """A row per kernel measured under exactly these conditions, the slowest first.

        Columns: key, operator, kernel (its label, with the shape), low_ms (the lowest of its passes'), p50_ms (of all
        samples), passes, samples, flags.
        """
        import pandas as pd

        documents = self.kernel_documents()
        rows = [
            (
                one.key, _operator_of(documents[one.key]), one.label, one.low_ms,
                float(np.median(np.concatenate(one.samples_ms))), len(one.passes), sum(map(len, one.samples_ms)),
                " ".join(one.flags),
            )
            for one in self.kernels(conditions).values()
        ]  # fmt: skip
        columns = ["key", "operator", "kernel", "low_ms", "p50_ms", "passes", "samples", "flags"]
        return pd.DataFrame(rows, columns=columns).sort_values("low_ms", ascending=False, kind="stable")

    def kernel_documents(self) -> dict[str, dict[str, Any]]:
        """Key -> what is known of each kernel; of imported ones, what their table has."""
        with self._storage.transaction() as connection:
            return self._documents(connection.execute(sa.select(KERNEL.c.key, KERNEL.c.document)).all())

    def _documents(self, rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
        try:
            return {key: parse_object(document) for key, document in rows}
        except (TypeError, ValueError) as error:
            raise self._storage.corrupt(f"unreadable kernels ({error})", next_step=DELETE_IT) from error

    def models(self, conditions: Conditions, template: str) -> list[tuple[NDArray[np.int64], ModelMeasurement]]:
        """The whole models of a template that were measured under exactly these conditions: widths and measurement."""
        query = (
            sa.select(MODEL.c.widths, SAMPLE.c.samples_ms, SAMPLE.c.busy, SAMPLE.c.warmup_runs)
            .join(SAMPLE, SAMPLE.c.subject == MODEL.c.key)
            .where(SAMPLE.c.conditions == conditions.key, MODEL.c.template == template)
            .order_by(SAMPLE.c.id)
        )
        measured: dict[str, tuple[int, list[Pass]]] = {}
        with self._storage.transaction() as connection:
            for widths, samples, busy, warmup_runs in connection.execute(query):
                measured.setdefault(widths, (warmup_runs, []))[1].append(read_pass(self._storage, samples, busy))
        return [
            (read_widths(self._storage, widths), ModelMeasurement(tuple(passes), conditions, warmup_runs))
            for widths, (warmup_runs, passes) in measured.items()
        ]

    def conditions(self) -> list[Conditions]:
        """All conditions that something was measured under, oldest first."""
        first = sa.select(sa.func.min(SAMPLE.c.id)).where(SAMPLE.c.conditions == CONDITIONS.c.key)
        query = sa.select(CONDITIONS.c.document).order_by(first.scalar_subquery())
        with self._storage.transaction() as connection:
            documents = connection.execute(query).scalars().all()
        try:
            return [Conditions.from_document(parse_object(document)) for document in documents]
        except (ValueError, InvalidInput) as error:
            raise self._storage.corrupt(f"unreadable conditions ({error})", next_step=DELETE_IT) from error

    def nothing_under(self, conditions: Conditions) -> MissingLatency:
        """The error for conditions that nothing was measured under: how the nearest ones in the table differ."""
        differences = [other.differences(conditions) for other in self.conditions()]
        nearest = min(differences, key=len, default={})
        because = ", ".join(
            f"{name} was {before or 'unknown'}, is {now or 'unknown'}" for name, (before, now) in nearest.items()
        )
        return MissingLatency(
            [f"any kernel under {conditions.runtime}, {conditions.threads} thread(s)"],
            because=f"measured when {because}" if because else "",
        )

    def entries(self) -> list[TableEntry]:
        """What was measured, by conditions."""
        entries = []
        for conditions in self.conditions():
            kernels = sorted(self.kernels(conditions).values(), key=lambda k: -k.low_ms)
            count = (
                sa.select(sa.func.count(sa.distinct(SAMPLE.c.subject)))
                .join(MODEL, MODEL.c.key == SAMPLE.c.subject)
                .where(SAMPLE.c.conditions == conditions.key)
            )
            with self._storage.transaction() as connection:
                models = int(connection.execute(count).scalar_one())
            entries.append(TableEntry(conditions, tuple(kernels), models))
        return entries

    # Everything at once

    def contents(self) -> Contents:
        """All rows, the passes in the order made."""
        conditions = {each.key: each for each in self.conditions()}
        columns = (
            SAMPLE.c.conditions, SAMPLE.c.subject, SAMPLE.c.samples_ms, SAMPLE.c.busy, SAMPLE.c.warmup_runs,
            SAMPLE.c.created,
        )  # fmt: skip
        with self._storage.transaction() as connection:
            kernels = connection.execute(sa.select(KERNEL.c.key, KERNEL.c.document, KERNEL.c.label)).all()
            models = connection.execute(sa.select(MODEL.c.key, MODEL.c.template, MODEL.c.widths)).all()
            rows = connection.execute(sa.select(*columns).order_by(SAMPLE.c.id)).all()
            adoptions = _read_adoptions(connection)
        documents = self._documents((key, document) for key, document, _ in kernels)
        return Contents(
            conditions,
            {key: (label, documents[key]) for key, _, label in kernels},
            {key: (template, tuple(read_widths(self._storage, widths).tolist())) for key, template, widths in models},
            [StoredPass(r[0], r[1], read_pass(self._storage, r[2], r[3]), int(r[4]), r[5]) for r in rows],
            adoptions,
        )

    def add_contents(self, contents: Contents) -> int:
        """Adds what the table lacks, all or nothing; returns how many passes were new.

        A pass with the samples of one that is there is the same pass, each counted once; an adoption on record stays
        as it is. Raises InvalidInput for passes and adoptions whose conditions or subject are not part of `contents`.
        """
        under = [("kernels were adopted", adopted.conditions) for adopted in contents.adoptions]
        under += [("a pass was measured", stored.conditions) for stored in contents.passes]
        for what, key in under:
            if key not in contents.conditions:
                raise InvalidInput(f"{what} under unknown conditions {key[:12]!r}", next_step=AGAIN)
        for stored in contents.passes:
            if stored.subject not in contents.kernels and stored.subject not in contents.models:
                why = f"a pass is of an unknown kernel or model {stored.subject[:12]!r}"
                raise InvalidInput(why, next_step=AGAIN)
        tables: list[tuple[sa.Table, list[dict[str, Any]]]] = [
            (CONDITIONS, [_conditions_row(conditions) for conditions in contents.conditions.values()]),
            (KERNEL, [{"key": k, "label": v[0], "document": json.dumps(v[1])} for k, v in contents.kernels.items()]),
            (MODEL, [{"key": k, "template": v[0], "widths": json.dumps(v[1])} for k, v in contents.models.items()]),
            (ADOPTION, [asdict(adopted) for adopted in contents.adoptions]),
        ]
        with self._storage.transaction(write=True) as connection:
            for table, rows in tables:
                if rows:
                    connection.execute(self._storage.insert_ignoring(table), rows)
            there = sa.select(SAMPLE.c.conditions, SAMPLE.c.subject, SAMPLE.c.samples_ms)
            left = Counter(tuple(row) for row in connection.execute(there))
            fresh = []
            for stored in contents.passes:
                row = _sample_row(stored)
                identity = (row["conditions"], row["subject"], row["samples_ms"])
                if left[identity] > 0:
                    left[identity] -= 1
                else:
                    fresh.append(row)
            if fresh:
                connection.execute(sa.insert(SAMPLE), fresh)
        return len(fresh)

    # Adoption of kernels that were measured under other conditions

    def adopt(self, conditions: Conditions, source: Conditions, keys: Iterable[str], ratio: float) -> int:
        """Copies the kernels `keys` measured under `source` to `conditions`, times `ratio`; returns how many passes.

        Where that came from stays on record. Raises InvalidInput when the conditions already have kernels of `keys`.
        """
        measured = self.passes(source, keys)
        if self.passes(conditions, measured):
            raise InvalidInput("kernels were already measured under these conditions", next_step="nothing to adopt")
        scaled = [
            (key, Pass(tuple(value * ratio for value in one.samples_ms), one.busy))
            for key, passes in measured.items()
            for one in passes
        ]
        self.add_passes(conditions, scaled, warmup_runs=0)
        self._storage.insert_new(ADOPTION, [asdict(Adoption(conditions.key, source.key, ratio, _now()))])
        return len(scaled)

    def adoptions(self) -> dict[tuple[str, str], float]:
        """(Key of conditions, key of those that some of its kernels were measured under) -> the ratio applied."""
        with self._storage.transaction() as connection:
            return {(one.conditions, one.source): one.ratio for one in _read_adoptions(connection)}


def _read_adoptions(connection: sa.Connection) -> list[Adoption]:
    """All that is on record, in the order made."""
    columns = ADOPTION.c
    query = sa.select(columns.conditions, columns.source, columns.ratio, columns.created)
    rows = connection.execute(query.order_by(columns.created, columns.conditions, columns.source)).all()
    return [Adoption(conditions, source, float(ratio), created) for conditions, source, ratio, created in rows]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _conditions_row(conditions: Conditions) -> dict[str, str]:
    return {"key": conditions.key, "document": json.dumps(conditions.to_document())}


def _sample_row(stored: StoredPass) -> dict[str, Any]:
    return {
        "conditions": stored.conditions, "subject": stored.subject, "samples_ms": json.dumps(stored.one.samples_ms),
        "busy": stored.one.busy, "warmup_runs": stored.warmup_runs, "created": stored.created,
    }  # fmt: skip


def _operator_of(document: Mapping[str, Any]) -> str:
    """What kind of operator a kernel is, from its document; empty where an imported table does not have it."""
    if "operators" in document:
        return Kernel.from_document(document).operator_type
    return str(document.get("shape", {}).get("operator", ""))


class RecordedDevice:
    """A device that is not asked any more: what was measured on it is read, nothing is measured."""

    jobs_per_batch = 1

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    def conditions(self) -> Conditions:
        return self._conditions

    def session(self) -> AbstractContextManager[object]:
        raise self._error()

    def passes(self, jobs: Sequence[Job]) -> Generator[Pass, None, None]:
        raise self._error()

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[Pass, Pass]]:
        raise self._error()

    def is_steady(self) -> bool:
        return True

    def settle(self) -> None:
        raise self._error()

    def neighbours(self) -> Neighbours | None:
        return None

    def screen(self) -> str:
        return ""

    def most_neighbours(self) -> Neighbours | None:
        return None

    def _error(self) -> DeviceError:
        return DeviceError(
            f"the table of {self._conditions.device} is used without the device, and lacks something",
            next_step="attach the device and run `amc-mobile profile`",
        )
