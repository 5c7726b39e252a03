"""Commands on the phone: quoting for its shell, and the shell protocol v2 with an end marker of our own.

The phone's shell joins and splits again whatever it is given: only words that `quote` made may enter a command.
"""

from __future__ import annotations

import re
import secrets
import select
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from amc_mobile.device.adb_server import CABLE, AdbServer, read_exactly, translated
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_output import phone_text
from amc_mobile.errors import DeviceDisconnected, InvalidInput, PhoneCommandFailed, PhoneOutputInvalid

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)  # packet kinds
CHUNK_BYTES = 256 * 1024
MAX_OUTPUT_BYTES = 64 << 20  # larger things are files and are pulled
KILL_TIMEOUT_S = 3.0
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


@dataclass(frozen=True)
class ShellOutput:
    stdout: bytes
    stderr: str
    exit_code: int

    @property
    def text(self) -> str:
        return phone_text(self.stdout)


def quote(word: str) -> str:
    """`word` as one word of the phone's shell (mksh), whatever it holds. Raises InvalidInput for NUL characters.

    Not shlex.quote: that leaves words alone by this computer's rules, and a leading ~ or = means something to mksh.
    """
    if "\0" in word:
        raise InvalidInput(f"{word!r} holds a NUL character, which no command can carry")
    if PLAIN.fullmatch(word) and word[0] not in "=~-%@":
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def command_line(*words: str) -> str:
    return " ".join(quote(word) for word in words)


def process_holds(pid: str, token: str) -> str:
    """A condition of the phone's shell: the command line of process `pid` holds `token`, so the pid is still ours.

    Two ways, since command lines hold NULs: the read of some shells stops at the first, the grep of old Androids too.
    """
    file = f'"/proc/{pid}/cmdline"'
    read = f'line=; read -r line <{file}; case "$line" in *{token}*) ;; *) false;; esac'
    return f"{{ {{ {read}; }} || grep -q {token} {file}; }} 2>/dev/null"


def run_shell(server: AdbServer, transport_id: int, script: str, deadline: Deadline) -> ShellOutput:
    """Runs a script in the phone's shell and returns everything it printed, or raises.

    The process group is killed when the deadline passes.
    """
    return RunningShell(server, transport_id, script, deadline).finish(deadline)


