"""The latency table in PostgreSQL. Starts a server of its own on a free port, or is skipped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from latency_toys import CONDITIONS, add_model, conv, passes

from amc_mobile.device.device import Pass
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.latency import database_url
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.table import LatencyTable
from amc_mobile.latency.table_files import from_lines, to_lines

ROOT, HERE = Path(__file__).parent.parent.parent, Path(__file__).parent
PASSWORD = "s3cr/et@word"
WRITER = """
import sys
from latency_toys import CONDITIONS, conv
from amc_mobile.device.device import Pass
from amc_mobile.latency.table import LatencyTable

table, number = LatencyTable(sys.argv[1]), int(sys.argv[2])
table.add_kernels([conv(8, 8)])
while True:
    pair = [(conv(8, 8).key, Pass((number + part, 1.0))) for part in (0.0, 0.5)]
    table.add_passes(CONDITIONS, pair, warmup_runs=4)
    print(number, flush=True)
    number += 1
"""


def as_user(command: list[str]) -> list[str]:
    """The server refuses to run as root; `nobody` will do."""
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for needed in ("initdb", "pg_ctl", *(["setpriv"] if os.geteuid() == 0 else [])):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    folder = Path("/tmp" if os.geteuid() == 0 else tmp_path_factory.mktemp("pg")) / f"amc-mobile-pg-{os.getpid()}"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    environment = {**os.environ, "LC_ALL": "C", "HOME": str(folder)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": folder}
    try:
        make = ["initdb", "-D", data, "-U", "amc", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(as_user(make), check=True, **quiet)
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        flags = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        start = ["pg_ctl", "-D", data, "-o", flags, "-w", "-l", str(folder / "log"), "start"]
        subprocess.run(as_user(start), check=True, **quiet)
        url = f"postgresql+psycopg://amc@127.0.0.1:{port}/postgres"
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        engine.dispose()
        yield url
        subprocess.run(as_user(["pg_ctl", "-D", data, "-m", "immediate", "stop"]), check=False, **quiet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """An empty database of its own."""
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return server.rpartition("/")[0] + f"/{name}"


def test_a_table_in_a_database_does_what_one_in_a_file_does(url: str, tmp_path: Path) -> None:
    with LatencyTable(url) as table, LatencyTable(tmp_path / "t.sqlite") as file:
        for one in (table, file):
            one.add_kernels([conv(8, 16), conv(8, 16)])
            one.add_passes(CONDITIONS, [(conv(8, 16).key, p) for p in passes(1.0, 0.1 + 0.2)], warmup_runs=4)
            add_model(one, "net", [8, 24], ModelMeasurement(passes(2.0), CONDITIONS, 5))
        assert table.kernels(CONDITIONS) == file.kernels(CONDITIONS)
        assert table.conditions() == file.conditions()
        assert table.passes(CONDITIONS, [conv(8, 16).key]) == file.passes(CONDITIONS, [conv(8, 16).key])
        assert [m for _, m in table.models(CONDITIONS, "net")] == [m for _, m in file.models(CONDITIONS, "net")]
        assert table.entries() == file.entries()
        assert table.add_contents(file.contents()) == 0
        assert table.adopt(CONDITIONS, CONDITIONS, [], 1.0) == 0
    with LatencyTable(url) as again:
        assert len(again.kernels(CONDITIONS)) == 1


def test_a_bundle_travels_between_file_and_database(url: str, tmp_path: Path) -> None:
    with LatencyTable(tmp_path / "t.sqlite") as file, LatencyTable(url) as table:
        file.add_kernels([conv(8, 16)])
        file.add_passes(CONDITIONS, [(conv(8, 16).key, Pass((1.5, 2.5), busy=True))], warmup_runs=4)
        table.add_contents(from_lines(Path("b.jsonl"), to_lines(file.contents())))
        assert table.contents() == file.contents()


def test_two_machines_fill_one_table_and_one_dies(url: str) -> None:
    def start(first: int) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", WRITER, url, str(first)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": f"{ROOT}:{HERE}"})

    writers = [start(1), start(1_000_000)]
    told: list[int] = []
    for position, writer in enumerate(writers):
        assert writer.stdout
        told += [int(writer.stdout.readline()) for _ in range(15)]
        if position == 0:
            writer.send_signal(signal.SIGKILL)
    writers[1].send_signal(signal.SIGKILL)
    for writer in writers:
        assert writer.stdout
        told += [int(line) for line in writer.stdout.read().split()]
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
    with LatencyTable(url) as table:
        stored = table.passes(CONDITIONS, [conv(8, 8).key])[conv(8, 8).key]
        assert len(table.conditions()) == len(table.kernels(CONDITIONS)) == 1
    counts = Counter(one.samples_ms[0] for one in stored)
    numbers = {int(value) for value in counts}
    assert set(counts.values()) == {1}
    assert set(told) <= numbers
    assert len(numbers) <= len(told) + 2
    assert all(number + 0.5 in counts for number in numbers)


def test_another_programs_database_and_another_format_are_refused(url: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE sample (taste TEXT)")
        with pytest.raises(InvalidInput, match="another program"):
            LatencyTable(url)
        connection.exec_driver_sql("DROP TABLE sample")
        LatencyTable(url).close()
        connection.exec_driver_sql("UPDATE amc_mobile_format SET version = 99")
        with pytest.raises(InvalidInput, match="format 99"):
            LatencyTable(url)
    engine.dispose()


def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    with pytest.raises(InvalidInput) as caught:
        LatencyTable("postgresql+psycopg://amc:secret@127.0.0.1:1/nowhere")
    assert "127.0.0.1:1/nowhere" in caught.value.message
    assert "secret" not in caught.value.message + caught.value.next_step


@pytest.fixture
def guarded(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database for a user who needs the password PASSWORD, which nothing tells yet."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", "/nowhere")
    monkeypatch.setattr(database_url, "_passwords", {})
    return url.replace("amc@", "guarded@")


def test_a_password_comes_from_the_url_for_this_process_alone(guarded: str) -> None:
    with LatencyTable(guarded.replace("guarded@", f"guarded:{quote(PASSWORD, safe='')}@")) as table:
        assert table.conditions() == []
        assert table.name == guarded
    LatencyTable(guarded).close()  # the workspace's memory has no password, the process has
    database_url._passwords.clear()
    with pytest.raises(InvalidInput, match="no password supplied") as caught:
        LatencyTable(guarded)
    assert "PGPASSWORD" in caught.value.next_step


@pytest.mark.parametrize("source", ["environment", "file", "prompt"])
def test_a_password_comes_from_where_postgresql_looks_or_is_typed(
    guarded: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    if source == "environment":
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
    elif source == "file":
        (tmp_path / "passwords").write_text(f"*:*:*:guarded:{PASSWORD}\n")
        (tmp_path / "passwords").chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "passwords"))
    else:
        monkeypatch.setattr(database_url, "_ask", lambda name: asked.append(name) or PASSWORD)
    for _ in range(2):
        LatencyTable(guarded).close()
    assert asked == ([guarded] if source == "prompt" else [])


def test_a_wrong_password_is_not_shown(guarded: str) -> None:
    with pytest.raises(InvalidInput, match="password authentication failed") as caught:
        LatencyTable(guarded.replace("guarded@", "guarded:wr0ng@"))
    assert "wr0ng" not in caught.value.message + caught.value.next_step


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql+asyncpg://h/d", "http://host", "://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidConfig, match="--table"):
        LatencyTable(url)
