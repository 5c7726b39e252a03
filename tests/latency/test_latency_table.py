from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from latency_toys import CONDITIONS, add_model, conv, passes

from amc_mobile.device.device import Pass
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.latency.measurement import ModelMeasurement, model_key
from amc_mobile.latency.table import APPLICATION_ID, FORMAT_VERSION, LatencyTable

ROOT = Path(__file__).parent.parent.parent
# Adds passes of one kernel for ever, each with a sample of its own, and tells each once it is stored.
WRITER = """
import sys
from pathlib import Path
from latency_toys import CONDITIONS, conv
from amc_mobile.device.device import Pass
from amc_mobile.latency.table import LatencyTable

table, kernel = LatencyTable(Path(sys.argv[1])), conv(8, 8)
table.add_kernels([kernel])
number = int(sys.argv[2])
while True:
    one, other = Pass((float(number), 1.0)), Pass((number + 0.5, 1.0))
    table.add_passes(CONDITIONS, [(kernel.key, one), (kernel.key, other)], warmup_runs=4)
    print(number, flush=True)
    number += 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "table.sqlite"


def fill(path: Path) -> None:
    with LatencyTable(path) as table:
        table.add_kernels([conv(8, 16), conv(16, 8)])
        table.add_passes(CONDITIONS, [(conv(8, 16).key, one) for one in passes(1.0, 1.5)], warmup_runs=4)


def damage(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, values)


def test_what_was_stored_comes_back_in_the_order_made(path: Path) -> None:
    key = conv(8, 16).key
    first, second = Pass((1.25, 0.1 + 0.2), busy=True), Pass((3.0,))
    with LatencyTable(path) as table:
        table.add_kernels([conv(8, 16)])
        table.add_passes(CONDITIONS, [(key, first), (key, second)], warmup_runs=4)
    with LatencyTable(path) as table:
        assert table.passes(CONDITIONS, [key, "unknown"]) == {key: (first, second)}
        (kernel,) = table.kernels(CONDITIONS).values()
        assert (kernel.label, kernel.passes) == (conv(8, 16).label, (first, second))
        assert table.conditions() == [CONDITIONS]


def test_whole_models_come_back_with_their_widths(path: Path) -> None:
    measured = ModelMeasurement(passes(2.0, 2.1, 2.2), CONDITIONS, 5)
    with LatencyTable(path) as table:
        add_model(table, "net", [8, 24], measured)
        add_model(table, "other", [8, 24], measured)
        add_model(table, "net", [8, 24], measured)
        ((widths, found),) = table.models(CONDITIONS, "net")
        assert (widths.tolist(), widths.dtype) == ([8, 24], np.int64)
        assert found.passes == measured.passes * 2
        assert found.warmup_runs == 5


def test_conditions_are_never_mixed(path: Path) -> None:
    fill(path)
    key = conv(8, 16).key
    for change in ({"threads": 4}, {"runtime_version": "1.1"}, {"library_sha256": "cd"}, {"clock_mode": "performance"}):
        other = replace(CONDITIONS, **change)
        with LatencyTable(path) as table:
            assert table.passes(other, [key]) == {}
            assert table.kernels(other) == {}
            assert table.models(other, "net") == []


def test_naming_a_kernel_again_changes_nothing(path: Path) -> None:
    fill(path)
    fill(path)
    with LatencyTable(path) as table:
        (kernel,) = table.kernels(CONDITIONS).values()
        assert len(kernel.passes) == 4


def test_many_keys_are_looked_up_at_once(path: Path) -> None:
    kernels = [conv(8, 8 * n) for n in range(1, 1200)]
    with LatencyTable(path) as table:
        table.add_kernels(kernels)
        table.add_passes(CONDITIONS, [(k.key, Pass((1.0,))) for k in kernels], warmup_runs=4)
        assert len(table.passes(CONDITIONS, [k.key for k in kernels])) == 1199


def test_passes_are_added_all_or_none(path: Path) -> None:
    fill(path)
    with LatencyTable(path) as table:
        with pytest.raises(CorruptFile):
            rows = [(conv(8, 16).key, Pass((7.0,))), (None, Pass((8.0,)))]
            table.add_passes(CONDITIONS, rows, warmup_runs=4)  # type: ignore[arg-type]
        table.add_passes(CONDITIONS, [], warmup_runs=4)
        assert len(table.passes(CONDITIONS, [conv(8, 16).key])[conv(8, 16).key]) == 2


def test_an_entry_names_the_slowest_kernels_first(path: Path) -> None:
    fill(path)
    with LatencyTable(path) as table:
        table.add_passes(CONDITIONS, [(conv(16, 8).key, one) for one in passes(4.0, 4.1)], warmup_runs=4)
        add_model(table, "net", [8], ModelMeasurement(passes(2.0), CONDITIONS, 5))
        (entry,) = table.entries()
    assert [(kernel.low_ms, kernel.flags) for kernel in entry.kernels] == [(4.0, ()), (1.0, ("NOISY",))]
    assert entry.model_measurements == 1


# Two processes


def test_two_processes_fill_one_table_and_one_is_killed(path: Path) -> None:
    def start(first: int) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", WRITER, str(path), str(first)]
        here = str(Path(__file__).parent)
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": f"{ROOT}:{here}"})

    victim, survivor = start(1), start(1_000_000)
    assert victim.stdout and survivor.stdout
    told = [int(victim.stdout.readline()) for _ in range(20)] + [int(survivor.stdout.readline()) for _ in range(20)]
    victim.send_signal(signal.SIGKILL)
    told += [int(line) for line in victim.stdout.read().split()]
    told += [int(survivor.stdout.readline()) for _ in range(20)]
    survivor.send_signal(signal.SIGKILL)
    told += [int(line) for line in survivor.stdout.read().split()]
    for process in (victim, survivor):
        assert process.wait() == -signal.SIGKILL
        assert process.stdout
        process.stdout.close()
    with LatencyTable(path) as table:
        stored = table.passes(CONDITIONS, [conv(8, 8).key])[conv(8, 8).key]
        assert len(table.kernels(CONDITIONS)) == 1
        assert table.conditions() == [CONDITIONS]
    counts = Counter(one.samples_ms[0] for one in stored)
    assert set(counts.values()) == {1}
    numbers = {int(value) for value in counts}
    # A killed writer may have stored its last pair before it could tell; a pair is never torn.
    assert set(told) <= numbers
    assert len(numbers) <= len(told) + 2
    assert all(counts[float(n)] == counts[n + 0.5] == 1 for n in numbers)


def test_a_reader_sees_what_another_process_wrote_meanwhile(path: Path) -> None:
    with LatencyTable(path) as one, LatencyTable(path) as other:
        one.add_kernels([conv(8, 16)])
        one.add_passes(CONDITIONS, [(conv(8, 16).key, Pass((1.0,)))], warmup_runs=4)
        assert list(other.kernels(CONDITIONS)) == [conv(8, 16).key]


def test_a_table_that_stays_locked_is_an_error_that_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr("amc_mobile.latency.table.LOCK_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(InvalidInput, match="locked"):
            LatencyTable(path)
    finally:
        holder.close()


# Files that are no table


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough" * 40, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_file_of_another_kind_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="damaged or no latency table") as caught:
        LatencyTable(path)
    assert "profile" in caught.value.next_step
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    damage(path, "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(CorruptFile, match="another program"):
        LatencyTable(path)


@pytest.mark.parametrize(("version", "hint"), [(FORMAT_VERSION - 1, "profile"), (FORMAT_VERSION + 1, "update")])
def test_another_format_version_is_refused_with_what_to_do(path: Path, version: int, hint: str) -> None:
    fill(path)
    damage(path, f"PRAGMA user_version = {version}")
    with pytest.raises(CorruptFile, match=f"format {version}, this version reads {FORMAT_VERSION}") as caught:
        LatencyTable(path)
    assert hint in caught.value.next_step


def test_a_truncated_table_is_refused(path: Path) -> None:
    fill(path)
    with LatencyTable(path) as table:
        kernels = [conv(8, 8 * n) for n in range(1, 400)]
        table.add_kernels(kernels)
        table.add_passes(CONDITIONS, [(k.key, Pass((1.0,) * 50)) for k in kernels], warmup_runs=4)
    damage(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile):
        LatencyTable(path)


def test_a_table_without_its_tables_is_refused(path: Path) -> None:
    path.parent.mkdir()
    damage(path, f"PRAGMA application_id = {APPLICATION_ID}")
    damage(path, f"PRAGMA user_version = {FORMAT_VERSION}")
    with pytest.raises(CorruptFile, match="damaged"):
        LatencyTable(path)


@pytest.mark.parametrize("samples", ["[1.0, NaN]", "[-1.0]", "[0]", "[]", "[1.0", '["1"]', "7", "null", "[Infinity]"])
def test_unreadable_samples_are_refused_with_the_file_named(path: Path, samples: str) -> None:
    fill(path)
    damage(path, "UPDATE sample SET samples_ms = ? WHERE id = 1", samples)
    with LatencyTable(path) as table:
        with pytest.raises(CorruptFile, match="unreadable samples"):
            table.kernels(CONDITIONS)
        with pytest.raises(CorruptFile, match=r"table\.sqlite"):
            table.passes(CONDITIONS, [conv(8, 16).key])


@pytest.mark.parametrize("widths", ["[8.5]", "8", "[true]", "[8", '["8"]'])
def test_unreadable_widths_are_refused(path: Path, widths: str) -> None:
    with LatencyTable(path) as table:
        add_model(table, "net", [8], ModelMeasurement(passes(2.0), CONDITIONS, 5))
    damage(path, "UPDATE model SET widths = ?", widths)
    with LatencyTable(path) as table, pytest.raises(CorruptFile, match="unreadable widths"):
        table.models(CONDITIONS, "net")


@pytest.mark.parametrize("change", [{"threads": "1"}, {"soc": None}, {"extra": 1}])
def test_unreadable_conditions_are_refused(path: Path, change: dict[str, object]) -> None:
    fill(path)
    damage(path, "UPDATE conditions SET document = ?", json.dumps(CONDITIONS.to_document() | change))
    with LatencyTable(path) as table, pytest.raises(CorruptFile, match="unreadable conditions"):
        table.conditions()


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is a folder"):
        LatencyTable(tmp_path)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="file"):
        LatencyTable(tmp_path / "file" / "table.sqlite")


def test_the_key_of_a_model_is_stable() -> None:
    # Tables outlive versions of this program: a key that changed would orphan every measurement.
    assert model_key("net", [8, 16])[:16] == "1276764dcab076b0"


def test_opening_a_new_table_twice_at_once_works(path: Path) -> None:
    program = "import sys, pathlib, amc_mobile.latency.table as t; t.LatencyTable(pathlib.Path(sys.argv[1]))"
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(path)], env={"PYTHONPATH": str(ROOT)}) for _ in range(2)
    ]
    deadline = time.monotonic() + 60
    assert [p.wait(timeout=max(1, deadline - time.monotonic())) for p in both] == [0, 0]
