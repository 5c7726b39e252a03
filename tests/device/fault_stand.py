"""The commands that meet a phone, run on a fake one that can be struck in their middle."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benches import fake_runner, runners
from elf_files import ARM64, shared_library
from phone_fake.faults import Fault
from phone_fake.phone import FakePhone, PrivateAdbServer
from stored_passes import stored_rows

from amc_mobile.cli import Stopped, main
from amc_mobile.device import phone_runner
from amc_mobile.device.libraries import add_library
from amc_mobile.device.phone_state import noted

HANG_S = 300.0  # far above what any command takes here, also where it gets little of a busy machine
NETWORK = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""
PROFILE = 'summary = "a Pixel that cools at once or never"\npriority = 90\nruntime = "onnxruntime"\ncooldown_s = 0.3\n'
MATCH = '[[match]]\n"ro.product.manufacturer" = "Google"\n'
COMMANDS = {
    "devices": ["devices"],
    "profile": ["profile", "--device", "pixel", "--model", "net.py:build", "--input-size", "16", "--data", "digits"],
    "search": ["search", "--latency-ratio", "0.7", "--episodes", "4", "--policy", "random", "--measure-every", "2",
               "--calibration-images", "32", "--reward-images", "16"],
    "export": ["export", "--onnx"],
    "measure": ["measure", "model.onnx", "--device", "pixel"],
}  # fmt: skip
ANSWER = "getprop"  # of what `devices` asks, the middle of an answer


@dataclass(frozen=True)
class Ended:
    """A command that came to its end, `wall_s` after it began or went on. `error`: its lines on stderr."""

    exit_code: int
    document: dict[str, Any]
    error: str
    wall_s: float


@dataclass(frozen=True)
class Kept:
    """What a command leaves: the passes of the table by what was measured, the measured plans, and its result."""

    rows: dict[str, list[tuple[str, int]]]  # (samples, busy) in the order made
    plans: dict[str, Any]
    result: dict[str, Any]

    def is_part_of(self, other: Kept) -> bool:
        """Whether `other` has all of this, in the same order."""
        passes = all(other.rows.get(subject, [])[: len(made)] == made for subject, made in self.rows.items())
        return passes and self.plans.items() <= other.plans.items() and (not self.result or self.result == other.result)


class _FastClock:
    """The module `time` for code that waits: some seconds pass with every look at it."""

    def __init__(self) -> None:
        self._passed_s = 0.0

    def monotonic(self) -> float:
        self._passed_s += 10.0
        return time.monotonic() + self._passed_s


class Stand:
    """A user's folder with one phone on the cable. `start` a command, strike, `finish` it."""

    def __init__(
        self,
        command: str,
        phone: FakePhone,
        adb_server: PrivateAdbServer,
        folder: Path,
        home: Path,
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.command = command
        self.phone = phone
        self.adb_server = adb_server
        self.folder = folder
        self.limits = pytest.MonkeyPatch()  # time limits that a fault has set
        self.usual_free_bytes = phone.sandbox.free_bytes
        found = self.kept().rows.values()
        self._found = Counter(json.loads(samples)[0] for made in found for samples, _ in made)
        self._before = len(self.reported)
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["amc-mobile", *COMMANDS[command], "--json"])
        patch.setenv("AMC_MOBILE_HOME", str(home))
        patch.setenv("AMC_MOBILE_RUNNER", str(home / "amc-bench"))
        patch.setenv("HOME", str(home))  # an adb server that the command starts keeps its key here
        patch.setenv("ADB_MDNS", "0")
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(adb_server.port))
        self._thread: threading.Thread | None = None
        self._twin: FakePhone | None = None
        self._ended: list[int] = []
        self._trouble: list[str] = []
        self._began = 0.0
        self._stall: Fault | None = None

    @property
    def reported(self) -> list[float]:
        """All latencies that the runner ever told, in order."""
        path = self.phone.sandbox.state / "reported"
        return [float(line) for line in path.read_text().splitlines()] if path.exists() else []

    def kept(self) -> Kept:
        workspace = self.folder / "amc-workspace"
        rows: dict[str, list[tuple[str, int]]] = {}
        for _, subject, samples, busy in stored_rows(workspace / "table.sqlite"):
            rows.setdefault(subject, []).append((samples, busy))
        runs = [path for path in (workspace / "runs").glob("[!.]*") if path.is_dir()]
        (run,) = runs or (workspace,)
        measured, result = run / "measured.json", run / "search.json"
        plans = json.loads(measured.read_text())["plans"] if measured.exists() else {}
        document = json.loads(result.read_text()) if result.exists() else {}
        return Kept(rows, plans, {key: value for key, value in document.items() if key != "cpu_s"})

    def check(self, kept: Kept) -> None:
        """Every stored sample is one that the runner told, and nothing is stored more often than it was told."""
        passes = [json.loads(samples) for made in kept.rows.values() for samples, _ in made]
        assert all(len(set(samples)) == 1 for samples in passes)
        never_told = Counter(samples[0] for samples in passes) - self._found - Counter(self.reported[self._before :])
        assert not never_told

    def same(self, one: Ended, other: Ended) -> bool:
        """Whether two results are equal but for what no two runs share."""
        return _comparable(one.document) == _comparable(other.document)

    def has_its_settings(self) -> bool:
        """Whether nothing of what the command changed on the phone is left."""
        stay_on = self.phone.sandbox.state / "setting_stay_on_while_plugged_in"
        return stay_on.read_text().strip() == "0" and noted(self.phone.serial) is None

    def attach_again(self) -> None:
        """What plugging the cable in again does for a phone on the network."""
        self.adb_server.ensure()
        self.adb_server.detach(self.phone)
        # The end of the old connection may reach the server late and take the new one with it.
        end = time.monotonic() + 20
        seen = 0
        while seen < 2 and time.monotonic() < end:
            seen = seen + 1 if self.adb_server.state_of(self.phone) == "device" else 0
            if not seen:
                self.adb_server.attach(self.phone)
            time.sleep(0.05)
        assert seen == 2, self.adb_server.state_of(self.phone)

    def attach_twin(self) -> None:
        """Another phone of the same model on another cable."""
        self._twin = FakePhone(self.folder.parent / "twin")
        said = self.adb_server.attach(self._twin)
        assert "connected" in said, said

    def take_twin_away(self) -> None:
        """Nothing was asked of it, and nothing put on it."""
        assert self._twin is not None
        assert not list(self._twin.sandbox.local("/data/local/tmp").iterdir())
        self.stop_twin()

    def stop_twin(self) -> None:
        if self._twin is not None:
            self.adb_server.detach(self._twin)
            self._twin.stop()
            self._twin = None

    @contextmanager
    def paused_at(self, count: int) -> Iterator[None]:
        """The command, stopped in its middle: when the runner has told `count` results, or in an answer to `devices`.

        It goes on when the block ends; `finish` waits for its end.
        """
        if self.command == "devices":
            self._stall = self.phone.faults.add("stall", ANSWER, after_bytes=100)
        else:
            (self.phone.sandbox.state / "pause_at").write_text(str(count))
        self._start()
        end = time.monotonic() + HANG_S
        while not self._is_paused(count):
            assert time.monotonic() < end, "the command never came to its middle"
            assert not self._ended, f"the command ended before its middle: {self._trouble}"
            time.sleep(0.01)
        yield
        self._began = time.monotonic()
        self._go_on()

    def _go_on(self) -> None:
        (self.phone.sandbox.state / "pause_at").unlink(missing_ok=True)
        if self._stall:
            self._stall.released.set()

    def _is_paused(self, count: int) -> bool:
        if self._stall:
            return self._stall.struck > 0
        if len(self.reported) < count:
            return False
        # What the runner told is kept a little later.
        kept = self.kept()
        return bool({"profile": kept.rows, "search": kept.plans}.get(self.command, True))

    def terminate(self) -> None:
        """What SIGTERM does to the command: its handler's exception, in the thread that stands for the process."""
        assert self._thread is not None
        thread_id = ctypes.c_ulong(self._thread.ident or 0)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(Stopped)) == 1

    def hang(self) -> None:
        """Stops the runner, and lets time pass until it has had more than any model."""
        for pid in runners(self.phone):
            if b"run-" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGSTOP)
        self.limits.setattr(phone_runner, "time", _FastClock())

    def end(self) -> None:
        """Ends a command that a failed test has left at work, which would go on to say that its phone is gone."""
        self.limits.undo()
        if self.is_running:
            self._go_on()
            self.terminate()
            assert self._thread is not None
            self._thread.join(HANG_S)
        self.stop_twin()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def run(self) -> Ended:
        self._start()
        return self.finish()

    def _start(self) -> None:
        self._out, self._err = io.StringIO(), io.StringIO()
        self._ended.clear()
        self._trouble.clear()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            with redirect_stdout(self._out), redirect_stderr(self._err):
                main()
        except SystemExit as end:
            self._ended.append(int(end.code or 0))
        except BaseException:
            self._trouble.append(traceback.format_exc())
            self._ended.append(-1)

    def finish(self) -> Ended:
        assert self._thread is not None
        self._thread.join(HANG_S)
        frame = sys._current_frames().get(self._thread.ident or 0)
        assert self._ended, f"the command hangs: {''.join(traceback.format_stack(frame)[-3:])}"
        wall_s = time.monotonic() - self._began
        assert not self._trouble, self._trouble[0]
        lines = [
            line for line in self._err.getvalue().splitlines() if line.startswith(("error: ", "next: ", "stopped"))
        ]
        out = self._out.getvalue()
        return Ended(self._ended[0], json.loads(out) if out else {}, "\n".join(lines), wall_s)


def furnish(folder: Path, home: Path) -> None:
    """Fills a user's folder and home: a network, a model file, a profile, a runtime library and the runner."""
    folder.mkdir()
    (folder / "net.py").write_text(NETWORK)
    (folder / "model.onnx").write_text("ms=1.5")
    profiles = home / "device_profiles"
    profiles.mkdir(parents=True)
    (profiles / "pixel.toml").write_text(PROFILE + MATCH)
    fake_runner(home)
    library = home / "libonnxruntime-1.29.0.so"
    library.write_bytes(shared_library(ARM64, ("libc.so",), ("OrtGetApiBase",)))
    add_library(library, home / "runtimes", version="1.29.0")


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _comparable(document: dict[str, Any]) -> dict[str, Any]:
    left = {key: value for key, value in document.items() if key != "cpu_s"}
    if "phones" in left:  # the fake phones' serials are their ports
        left["phones"] = [{k: v for k, v in phone.items() if k != "serial"} for phone in left["phones"]]
    return left
