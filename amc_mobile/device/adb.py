"""One phone through adb: shell commands and files with total deadlines, retried where a retry can help.

This is the only code that talks to adb. adbutils brings the adb program, which starts the server; the server is asked
over a socket. Tried instead, and left:

- The adb program for each command. It is as fast (3 ms for `true` on the phone of the tests), but it mixes its own
  errors into the command's stderr, and its pipes need a thread each to be read and fed under a deadline.
- The library adbutils: its time limits hold per receive, so 2 s may take 8; a phone that stalls in a transfer blocks
  it for ever; its `shell2` raised EOFError after a command without output; the phone's reason for a failure is lost.

Everything is a command of the shell protocol v2, files too, which arrive on the stdin of a `cat`. The phone's shell
joins and splits again whatever it is given: only words that `quote` made may enter a command.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from amc_mobile.device.phone_output import parse_free_bytes, phone_text
from amc_mobile.errors import (
    AmbiguousDevice,
    DeadlineExceeded,
    DeviceDisconnected,
    DeviceError,
    DeviceUnauthorized,
    DeviceUnavailable,
    InvalidInput,
    PhoneCommandFailed,
    PhoneDiskFull,
    PhoneOutputInvalid,
    readable_s,
)

NOTICE_S = 4.0  # a wait is reported after this time, and again after each further one
OnWait = Callable[[str, float, float], None]  # what is waited for, the seconds waited so far, the limit in seconds


class Deadline:
    """`limit_s` seconds from now for everything that is done under it. `what` names the work in the error.

    `on_wait`: called during long waits for an answer.
    """

    def __init__(self, what: str, limit_s: float, on_wait: OnWait | None = None) -> None:
        self.what = what
        self.limit_s = limit_s
        self.on_wait = on_wait
        self._end = time.monotonic() + limit_s
        self._why = self._next_step = ""

    def part(self, limit_s: float, *, why: str, next_step: str) -> Deadline:
        """A shorter deadline for a part of the work, whose error adds `why` and `next_step`; never a longer one."""
        is_shorter = limit_s < self.check()
        part = Deadline(self.what, limit_s if is_shorter else self.limit_s, self.on_wait)
        part._end = part._end if is_shorter else self._end
        part._why, part._next_step = why, next_step
        return part

    @property
    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> float:
        """Seconds left, above 0. Raises DeadlineExceeded when there are none."""
        if not (left_s := self.left_s):
            raise self.exceeded()
        return left_s

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(self.what, self.limit_s, why=self._why, next_step=self._next_step)

    def limit(self, connection: socket.socket, most_s: float = math.inf) -> None:
        """Lets the next operation of a socket take what is left, but no more than `most_s`."""
        connection.settimeout(min(self.check(), most_s))

    def report_wait(self) -> None:
        """Calls `on_wait` while there is time left. Raises DeadlineExceeded when there is none."""
        left_s = self.check()
        if self.on_wait:
            self.on_wait(self.what, self.limit_s - left_s, self.limit_s)


_TRANSPORT = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class AttachedPhone:
    """A line of `adb devices -l`. `path`: where it is plugged in, such as `usb:1-4`, empty for wireless ones."""

    serial: str
    state: str
    transport_id: int
    path: str = ""

    @property
    def is_ready(self) -> bool:
        return self.state == "device"

    def raise_unless_ready(self) -> None:
        if self.state == "unauthorized":
            raise DeviceUnauthorized(self.serial)
        if not self.is_ready:
            raise DeviceUnavailable(
                f"the phone {self.serial} cannot be used (adb says {self.state})", next_step=remedy(self.state)
            )


def remedy(state: str) -> str:
    """What to do about a phone in a state that adb reports."""
    return {
        "unauthorized": "unlock the phone and accept the dialog 'Allow USB debugging?'",
        "offline": "plug the cable in again, or switch USB debugging off and on; wireless: adb connect again",
        "authorizing": "wait a moment: adb and the phone are still agreeing on a key",
        "connecting": "wait a moment: adb is still connecting",
        "no": "this user may not open the USB device: install udev rules for Android (the line says no permissions)",
        "recovery": "start the phone into Android: adb reboot",
        "sideload": "start the phone into Android: adb reboot",
        "bootloader": "start the phone into Android: fastboot reboot",
    }.get(state, "start Android on the phone and switch on USB debugging in its developer options")


def parse_devices(answer: str) -> list[AttachedPhone]:
    """The lines of `adb devices -l`; lines in another form are left out."""
    phones = []
    for line in answer.splitlines():
        # Serials may hold blanks at the end only as adb prints them, padded: fields are what blanks leave.
        words = line.split()
        tags = dict(word.split(":", 1) for word in words[2:] if ":" in word)
        if len(words) < 2 or not _TRANSPORT.fullmatch(tags.get("transport_id", "")):
            continue
        path = next((word for word in words[2:] if word.startswith("usb:")), "")
        phones.append(AttachedPhone(words[0], words[1], int(tags["transport_id"]), path))
    return phones


START_TIMEOUT_S = 20.0  # a cold start of the server scans for emulators first
LIST_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 1.0
SETTLE_S = 3.0
# An adbd that is frozen accepts whatever is sent. So the first answer to each question has a limit of its own, and a
# phone that gave none is not waited for as long again: giving up and cleaning up come within a minute.
ANSWER_TIMEOUT_S = 20.0
SILENT_TIMEOUT_S = 3.0
SILENT = "adb sees the phone, but the phone does not answer"
WAKE = "unplug the cable and plug it in again, or restart the phone; then run the same command again"
INSTALL_ADB = "install Android's platform-tools, or pip install adbutils, which carries adb"


class AdbServer:
    """The adb server at ANDROID_ADB_SERVER_PORT (5037) on this computer. It is started when it does not answer.

    `on_wait`: called with what a phone is waited for, during every long wait.
    """

    def __init__(self, port: int | None = None, on_wait: OnWait | None = None) -> None:
        self.port = port or _port_from_environment()
        self.on_wait = on_wait
        self._silent: set[int] = set()  # transport ids of phones that left the last question without an answer

    def phones(self) -> list[AttachedPhone]:
        """Every phone adb sees, whatever its state. Raises DeviceUnavailable without a working adb."""
        deadline = Deadline("asking adb for the attached phones", LIST_TIMEOUT_S + START_TIMEOUT_S)
        return parse_devices(self.ask("host:devices-l", deadline))

    def settled_phones(self) -> list[AttachedPhone]:
        """As `phones`, after those that are just connecting have had a moment to finish."""
        end = time.monotonic() + SETTLE_S
        while True:
            phones = self.phones()
            if all(phone.state not in ("authorizing", "connecting") for phone in phones) or time.monotonic() > end:
                return phones
            time.sleep(0.1)

    def ask(self, request: str, deadline: Deadline) -> str:
        """The server's answer to a request such as `host:devices-l`."""
        with self._connected(deadline) as connection, translated(deadline):
            _send_request(connection, request, deadline)
            size = read_exactly(connection, 4, deadline)
            return phone_text(read_exactly(connection, _length(size, deadline), deadline))

    def service(self, transport_id: int, service: str, deadline: Deadline) -> socket.socket:
        """A connection to a service of one phone, such as `shell,v2,raw:...`. The caller closes it."""
        connection = self._connected(deadline)
        try:
            with translated(deadline):
                _send_request(connection, f"host:transport-id:{transport_id}", deadline)
                with self.answering(transport_id, deadline) as first:
                    _send_request(connection, service, first)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def answering(self, transport_id: int, deadline: Deadline) -> Iterator[Deadline]:
        """A deadline for the phone's first answer, or for one packet that it must take."""
        is_silent = transport_id in self._silent
        first = deadline.part(SILENT_TIMEOUT_S if is_silent else ANSWER_TIMEOUT_S, why=SILENT, next_step=WAKE)
        try:
            yield first
        except (TimeoutError, DeadlineExceeded) as error:
            self._silent.add(transport_id)
            raise first.exceeded() from error

    def heard(self, transport_id: int) -> None:
        """The phone has answered a question, so that the next ones are given all their time."""
        self._silent.discard(transport_id)

    def _connected(self, deadline: Deadline) -> socket.socket:
        address, limit_s = ("127.0.0.1", self.port), min(CONNECT_TIMEOUT_S, deadline.check())
        with suppress(OSError):
            return socket.create_connection(address, limit_s)
        said = self._start(deadline)
        try:
            return socket.create_connection(address, limit_s)
        except OSError as error:
            raise DeviceUnavailable(f"the adb server does not start: {said}", next_step=INSTALL_ADB) from error

    def _start(self, deadline: Deadline) -> str:
        """Starts the server and returns what the adb program says about it."""
        import adbutils  # brings the program where none is installed

        try:
            done = subprocess.run(
                [adbutils.adb_path(), "-P", str(self.port), "start-server"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=min(START_TIMEOUT_S, deadline.check()),
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceUnavailable(
                f"the adb server did not start within {error.timeout:.0f} s",
                next_step="run `adb start-server` by hand and read what it says",
            ) from error
        except (OSError, adbutils.AdbError) as error:
            raise DeviceUnavailable(f"no adb program can be run: {error}", next_step=INSTALL_ADB) from error
        return " ".join(done.stderr.decode(errors="replace").split())[-300:]


def _port_from_environment() -> int:
    text = os.environ.get("ANDROID_ADB_SERVER_PORT", "5037")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DeviceUnavailable(f"ANDROID_ADB_SERVER_PORT = {text!r} is not a port", next_step="unset it")
    return int(text)


@contextmanager
def translated(deadline: Deadline) -> Iterator[None]:
    """Turns what sockets raise into our errors."""
    try:
        yield
    except TimeoutError as error:
        raise deadline.exceeded() from error
    except OSError as error:
        reason = str(error) or type(error).__name__
        raise DeviceDisconnected(f"{deadline.what}: the link broke ({reason})", next_step=CABLE) from error


CABLE = "check the cable, then run the same command again: it goes on where it was"


def adb_failure(text: str, what: str) -> DeviceError:
    """The error for a reason that the adb server gives."""
    lowered = text.lower()
    if "unauthorized" in lowered or "authorizing" in lowered:
        return DeviceUnavailable(f"{what}: adb says {text!r}", next_step=remedy("unauthorized"))
    if "offline" in lowered or "not found" in lowered or "no device" in lowered or "unknown transport" in lowered:
        return DeviceDisconnected(f"{what}: the phone is gone (adb says {text!r})", next_step=CABLE)
    if "closed" in lowered or not text:
        return DeviceDisconnected(f"{what}: the link broke (adb says {text!r})", next_step=CABLE)
    return DeviceUnavailable(f"{what}: adb says {text!r}", next_step="run `amc-mobile doctor`")


def read_exactly(connection: socket.socket, size: int, deadline: Deadline) -> bytes:
    """`size` bytes. Raises DeviceDisconnected when the other side ends before, DeadlineExceeded."""
    parts: list[bytes] = []
    missing = size
    while missing:
        deadline.limit(connection, NOTICE_S)
        try:
            part = connection.recv(min(missing, 1 << 20))
        except TimeoutError:
            deadline.report_wait()
            continue
        if not part:
            raise DeviceDisconnected(f"{deadline.what}: the link broke in the middle of an answer", next_step=CABLE)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _send_request(connection: socket.socket, request: str, deadline: Deadline) -> None:
    """Sends a request in the server's framing and waits for its OKAY."""
    encoded = request.encode()
    if len(encoded) > 0xFFFF:
        raise DeviceUnavailable(f"{deadline.what}: a request of {len(encoded)} bytes is too long for adb")
    deadline.limit(connection)
    connection.sendall(f"{len(encoded):04x}".encode() + encoded)
    status = read_exactly(connection, 4, deadline)
    if status == b"FAIL":
        size = _length(read_exactly(connection, 4, deadline), deadline)
        raise adb_failure(phone_text(read_exactly(connection, size, deadline)), deadline.what)
    if status != b"OKAY":
        raise DeviceUnavailable(
            f"{deadline.what}: whatever listens on the adb port answers {status!r}",
            next_step="set ANDROID_ADB_SERVER_PORT to a free port",
        )


def _length(digits: bytes, deadline: Deadline) -> int:
    try:
        return int(digits, 16)
    except ValueError as error:
        raise DeviceUnavailable(f"{deadline.what}: adb sent the length {digits!r}") from error


STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)  # packet kinds
SHELL_CHUNK_BYTES = 256 * 1024
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

    def checked(self, what: str) -> ShellOutput:
        """Itself. Raises PhoneCommandFailed, naming `what`, for an exit code that is not 0."""
        if self.exit_code != 0:
            raise PhoneCommandFailed(what, self.exit_code, self.stderr or self.text)
        return self


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


class RunningShell:
    """A script in the phone's shell, and what it printed so far.

    The script's output is between two marker lines with a token of this call; whatever else reaches stdout is left
    out, and output without its end marker is an error. `stdin`: what the script reads, all of it. Where a call fails,
    the script's process group is killed.
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
        self._stdout, self._stderr = bytearray(), bytearray()
        self._goes_on = False
        # The subshell keeps an `exit` in the script from skipping the end marker.
        wrapped = (
            f"echo amc-begin-{self._token} $$; (\n{script}\n); amc_code=$?; echo; echo amc-end-{self._token} $amc_code"
        )
        self._connection = server.service(transport_id, f"shell,v2,raw:{wrapped}", deadline)
        if stdin is not None:
            with self._killed_on_failure(deadline):
                self._feed(stdin, deadline)

    def finish(self, deadline: Deadline) -> ShellOutput:
        """Everything it printed, once it has ended."""
        with self._killed_on_failure(deadline):
            while self._read_packet(deadline):
                pass
        return self.output(deadline.what)

    def output(self, what: str) -> ShellOutput:
        """Everything it printed, after it has ended. `what` names it in errors."""
        self.close()
        stdout, stderr = bytes(self._stdout), phone_text(bytes(self._stderr))
        started = self._started()
        if started is None:
            if stdout.strip() or stderr.strip():
                raise PhoneCommandFailed(what, 127, (stderr or phone_text(stdout))[:200])
            raise DeviceDisconnected(f"{what}: the phone's shell did not answer", next_step=CABLE)
        ended = re.search(rf"\namc-end-{self._token} (\d+)\r?\n?$".encode(), stdout)
        if ended is None or ended.start() < started.end() - 1:
            raise DeviceDisconnected(f"{what}: the answer was cut short", next_step=CABLE)
        return ShellOutput(stdout[started.end() : ended.start()], stderr, int(ended[1]))

    def read_until(self, marker: bytes, deadline: Deadline) -> bytes | None:
        """What it printed before a line that consists of `marker`; None when it ended without one.

        From that line on the script goes on whatever becomes of the link: nothing kills it.
        """
        with self._killed_on_failure(deadline):
            while (end := self._stdout.find(b"\n" + marker + b"\n")) < 0:
                if not self._read_packet(deadline):
                    return None
        self._goes_on = True
        started = self._started()
        return bytes(self._stdout[started.end() if started else 0 : end])

    def is_silent_for(self, seconds: float) -> bool:
        """Waits until it prints or ends, or the link breaks: then False; True after `seconds` without any of these."""
        return not select.select([self._connection], [], [], seconds)[0]

    def close(self) -> None:
        """Listens no longer; the script may go on."""
        self._connection.close()

    def _started(self) -> re.Match[bytes] | None:
        """The line before the script's output, with the pid of its shell."""
        return re.search(rf"(?:^|\n)amc-begin-{self._token} (\d+)\r?\n".encode(), self._stdout)

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
        """Sends what the script reads, in packets of about SHELL_CHUNK_BYTES, and its end."""
        waiting = bytearray()
        for part in stdin:
            waiting += part
            if len(waiting) >= SHELL_CHUNK_BYTES:
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
    def _killed_on_failure(self, deadline: Deadline) -> Iterator[None]:
        try:
            with translated(deadline):
                yield
        except BaseException:
            # A closed socket does not end the process: it would go on and disturb what is measured next.
            self.close()
            if not self._goes_on:
                self._kill()
            raise

    def _kill(self) -> None:
        """Ends the script's process group; without a link there is nothing to do."""
        started = self._started()
        if started is None:
            return
        pid = started[1].decode()
        deadline = Deadline("stopping a command on the phone", KILL_TIMEOUT_S)
        # adbd gives each shell a process group of its own. The token in its command line proves that the pid is ours.
        script = f"{process_holds(pid, self._token)} && {{ kill -9 -{pid} || kill -9 {pid}; }}"
        with (
            suppress(Exception),
            self._server.service(self._transport_id, f"shell,v2,raw:{script}", deadline) as connection,
        ):
            while _read_packet(connection, deadline)[0] != EXIT:
                pass


def _read_packet(connection: socket.socket, deadline: Deadline) -> tuple[int, bytes]:
    header = read_exactly(connection, 5, deadline)
    kind, size = header[0], int.from_bytes(header[1:], "little")
    if kind not in (STDOUT, STDERR, EXIT) or size > MAX_OUTPUT_BYTES:
        raise PhoneOutputInvalid("shell protocol", f"a packet of kind {kind} with {size} bytes")
    return kind, read_exactly(connection, size, deadline)


PHONE_FOLDER = "/data/local/tmp"  # the only place where the shell user may both write and execute
COMMAND_TIMEOUT_S = 20.0  # dumpsys on an old phone takes seconds
TRANSFER_TIMEOUT_S = 300.0
RECONNECT_TIMEOUT_S = 60.0
ATTEMPTS = 3
POLL_S = 0.25
CONNECT_EVERY_S = 1.0
BACK_TIMEOUT_S = 3.0  # of one attempt to connect a wireless phone
PASSING_STATES = ("offline", "connecting", "authorizing")  # a phone that comes back goes through these
UNAUTHORIZED_GRACE_S = 3.0  # a phone that connects is unauthorized before its key is checked

T = TypeVar("T")


class AdbPhone:
    """An attached phone. Where the link breaks, calls wait for the phone and try again within their deadline.

    Only what may safely run twice is retried: give `retry=False` for commands that may not. Raises DeviceUnauthorized
    or DeviceUnavailable when the phone cannot be used as it is.
    """

    def __init__(self, server: AdbServer, attached: AttachedPhone) -> None:
        attached.raise_unless_ready()
        self.server = server
        self.serial = attached.serial
        self._attached = attached
        self._has_shell_v2 = False

    @property
    def transport_id(self) -> int:
        """adb's number of the present connection; two phones may share a serial, never this."""
        return self._attached.transport_id

    def deadline(self, what: str, limit_s: float) -> Deadline:
        """One whose long waits are reported."""
        return Deadline(what, limit_s, self.server.on_wait)

    def shell(
        self,
        script: str,
        *,
        what: str,
        timeout_s: float | None = None,
        check: bool = True,
        retry: bool = True,
        stdin: Callable[[], Iterable[bytes]] | None = None,
    ) -> ShellOutput:
        """Runs a script in the phone's shell, by default for COMMAND_TIMEOUT_S. `what` names it in errors.

        `stdin`: gives what the script reads, once per attempt. Raises PhoneCommandFailed for a non-zero exit code when
        `check`, DeadlineExceeded, DeviceDisconnected.
        """
        output = self._with_retries(
            lambda deadline: self._started(script, deadline, stdin).finish(deadline),
            self.deadline(what, timeout_s or COMMAND_TIMEOUT_S),
            ATTEMPTS if retry else 1,
        )
        return output.checked(what) if check else output

    def start(
        self, script: str, *, what: str, timeout_s: float, stdin: Callable[[], Iterable[bytes]], until: bytes
    ) -> tuple[bytes, RunningShell]:
        """Starts a script that goes on: what it printed before the line `until`, and the shell in which it runs.

        `stdin`: as for `shell`. Raises PhoneCommandFailed when it ended instead.
        """

        def run(deadline: Deadline) -> tuple[bytes, RunningShell]:
            running = self._started(script, deadline, stdin)
            printed = running.read_until(until, deadline)
            if printed is None:
                output = running.output(what)
                raise PhoneCommandFailed(what, output.exit_code, output.stderr or output.text)
            return printed, running

        return self._with_retries(run, self.deadline(what, timeout_s))

    def _started(self, script: str, deadline: Deadline, stdin: Callable[[], Iterable[bytes]] | None) -> RunningShell:
        # Without version 2 adb falls back to a shell that merges the streams, loses exit codes and truncates silently.
        if not self._has_shell_v2:
            features = self.server.ask(f"host-transport-id:{self.transport_id}:features", deadline)
            if "shell_v2" not in features.split(","):
                raise DeviceUnavailable(
                    f"the phone {self.serial} has no shell protocol v2, which Android has since version 7",
                    next_step="use a phone with Android 7 or newer",
                )
            self._has_shell_v2 = True
        return RunningShell(self.server, self.transport_id, script, deadline, stdin() if stdin else None)

    def run(self, *words: str) -> str:
        """Runs one command and returns its stdout. The words reach the program as they are, whatever they hold."""
        return self.shell(command_line(*words), what=" ".join(words)).text

    def push(self, source: Path, path: str, *, mode: int = 0o644) -> int:
        """Copies a file to the phone, checks its size there and returns it in bytes. Raises PhoneDiskFull."""

        def content() -> Iterator[bytes]:
            with source.open("rb") as file:
                while chunk := file.read(SHELL_CHUNK_BYTES):
                    yield chunk

        size, file = source.stat().st_size, quote(path)
        # All that is sent is read: adbd may drop what a script says that ends before.
        script = (
            f"mkdir -p {quote(path.rpartition('/')[0])} && cat >{file} && chmod {mode:o} {file} && "
            f"wc -c <{file} && exit\ncode=$?; cat >/dev/null; exit $code"
        )
        try:
            output = self.shell(
                script,
                what=f"copying {source.name} to the phone",
                timeout_s=TRANSFER_TIMEOUT_S,
                stdin=content,
            )
        except PhoneCommandFailed as error:
            if is_disk_full(error):
                raise PhoneDiskFull(self.free_bytes(), f"{path} does not fit") from error
            raise
        if (arrived := output.text.strip()) != str(size):
            raise PhoneDiskFull(self.free_bytes(), f"{arrived[:20]} of {size} bytes of {path} arrived on the phone")
        return size

    def free_bytes(self) -> int:
        """What is free on the phone where we write."""
        output = self.shell(f"df -k {PHONE_FOLDER}", what="looking for free space on the phone", check=False)
        return parse_free_bytes(output.text)

    def wait_until_back(self, timeout_s: float) -> None:
        """Waits for the phone to be usable again after its link broke.

        Raises DeviceUnauthorized, DeviceUnavailable or DeviceDisconnected, as adb last saw it.
        """
        began = time.monotonic()
        connect_at = began
        seen: AttachedPhone | None = None  # between two attempts to connect, adb lists no phone at all
        while True:
            phone = self._find()
            if phone is not None and phone.is_ready:
                self._attached = phone
                return
            seen = phone or seen
            waited = time.monotonic() - began
            is_passing = seen is None or seen.state in PASSING_STATES
            if seen is not None and not is_passing and waited > min(UNAUTHORIZED_GRACE_S, timeout_s):
                seen.raise_unless_ready()
            if waited >= timeout_s:
                raise DeviceDisconnected(
                    f"the phone {self.serial} is gone and did not come back within {readable_s(timeout_s)} s"
                    + (f" (adb says {seen.state})" if seen else ""),
                    next_step=CABLE,
                )
            if self.server.on_wait and waited >= NOTICE_S:
                self.server.on_wait("the phone is gone: waiting for it to come back", waited, timeout_s)
            if time.monotonic() >= connect_at:
                self._connect_again(min(BACK_TIMEOUT_S, timeout_s - waited))
                connect_at = time.monotonic() + CONNECT_EVERY_S
            time.sleep(POLL_S)

    def _find(self) -> AttachedPhone | None:
        try:
            seen = self.server.phones()
        except DeviceDisconnected:  # the adb server ended while it answered; the next question starts it
            return None
        same = [phone for phone in seen if phone.serial == self.serial]
        if len(same) > 1:
            same = [phone for phone in same if phone.path == self._attached.path] or same
        if len(same) > 1:
            raise AmbiguousDevice(
                f"{len(same)} phones have the serial {self.serial}", next_step="unplug all but the one to measure on"
            )
        return same[0] if same else None

    def _connect_again(self, limit_s: float) -> None:
        """A wireless phone comes back at once when asked to, by itself only after some 10 s."""
        host, colon, port = self.serial.rpartition(":")
        if not (host and colon and port.isdecimal()):
            return
        # While adb holds the dead connection, it takes a new one for a repetition.
        for request, what in (
            ("disconnect", "forgetting the phone's old link"),
            ("connect", "connecting to the phone"),
        ):
            try:
                self.server.ask(f"host:{request}:{self.serial}", Deadline(what, limit_s))
            except DeviceUnavailable:  # adb does not know it
                continue
            except DeviceError:
                return

    def _with_retries(self, call: Callable[[Deadline], T], deadline: Deadline, attempts: int = ATTEMPTS) -> T:
        for attempt in range(1, attempts + 1):
            try:
                return call(deadline)
            except DeviceDisconnected:
                if attempt == attempts or deadline.left_s == 0:
                    raise
                self.wait_until_back(min(RECONNECT_TIMEOUT_S, deadline.left_s))
        raise AssertionError("unreachable: the last attempt returns or raises")


def is_disk_full(error: PhoneCommandFailed) -> bool:
    return "no space left" in error.stderr.lower()


def choose_phone(phones: Sequence[AttachedPhone], serial: str) -> AttachedPhone:
    """The attached phone with this serial, usable or not. Raises DeviceUnavailable, AmbiguousDevice."""
    same = [phone for phone in phones if phone.serial == serial]
    if not same:
        seen = ", ".join(f"{phone.serial} ({phone.state})" for phone in phones) or "no phone"
        raise DeviceUnavailable(
            f"no phone with serial {serial!r}; adb sees {seen}", next_step="pass one of these as --serial"
        )
    if len(same) > 1:
        raise AmbiguousDevice(f"{len(same)} phones have the serial {serial}", next_step="unplug all but one")
    return same[0]
