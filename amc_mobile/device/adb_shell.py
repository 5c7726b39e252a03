"""Commands on the phone: quoting for its shell, and the shell protocol v2 with an end marker of our own.

The phone's shell joins and splits again whatever it is given: only words that `quote` made may enter a command.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from amc_mobile.device.adb_server import CABLE, AdbServer, read_exactly
from amc_mobile.device.deadline import Deadline
from amc_mobile.errors import DeviceDisconnected, InvalidInput, PhoneCommandFailed, PhoneOutputInvalid

STDOUT, STDERR, EXIT = 1, 2, 3  # packet kinds
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
        return self.stdout.decode("utf-8", errors="replace")


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

    Two ways, since command lines hold NULs: the grep of old Androids stops at the first, the read of some shells too.
    """
    file = f'"/proc/{pid}/cmdline"'
    read = f'line=; read -r line <{file}; case "$line" in *{token}*) ;; *) false;; esac'
    return f"{{ grep -q {token} {file} || {{ {read}; }}; }} 2>/dev/null"


def run_shell(server: AdbServer, transport_id: int, script: str, deadline: Deadline) -> ShellOutput:
    """Runs a script in the phone's shell and returns everything it printed, or raises.

    The script's output stands between two marker lines with a token of this call; whatever else reaches stdout is left
    out, and output without its end marker is an error. The process group is killed when the deadline passes.
    """
    token = secrets.token_hex(8)
    begin, end = f"amc-begin-{token}", f"amc-end-{token}"
    # The subshell keeps an `exit` in the script from skipping the end marker.
    wrapped = f"echo {begin} $$; (\n{script}\n); amc_code=$?; echo; echo {end} $amc_code"
    stdout, stderr = bytearray(), bytearray()
    try:
        with server.service(transport_id, f"shell,v2,raw:{wrapped}", deadline) as connection:
            for kind, content in _packets(connection, deadline):
                if kind == STDOUT:
                    stdout += content
                elif kind == STDERR:
                    stderr += content
                else:
                    break
                if len(stdout) + len(stderr) > MAX_OUTPUT_BYTES:
                    raise PhoneOutputInvalid("output", f"{deadline.what} printed over {MAX_OUTPUT_BYTES >> 20} MiB")
    except BaseException:
        # A closed socket does not end the process: it would go on and disturb what is measured next.
        _kill_group(server, transport_id, bytes(stdout), begin, token)
        raise
    return _between_markers(bytes(stdout), stderr.decode("utf-8", errors="replace"), begin, end, deadline.what)


def _packets(connection: socket.socket, deadline: Deadline) -> Iterator[tuple[int, bytes]]:
    """The packets of the shell protocol up to the exit code, which is the last."""
    while True:
        header = read_exactly(connection, 5, deadline)
        kind, size = header[0], int.from_bytes(header[1:], "little")
        if kind not in (STDOUT, STDERR, EXIT) or size > MAX_OUTPUT_BYTES:
            raise PhoneOutputInvalid("shell protocol", f"a packet of kind {kind} with {size} bytes")
        yield kind, read_exactly(connection, size, deadline)
        if kind == EXIT:
            return


def _between_markers(stdout: bytes, stderr: str, begin: str, end: str, what: str) -> ShellOutput:
    started = re.search(rb"(?:^|\n)" + begin.encode() + rb" \d+\r?\n", stdout)
    if started is None:
        if stdout.strip() or stderr.strip():
            said = (stderr or stdout.decode(errors="replace"))[:200]
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
            for _ in _packets(connection, deadline):
                pass
    except Exception:
        return
