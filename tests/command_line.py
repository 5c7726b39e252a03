"""The program as a user types it, in a process of its own.

Importing torch takes seconds of each command. Therefore these processes are forks of one that has imported it already;
their output, exit codes, signals and deaths are those of any process.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from command_server import NUMBER, REQUEST_BYTES

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600  # emulated phones are slow
# What commands import while they run.
IMPORTED = (
    "amc_mobile.cli", "torch", "torch._dynamo", "onnx", "onnxscript", "amc_mobile.workflows.search",
    "amc_mobile.workflows.export", "amc_mobile.workflows.compare",
)  # fmt: skip
TFLITE = ("litert_torch",)


class Command:
    """A running command. `returncode`, `stdout` and `stderr` are there once it was waited for."""

    returncode: int | None = None
    stdout = stderr = ""

    def __init__(self, folder: Path, *words: str, **variables: str) -> None:
        """`words`: the program's arguments. `variables`: in addition to the present environment."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        request = json.dumps([str(folder), words, environment]).encode()
        assert len(request) <= REQUEST_BYTES
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._status, theirs = os.pipe()
        server = _server(any("tflite" in word for word in words))
        socket.send_fds(server, [request], [self._out.fileno(), self._err.fileno(), theirs])
        os.close(theirs)
        self.pid = self._number()

    def poll(self) -> int | None:
        """The exit code, as `subprocess` gives it, or None: it still runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout_s)[0]:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
                raise subprocess.TimeoutExpired("amc-mobile", timeout_s, self.stdout, self.stderr)
            self.returncode = self._number()
            self.stdout, self.stderr = _content(self._out), _content(self._err)
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self) -> int:
        return int(NUMBER.unpack(os.read(self._status, NUMBER.size))[0])


class CommandLine:
    """Runs amc-mobile in a folder, with the present environment and some variables more."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self._variables = variables

    def start(self, *words: str) -> Command:
        return Command(self.folder, *words, **self._variables)

    def __call__(self, *words: str) -> Command:
        command = self.start(*words)
        command.wait()
        return command

    def document(self, *words: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """What the command prints with --json; it has to end with one of these exit codes."""
        done = self(*words, "--json")
        assert done.returncode in codes, f"{done.returncode}: {done.stdout[-500:]}\n{done.stderr}"
        return dict(json.loads(done.stdout))


@functools.cache
def _server(tflite: bool) -> socket.socket:
    """The socket of a process that has imported what commands need; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, str(Path(__file__).with_name("command_server.py")), *IMPORTED, *(TFLITE if tflite else ())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with theirs:
        process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=environment)  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _content(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode()
