"""Batches on the fake phone: everything that may go wrong while they run, and those that a killed process left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from benches import NETWORK, fake_runner, installed, manifest, results, runners, wait_for
from command_line import CommandLine
from host_runner import build_host_runner, locate_library
from phone_fake.phone import FakePhone
from stored_passes import stored_passes, stored_rows

from amc_mobile.device import adb as adb_module
from amc_mobile.device import phone_runner
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.libraries import add_library
from amc_mobile.device.phone_runner import CLEAN_UP, FOLDER, HANG_GRACE_S, KEPT_FOLDERS, PhoneRunner
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
def new_runner(adb: AdbPhone, tmp_path: Path) -> Callable[[], PhoneRunner]:
    """Each is what a new process would open."""
    library = tmp_path / "libtensorflowlite_jni.so"
    library.write_bytes(b"\x7fELF not loaded by the stand-in")
    program = fake_runner(tmp_path)
    return lambda: PhoneRunner(adb, installed(program), installed(library))


@pytest.fixture
def runner(new_runner: Callable[[], PhoneRunner]) -> PhoneRunner:
    runner = new_runner()
    runner.open()
    return runner


def batch(
    runner: PhoneRunner,
    models: dict[str, str] = MODELS,
    *,
    labels: Sequence[str] = (),
    plan: str = "",
    **deadlines: int,
) -> Iterator[BenchEvent]:
    paths = runner.keep([text.encode() for text in models.values()])
    asked = manifest(runner.library_path, dict(zip(models, paths, strict=True)), **deadlines)
    return runner.run(asked, plan=plan, labels=labels)


def left_on(phone: FakePhone) -> list[str]:
    return sorted(p.name for p in phone.sandbox.local(FOLDER).iterdir() if not p.name.startswith(("keep-", "models")))


def clean_up(runner: PhoneRunner) -> None:
    runner.adb.shell(CLEAN_UP, what="cleaning up")


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
    phone.faults.add("close", "cat >/data", after_bytes=2000, times=9)
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


MODEL_DEADLINE_S = 40
PATIENCE_S = MODEL_DEADLINE_S + HANG_GRACE_S
FEW_MODELS = {f"m{n}": f"ms={n + 1}.5 wait=0.1" for n in range(4)}
FEW_RESULTS = [(name, n + 1.5) for n, name in enumerate(FEW_MODELS)]


def planned_batch(runner: PhoneRunner, models: dict[str, str] = FEW_MODELS) -> Iterator[BenchEvent]:
    return batch(runner, models, plan="the plan", model_deadline_s=MODEL_DEADLINE_S)


def killed(runner: PhoneRunner, models: dict[str, str] = FEW_MODELS) -> tuple[BenchEvent, Iterator[BenchEvent]]:
    """The first event of a batch; its generator is held, and never closed, as by a process that is no more."""
    runner.open()
    lines = planned_batch(runner, models)
    return next(lines), lines


def batches(phone: FakePhone) -> list[Path]:
    return list(phone.sandbox.local(FOLDER).glob("batch-*"))


def is_done(phone: FakePhone) -> bool:
    return any('"done"' in path.read_text() for path in phone.sandbox.local(FOLDER).glob("batch-*/results.jsonl"))


def has_kernels(results: bytes) -> bool:
    """Whether something was measured: the first batch only asks how graphs are rewritten."""
    return b'"result"' in results and b'"graph"' not in results


def test_a_runner_that_still_works_is_awaited(new_runner: Callable[[], PhoneRunner], phone: FakePhone) -> None:
    first, _lines = killed(new_runner())
    later = new_runner()
    later.open()
    assert later.unfinished() == "the plan"
    got = list(planned_batch(later))
    assert results(got) == FEW_RESULTS
    assert got[0] == first  # with the process's id
    assert later.taken_over is not None
    later.adb.shell(CLEAN_UP, what="cleaning up")
    assert batches(phone) == []


def test_finished_results_are_taken_once(new_runner: Callable[[], PhoneRunner], phone: FakePhone) -> None:
    first, _lines = killed(new_runner())
    wait_for(lambda: is_done(phone))
    later = new_runner()
    later.open()
    assert later.unfinished() == "the plan"
    got = list(planned_batch(later))
    assert (results(got), got[0]) == (FEW_RESULTS, first)
    again = list(planned_batch(later))
    assert results(again) == FEW_RESULTS
    assert again[0] != first
    assert later.taken_over is None
    assert len(batches(phone)) == 1  # one that was seen to its end goes when the next one starts


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


def test_a_stopped_runner_is_not_awaited(new_runner: Callable[[], PhoneRunner], phone: FakePhone) -> None:
    _, _lines = killed(new_runner(), {"a": "ms=1", "b": "hang"})
    wait_for(lambda: all(map(is_stopped, runners(phone))))
    later = new_runner()
    later.open()
    assert (later.unfinished(), batches(phone)) == ("", [])
    wait_for(lambda: phone.sandbox.processes() == [])


@pytest.mark.parametrize(("age_s", "plan"), [(PATIENCE_S - 30, "the plan"), (PATIENCE_S + 10, "")])
def test_a_runner_without_a_result_for_long_is_not_awaited(
    new_runner: Callable[[], PhoneRunner], phone: FakePhone, age_s: float, plan: str
) -> None:
    _, _lines = killed(new_runner(), {"a": "ms=1", "b": "ms=1 wait=99"})
    (results_file,) = phone.sandbox.local(FOLDER).glob("batch-*/results.jsonl")
    wait_for(lambda: b'"result"' in results_file.read_bytes())
    os.utime(results_file, (time.time() - age_s,) * 2)
    later = new_runner()
    later.open()
    assert later.unfinished() == plan


def test_another_batch_ends_and_removes_it(new_runner: Callable[[], PhoneRunner], phone: FakePhone) -> None:
    _, _lines = killed(new_runner(), {"a": "ms=1", "b": "ms=1 wait=99"})
    (old,) = batches(phone)
    later = new_runner()
    later.open()
    assert len(runners(phone)) == 1
    assert results(planned_batch(later)) == FEW_RESULTS
    assert not old.exists()
    wait_for(lambda: phone.sandbox.processes() == [])


def test_a_changed_model_is_another_batch(new_runner: Callable[[], PhoneRunner]) -> None:
    first, _lines = killed(new_runner())
    later = new_runner()
    later.open()
    got = list(planned_batch(later, {**FEW_MODELS, "m3": "ms=9"}))
    assert results(got) == [*FEW_RESULTS[:3], ("m3", 9.0)]
    assert got[0] != first


def test_nothing_is_taken_after_a_reboot(new_runner: Callable[[], PhoneRunner], phone: FakePhone) -> None:
    _, _lines = killed(new_runner())
    wait_for(lambda: is_done(phone))
    phone.reboot()
    later = new_runner()
    later.open()
    assert later.unfinished() == ""
    assert batches(phone) == []


def test_a_runner_that_died_has_left_nothing_to_take(new_runner: Callable[[], PhoneRunner], phone: FakePhone) -> None:
    _, _lines = killed(new_runner(), {"a": "ms=1", "b": "ms=1 wait=99"})
    phone.sandbox.kill_all()
    later = new_runner()
    later.open()
    assert (later.unfinished(), batches(phone)) == ("", [])


@pytest.mark.parametrize("damage", ["{", '{"plan": "x", "state": {"battery": "?"}}'])
def test_a_damaged_plan_is_no_plan(new_runner: Callable[[], PhoneRunner], phone: FakePhone, damage: str) -> None:
    _, _lines = killed(new_runner(), {"a": "ms=1", "b": "ms=1 wait=99"})
    (batches(phone)[0] / "plan.json").write_text(damage)
    later = new_runner()
    later.open()
    assert later.unfinished() == ""
    assert results(planned_batch(later)) == FEW_RESULTS
    wait_for(lambda: phone.sandbox.processes() == [])


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")
def test_a_killed_profile_takes_what_the_phone_went_on_to_measure(
    phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, table = tmp_path / "home", tmp_path / "amc-workspace/table.sqlite"
    (tmp_path / "net.py").write_text(NETWORK)
    phone.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
    library = locate_library("onnxruntime")
    (added,) = add_library(library.path, home / "runtimes", version=library.version)
    phone.sandbox.edit("getprop.txt", "[arm64-v8a]", f"[{added.abi}]")
    monkeypatch.setenv("AMC_MOBILE_HOME", str(home))
    monkeypatch.setenv("AMC_MOBILE_RUNNER", str(build_host_runner()))
    words = ["profile", "--device", "pixel", "--model", "net.py:build", "--input-size", "32", "--data", "digits",
             "--runtime", "onnxruntime", "--json", "--quiet"]  # fmt: skip
    amc = CommandLine(tmp_path)

    def results_file() -> list[Path]:
        return list(phone.sandbox.local(FOLDER).glob("batch-*/results.jsonl"))

    process = amc.start(*words)
    wait_for(lambda: any(has_kernels(path.read_bytes()) for path in results_file()), limit_s=120)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = Counter(samples for _, _, samples in stored_passes(table))
    wait_for(lambda: is_done(phone), limit_s=60)
    (measured,) = results_file()
    lines = [json.loads(line) for line in measured.read_text().splitlines()]
    alone = {json.dumps(line["samples_ms"]) for line in lines if line["event"] == "result"}
    done = amc(*words)
    assert done.returncode == 0, done.stderr
    after = Counter(samples for _, _, samples in stored_passes(table))
    assert before <= after
    assert max(after.values()) == 1  # no pass is stored twice
    from_phone = sum(samples in alone for samples in (json.dumps(json.loads(text)) for text in after))
    assert from_phone > len(before)
    # The protocol's most; passes made under load do not count: a busy computer has them made again.
    assert max(Counter(subject for _, subject, _, busy in stored_rows(table) if not busy).values(), default=0) <= 10