class RunningShell:
    """A script in the phone's shell, and what it printed so far.

    The script's output stands between two marker lines with a token of this call; whatever else reaches stdout is left
    out, and output without its end marker is an error. `stdin`: what the script reads, all of it.
    """

    def __init__(
        self,
        server: AdbServer,
        transport_id: int,
        script: str,
        deadline: Deadline,
        stdin: Iterable[bytes] | None = None,
    ) -> None:
        self._server, self._transport_id = server, transport_id
        self._token = secrets.token_hex(8)
        self._begin, self._end = f"amc-begin-{self._token}", f"amc-end-{self._token}"
        self._stdout, self._stderr = bytearray(), bytearray()
        self._stack = ExitStack()
        self._goes_on = False
        # The subshell keeps an `exit` in the script from skipping the end marker.
        wrapped = f"echo {self._begin} $$; (\n{script}\n); amc_code=$?; echo; echo {self._end} $amc_code"
        self._connection = self._stack.enter_context(server.service(transport_id, f"shell,v2,raw:{wrapped}", deadline))
        if stdin is not None:
            with self._killed_on_failure(), translated(deadline):
                self._feed(stdin, deadline)

    def finish(self, deadline: Deadline) -> ShellOutput:
        """Everything it printed, once it has ended."""
        with self._killed_on_failure(), translated(deadline):
            while self._read_packet(deadline):
                pass
        return self.output(deadline.what)

    def output(self, what: str) -> ShellOutput:
        """Everything it printed, after it has ended. `what` names it in errors."""
        self.close()
        stderr = phone_text(bytes(self._stderr))
        return _between_markers(bytes(self._stdout), stderr, self._begin, self._end, what)

    def read_until(self, marker: bytes, deadline: Deadline) -> bytes | None:
        """What it printed before a line that consists of `marker`; None when it ended without one.

        From that line on the script goes on whatever becomes of the link: nothing kills it.
        """
        with self._killed_on_failure(), translated(deadline):
            while (found := self._stdout.find(b"\n" + marker + b"\n")) < 0:
                if not self._read_packet(deadline):
                    return None
        self._goes_on = True
        return bytes(self._stdout[self._stdout.index(b"\n", self._stdout.index(self._begin.encode())) + 1 : found])

    def is_silent_for(self, seconds: float) -> bool:
        """Waits for so long that it prints or ends, or that the link breaks; False as soon as that happens."""
        return not select.select([self._connection], [], [], seconds)[0]

    def close(self) -> None:
        """Listens no longer; the script may go on."""
        self._stack.close()

    def _read_packet(self, deadline: Deadline) -> bool:
        """False for the exit code, which is the last one."""
        if self._stdout or self._stderr:
            kind, content = _read_packet(self._connection, deadline)
        else:
            with self._server.answering(self._transport_id, deadline) as first:
                kind, content = _read_packet(self._connection, first)
            self._server.heard(self._transport_id)
        if kind == STDOUT:
            self._stdout += content
        elif kind == STDERR:
            self._stderr += content
        if len(self._stdout) + len(self._stderr) > MAX_OUTPUT_BYTES:
            raise PhoneOutputInvalid("output", f"{deadline.what} printed over {MAX_OUTPUT_BYTES >> 20} MiB")
        return kind != EXIT

    def _feed(self, stdin: Iterable[bytes], deadline: Deadline) -> None:
        """Sends what the script reads, in packets of about CHUNK_BYTES, and its end."""
        waiting = bytearray()
        for part in stdin:
            waiting += part
            if len(waiting) >= CHUNK_BYTES:
                self._send_packet(STDIN, waiting, deadline)
                waiting.clear()
        if waiting:
            self._send_packet(STDIN, waiting, deadline)
        self._send_packet(CLOSE_STDIN, b"", deadline)

    def _send_packet(self, kind: int, content: bytes | bytearray, deadline: Deadline) -> None:
        with self._server.answering(self._transport_id, deadline) as taking:
            taking.limit(self._connection)
            self._connection.sendall(bytes([kind]) + len(content).to_bytes(4, "little") + content)

    @contextmanager
    def _killed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # A closed socket does not end the process: it would go on and disturb what is measured next.
            self.close()
            if not self._goes_on:
                _kill_group(self._server, self._transport_id, bytes(self._stdout), self._begin, self._token)
            raise


def _read_packet(connection: socket.socket, deadline: Deadline) -> tuple[int, bytes]:
    header = read_exactly(connection, 5, deadline)
    kind, size = header[0], int.from_bytes(header[1:], "little")
    if kind not in (STDOUT, STDERR, EXIT) or size > MAX_OUTPUT_BYTES:
        raise PhoneOutputInvalid("shell protocol", f"a packet of kind {kind} with {size} bytes")
    return kind, read_exactly(connection, size, deadline)


def _between_markers(stdout: bytes, stderr: str, begin: str, end: str, what: str) -> ShellOutput:
    started = re.search(rb"(?:^|\n)" + begin.encode() + rb" \d+\r?\n", stdout)
    if started is None:
        if stdout.strip() or stderr.strip():
            said = (stderr or phone_text(stdout))[:200]
            raise PhoneCommandFailed(what, 127, said)
        raise DeviceDisconnected(f"{what}: the phone's shell did not answer", next_step=CABLE)
    ended = re.search(rb"\n" + end.encode() + rb" (\d+)\r?\n?$", stdout)
    if ended is None or ended.start() < started.end() - 1:
        raise DeviceDisconnected(f"{what}: the answer was cut short", next_step=CABLE)
    return ShellOutput(stdout[started.end() : ended.start()], stderr, int(ended.group(1)))


def _kill_group(server: AdbServer, transport_id: int, stdout: bytes, begin: str, token: str) -> None:
    """Kills what a call that failed left running. Without a link there is nothing to do: errors are swallowed."""
    started = re.search(begin.encode() + rb" (\d+)", stdout)
    if started is None:
        return
    pid = started.group(1).decode()
    deadline = Deadline("stopping a command on the phone", KILL_TIMEOUT_S)
    # adbd gives each shell a process group of its own. The token in the command line proves that the pid is still ours.
    script = f"{process_holds(pid, token)} && {{ kill -9 -{pid} || kill -9 {pid}; }}"
    try:
        with server.service(transport_id, f"shell,v2,raw:{script}", deadline) as connection:
            while _read_packet(connection, deadline)[0] != EXIT:
                pass
    except Exception:
        return
