"""Batches on the fake phone, through the real adb server, with everything that may go wrong while they run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from benches import fake_runner, installed, manifest, results, runners
from phone_fake.phone import FakePhone

from amc_mobile.device import adb as adb_module
from amc_mobile.device import phone_runner
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.phone_runner import CLEAN_UP, FOLDER, KEPT_FOLDERS, PhoneRunner
from amc_mobile.device.runner import BenchEvent, BenchResult, BenchStart
from amc_mobile.errors import (
    DeadlineExceeded,
    DeviceDisconnected,
    DeviceError,
    InvalidInput,
    PhoneDiskFull,
    PhoneOutputInvalid,
    PhoneRebooted,
    RunnerFailed,
)

MODELS = {f"m{n}": f"ms={n + 1}.5 wait=0.06" for n in range(8)}
WANTED = [(name, n + 1.5) for n, name in enumerate(MODELS)]


@pytest.fixture
def runner(adb: AdbPhone, tmp_path: Path) -> PhoneRunner:
    library = tmp_path / "libtensorflowlite_jni.so"
    library.write_bytes(b"\x7fELF not loaded by the stand-in")
    runner = PhoneRunner(adb, installed(fake_runner(tmp_path)), installed(library))
    runner.open()
    return runner


def batch(
    runner: PhoneRunner, models: dict[str, str] = MODELS, *, labels: Sequence[str] = (), **deadlines: int
) -> Iterator[BenchEvent]:
    paths = runner.keep([text.encode() for text in models.values()])
    return runner.run(manifest(runner.library_path, dict(zip(models, paths, strict=True)), **deadlines), labels=labels)


def left_on(phone: FakePhone) -> list[str]:
    return sorted(p.name for p in phone.sandbox.local(FOLDER).iterdir() if not p.name.startswith(("keep-", "models")))


def clean_up(runner: PhoneRunner) -> None:
    runner.adb.shell(CLEAN_UP, what="cleaning up")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_lines_come_while_the_runner_works_and_nothing_is_left(runner: PhoneRunner, phone: FakePhone) -> None:
    lines = batch(runner, {"a": "ms=1.5", "b": "ms=2.5 wait=2"})
    first = next(lines)
    assert isinstance(first, BenchStart)
    assert len(runners(phone)) == 1
    assert results([first, *lines]) == [("a", 1.5), ("b", 2.5)]
    assert phone.sandbox.processes() == []
    clean_up(runner)
    wait_for(lambda: left_on(phone) == [])


def test_runner_and_library_are_copied_once(runner: PhoneRunner, phone: FakePhone) -> None:
    kept = phone.sandbox.local(FOLDER)
    before = {p: p.stat().st_mtime_ns for p in kept.glob("keep-*/*")}
    assert len(before) == 2
    phone.faults.add("close", "^sync:.*", after_bytes=2000, times=9)
    runner.open()
    assert {p: p.stat().st_mtime_ns for p in kept.glob("keep-*/*")} == before


def test_files_that_were_not_used_for_long_are_removed(runner: PhoneRunner, phone: FakePhone) -> None:
    """Each update leaves a runner and a library of some 30 MB behind."""
    kept = phone.sandbox.local(FOLDER)
    own = {path.name for path in kept.glob("keep-*")}
    for age_s, name in enumerate([*own, *(f"keep-{n}" for n in range(9))], start=1000):
        (kept / name).mkdir(exist_ok=True)
        os.utime(kept / name, (time.time() - age_s,) * 2)
    runner.open()
    assert {path.name for path in kept.glob("keep-*")} == own | {f"keep-{n}" for n in range(KEPT_FOLDERS - len(own))}
    assert results(batch(runner)) == WANTED


def test_a_half_copied_runner_is_copied_again(runner: PhoneRunner, phone: FakePhone) -> None:
    path = next(phone.sandbox.local(FOLDER).glob("keep-*/amc-bench"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    runner.open()
    assert path.read_bytes() == whole


def test_nothing_looks_for_the_end_while_the_phone_measures(runner: PhoneRunner, phone: FakePhone) -> None:
    lines = batch(runner, {"a": "ms=1.5", "b": "ms=2.5 wait=2"})
    next(lines)
    for _ in range(10):
        assert len(phone.sandbox.processes()) == 3  # the runner, and the shell that waits for it with its subshell
        time.sleep(0.01)
    list(lines)


def test_an_unplugged_phone_loses_no_result(runner: PhoneRunner, phone: FakePhone) -> None:
    lines = batch(runner)
    got = [next(lines), next(lines)]
    phone.unplug()
    timer = threading.Timer(0.8, phone.plug_in)
    timer.start()
    assert results([*got, *lines]) == WANTED
    timer.join()


def test_answers_cut_at_any_place_lose_no_result(runner: PhoneRunner, phone: FakePhone) -> None:
    for after in (0, 40, 100, 300):
        phone.faults.add("disconnect", "sleep.*tail -c", after_bytes=after)
    assert results(batch(runner)) == WANTED


@pytest.mark.parametrize("after_bytes", [5, 6000, 14_000])  # before the models, amid them, in the answer
def test_a_link_that_breaks_while_starting_starts_once(runner: PhoneRunner, phone: FakePhone, after_bytes: int) -> None:
    fault = phone.faults.add("disconnect", "mkdir started", after_bytes=after_bytes)
    assert results(batch(runner)) == WANTED
    assert fault.struck == 1


def test_a_stalled_answer_loses_no_result(
    runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_runner, "POLL_TIMEOUT_S", 0.7)
    fault = phone.faults.add("stall", "sleep.*tail -c", after_bytes=60)
    slow = {
        name: words.replace("wait=0.06", "wait=0.3") for name, words in MODELS.items()
    }  # so that results are asked for
    assert results(batch(runner, slow)) == WANTED
    assert fault.struck == 1


def test_a_phone_that_stays_away_is_an_error_and_the_next_run_cleans_up(
    runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_runner, "RECONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(phone_runner, "CLEAN_TIMEOUT_S", 0.5)
    lines = batch(runner, {"a": "ms=1.5", "b": "ms=2.5 wait=99"})
    next(lines)
    phone.unplug()
    with pytest.raises(DeviceDisconnected, match="did not come back"):
        list(lines)
    assert len(runners(phone)) == 1
    phone.plug_in()
    runner.open()
    wait_for(lambda: phone.sandbox.processes() == [])
    assert left_on(phone) == []
    assert results(batch(runner)) == WANTED


def test_a_reboot_is_named_after_what_was_measured(runner: PhoneRunner, phone: FakePhone) -> None:
    lines = batch(runner, {"a": "ms=1.5", "b": "ms=2.5 wait=99"})
    got = [next(lines)]
    results_file = next(phone.sandbox.local(FOLDER).glob("batch-*")) / "results.jsonl"
    wait_for(lambda: b'"id": "a"' in results_file.read_bytes())
    phone.reboot()
    with pytest.raises(PhoneRebooted, match="started anew"):
        for line in lines:
            got.append(line)
    assert isinstance(got[1], BenchResult)
    assert got[1].id == "a"
    runner.open()
    assert left_on(phone) == []
    assert results(batch(runner)) == WANTED


def test_a_runner_that_crashes_is_told_with_its_log(runner: PhoneRunner, phone: FakePhone) -> None:
    with pytest.raises(RunnerFailed, match="Segmentation fault"):
        list(batch(runner, {"a": "ms=1.5", "b": "crash", "c": "ms=1"}))
    assert left_on(phone) == []


def test_a_runner_that_cannot_be_executed_is_told(runner: PhoneRunner, phone: FakePhone) -> None:
    next(phone.sandbox.local(FOLDER).glob("keep-*/amc-bench")).chmod(0o644)
    with pytest.raises(RunnerFailed, match=r"[Pp]ermission denied"):
        list(batch(runner))


def test_garbage_among_the_results_is_no_number(runner: PhoneRunner) -> None:
    with pytest.raises(DeviceError, match="the runner's output cannot be used"):
        list(batch(runner, {"a": "ms=1.5", "b": "garbage ms=1"}))


def test_garbage_around_every_answer_changes_nothing(runner: PhoneRunner, phone: FakePhone) -> None:
    phone.faults.add("garbage", "shell", times=999)
    assert results(batch(runner)) == WANTED


def test_the_deadline_ends_the_runner(runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_runner, "END_GRACE_S", 0.0)
    with pytest.raises(DeadlineExceeded, match="the batch on the phone"):
        list(batch(runner, {"a": "ms=1.5", "b": "ms=1 wait=99"}, deadline_s=1))
    wait_for(lambda: phone.sandbox.processes() == [])
    assert left_on(phone) == []


def test_a_hung_runner_is_reported_named_and_ended(
    runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_runner, "NOTICE_S", 0.1)
    said: list[str] = []
    runner.adb.server.on_wait = lambda what, waited_s, limit_s: said.append(what)
    monkeypatch.setattr(phone_runner, "HANG_GRACE_S", 0.0)
    models = {"a": "ms=1.5", "b": "hang"}
    lines = batch(runner, models, deadline_s=600, model_deadline_s=1, labels=["small", "3x3 convolution"])
    assert [type(next(lines)), type(next(lines))] == [BenchStart, BenchResult]
    with pytest.raises(RunnerFailed, match=r"hangs: it has given no result for .* s, while it measured 3x3 conv"):
        next(lines)
    assert said[0] == "the runner measures 3x3 convolution"
    wait_for(lambda: phone.sandbox.processes() == [])
    assert left_on(phone) == []


def test_closing_the_iterator_ends_the_runner(runner: PhoneRunner, phone: FakePhone) -> None:
    lines = batch(runner, {"a": "ms=1.5", "b": "ms=1 wait=99"})
    next(lines)
    lines.close()  # type: ignore[attr-defined]
    assert phone.sandbox.processes() == []


def test_ctrl_c_ends_the_runner(runner: PhoneRunner, phone: FakePhone) -> None:
    with pytest.raises(KeyboardInterrupt):
        for _ in batch(runner, {"a": "ms=1.5", "b": "ms=1 wait=99"}):
            raise KeyboardInterrupt
    wait_for(lambda: phone.sandbox.processes() == [])


def test_a_full_disk_is_named_before_anything_is_copied(runner: PhoneRunner, phone: FakePhone) -> None:
    phone.sandbox.free_bytes = 33 << 20
    runner.open()
    with pytest.raises(PhoneDiskFull, match="33 MiB free"):
        list(batch(runner, {"a": "ms=1.5" + " " * (1 << 20)}))
    phone.sandbox.free_bytes = 99 << 20  # asked again before it is believed to be too little
    assert results(batch(runner)) == WANTED


def test_a_disk_that_fills_while_copying_is_named(
    runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_runner, "SPARE_BYTES", -(1 << 30))
    phone.sandbox.free_bytes = 1024
    with pytest.raises(PhoneDiskFull) as caught:
        list(batch(runner))
    assert caught.value.message == "the phone has 0 MiB free: the models of a batch do not fit"
    assert "free some space on the phone" in caught.value.next_step
    assert left_on(phone) == []


def test_a_disk_that_fills_between_two_batches_is_named(runner: PhoneRunner, phone: FakePhone) -> None:
    """What was free when last asked is still believed, so that tar meets the full disk."""
    assert results(batch(runner, {"a": "ms=1"})) == [("a", 1.0)]
    phone.sandbox.free_bytes = 0
    with pytest.raises(PhoneDiskFull, match=r"^the phone has 0 MiB free: the models of a batch do not fit$"):
        list(batch(runner))
    phone.sandbox.free_bytes = 1 << 30
    assert results(batch(runner)) == WANTED


def test_a_disk_that_fills_while_the_runner_is_copied_is_named(
    runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone_runner, "SPARE_BYTES", -(1 << 30))
    next(phone.sandbox.local(FOLDER).glob("keep-*/amc-bench")).unlink()
    phone.sandbox.free_bytes = 1024
    with pytest.raises(PhoneDiskFull, match=r"^the phone has 0 MiB free: .*/amc-bench does not fit$"):
        runner.open()


def models_on(phone: FakePhone) -> list[bytes]:
    return sorted(path.read_bytes() for path in phone.sandbox.local(f"{FOLDER}/models").iterdir())


def test_models_are_copied_once_and_removed_at_the_end(runner: PhoneRunner, phone: FakePhone) -> None:
    assert results(batch(runner, {"a": "ms=1", "b": "ms=2", "c": "ms=1"})) == [("a", 1.0), ("b", 2.0), ("c", 1.0)]
    times = [path.stat().st_ctime_ns for path in sorted(phone.sandbox.local(f"{FOLDER}/models").iterdir())]
    assert results(batch(runner, {"a": "ms=2", "b": "ms=1"})) == [("a", 2.0), ("b", 1.0)]
    assert [path.stat().st_ctime_ns for path in sorted(phone.sandbox.local(f"{FOLDER}/models").iterdir())] == times
    assert results(batch(runner, {"a": "ms=3"})) == [("a", 3.0)]
    assert models_on(phone) == [b"ms=1", b"ms=2", b"ms=3"]
    clean_up(runner)
    wait_for(lambda: left_on(phone) == [])
    assert not phone.sandbox.local(f"{FOLDER}/models").exists()


def test_models_make_room_for_new_ones(runner: PhoneRunner, phone: FakePhone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_runner, "KEEP_BYTES", 10)
    assert results(batch(runner, {"a": "ms=1", "b": "ms=2"})) == [("a", 1.0), ("b", 2.0)]
    assert results(batch(runner, {"a": "ms=2", "b": "ms=3"})) == [("a", 2.0), ("b", 3.0)]
    assert models_on(phone) == [b"ms=2", b"ms=3"]


@pytest.mark.parametrize("name", ["a b.so", "a;id.so", "$(id)", ".hidden", "x" * 101])
def test_names_that_could_mislead_the_phone_are_refused(adb: AdbPhone, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidInput, match="no phone should see"):
        PhoneRunner(adb, installed(tmp_path / name), installed(tmp_path / name))


def test_every_failure_above_is_a_device_error() -> None:
    for kind in (PhoneRebooted, RunnerFailed, DeviceDisconnected, DeadlineExceeded, PhoneDiskFull, PhoneOutputInvalid):
        assert issubclass(kind, DeviceError)
    assert adb_module.ATTEMPTS > 1
