"""Batches that a killed process left on the phone: awaited, taken or removed by the next one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from benches import NETWORK, fake_runner, installed, manifest, results, runners
from command_line import CommandLine
from host_runner import build_host_runner, locate_library
from phone_fake.phone import FakePhone
from stored_passes import stored_passes

from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.libraries import add_library
from amc_mobile.device.phone_runner import CLEAN_UP, FOLDER, HANG_GRACE_S, PhoneRunner
from amc_mobile.device.runner import BenchEvent

MODEL_DEADLINE_S = 40
PATIENCE_S = MODEL_DEADLINE_S + HANG_GRACE_S
MODELS = {f"m{n}": f"ms={n + 1}.5 wait=0.1" for n in range(4)}
WANTED = [(name, n + 1.5) for n, name in enumerate(MODELS)]


@pytest.fixture
def new_runner(adb: AdbPhone, tmp_path: Path) -> Callable[[], PhoneRunner]:
    """Each is what a new process would open."""
    library = tmp_path / "libtensorflowlite_jni.so"
    library.write_bytes(b"\x7fELF not loaded by the stand-in")
    program = fake_runner(tmp_path)
    return lambda: PhoneRunner(adb, installed(program), installed(library))


def batch(runner: PhoneRunner, models: dict[str, str] = MODELS) -> Generator[BenchEvent, None, None]:
    paths = runner.keep([text.encode() for text in models.values()])
    asked = manifest(runner.library_path, dict(zip(models, paths, strict=True)), model_deadline_s=MODEL_DEADLINE_S)
    yield from runner.run(asked, plan="the plan")


def killed(
    runner: PhoneRunner, models: dict[str, str] = MODELS
) -> tuple[BenchEvent, Generator[BenchEvent, None, None]]:
    """The first event of a batch; its generator is held, and never closed, as by a process that is no more."""
    runner.open()
    lines = batch(runner, models)
    return next(lines), lines


def batches(phone: FakePhone) -> list[Path]:
    return list(phone.sandbox.local(FOLDER).glob("batch-*"))


def wait_for(condition: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


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
    got = list(batch(later))
    assert results(got) == WANTED
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
    got = list(batch(later))
    assert (results(got), got[0]) == (WANTED, first)
    again = list(batch(later))
    assert results(again) == WANTED
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
    assert results(batch(later)) == WANTED
    assert not old.exists()
    wait_for(lambda: phone.sandbox.processes() == [])


def test_a_changed_model_is_another_batch(new_runner: Callable[[], PhoneRunner]) -> None:
    first, _lines = killed(new_runner())
    later = new_runner()
    later.open()
    got = list(batch(later, {**MODELS, "m3": "ms=9"}))
    assert results(got) == [*WANTED[:3], ("m3", 9.0)]
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
    assert results(batch(later)) == WANTED
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
    assert max(Counter(subject for _, subject, _ in stored_passes(table)).values()) <= 10
