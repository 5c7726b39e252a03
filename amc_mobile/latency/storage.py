"""Where a latency table lies: a SQLite file, or a PostgreSQL database that several machines fill."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from amc_mobile.errors import AmcMobileError, CorruptFile, InvalidConfig, InvalidInput, MissingDependency
from amc_mobile.latency.database_url import URL_FORM, WAYS, asked_password, password_of, take_password

FORMAT_VERSION = 1  # 1: conditions, kernel, model, sample; adoption, where there is none yet, is added
APPLICATION_ID = 0x414D434C  # "AMCL": marks the file as ours
LOCK_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10
NO_PASSWORD = "no password supplied"  # what libpq says
DELETE_IT = "move the file away and run `amc-mobile profile` again"

schema = sa.MetaData()
conditions = sa.Table(
    "conditions",
    schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("document", sa.String, nullable=False),
)
kernel = sa.Table(
    "kernel",
    schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("label", sa.String, nullable=False),
    sa.Column("document", sa.String, nullable=False),
)
model = sa.Table(
    "model",
    schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("template", sa.String, nullable=False, index=True),
    sa.Column("widths", sa.String, nullable=False),
)
sample = sa.Table(  # one row per pass
    "sample",
    schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("conditions", sa.String, sa.ForeignKey("conditions.key"), nullable=False),
    sa.Column("subject", sa.String, nullable=False),  # the key of a kernel or of a model
    sa.Column("samples_ms", sa.String, nullable=False),
    sa.Column("busy", sa.Boolean, nullable=False),
    sa.Column("warmup_runs", sa.Integer, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Index("sample_subject", "conditions", "subject"),
)
CORE_TABLES = frozenset(schema.tables)
adoption = sa.Table(  # passes under `conditions` that were measured under `source`, times `ratio`
    "adoption",
    schema,
    sa.Column("conditions", sa.String, sa.ForeignKey("conditions.key"), primary_key=True),
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("ratio", sa.Float, nullable=False),
    sa.Column("created", sa.String, nullable=False),
)
_version = sa.Table("amc_mobile_format", sa.MetaData(), sa.Column("version", sa.Integer, nullable=False))


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
                schema.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT_VERSION}")
                return
            if application != APPLICATION_ID:
                raise self.corrupt("is a database of another program", next_step=DELETE_IT)
            _check_version(self, version, DELETE_IT)
            problem = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if problem != "ok" or not names >= CORE_TABLES:
                raise self.corrupt(f"is damaged ({problem})", next_step=DELETE_IT)
            adoption.create(connection, checkfirst=True)

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
            if _version.name not in names:
                if names & CORE_TABLES:
                    raise self.corrupt("holds tables of another program", next_step="use an empty database")
                schema.create_all(connection)
                _version.create(connection)
                connection.execute(sa.insert(_version).values(version=FORMAT_VERSION))
                return
            _check_version(self, connection.execute(sa.select(_version.c.version)).scalar(), "use an empty database")
            if not names >= CORE_TABLES:
                raise self.corrupt("lacks some of its tables", next_step="use an empty database")
            adoption.create(connection, checkfirst=True)

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
