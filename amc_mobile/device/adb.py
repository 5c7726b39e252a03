"""One phone through adb: commands and files with total deadlines, retried where a retry can help.

This is the only code that talks to adb. adbutils brings the program and its connections; deadlines and errors are
ours, since its time limits hold per receive and its failures come as ten kinds of exception.

The phone's shell joins and splits again whatever it is given: only words that `quote` made may enter a command.

Our own framing over adbutils' connection: adbutils sends 4 KiB at a time with send(), which may stop half way on a
socket with a time limit, waits for ever on a phone that stalls, and drops the reason that the phone gives.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import socket
import stat as stat_modes
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

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

if TYPE_CHECKING:  # loaded when a phone is asked for: every command imports this module
    from adbutils import AdbConnection


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
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(self.what, self.limit_s, why=self._why, next_step=self._next_step)

    def limit(self, connection: socket.socket) -> None:
        """Lets the next operation of a socket take what is left."""
        self._set(connection, self.check())

    def limit_for_notice(self, connection: socket.socket) -> None:
        """Lets the next operation of a socket take what is left until the wait is to be reported: see `has_waited`."""
        self._set(connection, min(self.check(), NOTICE_S))

    def has_waited(self) -> None:
        """Reports a wait that goes on. Raises DeadlineExceeded when its time is over."""
        left_s = self.check()
        if self.on_wait:
            self.on_wait(self.what, self.limit_s - left_s, self.limit_s)

    def _set(self, connection: socket.socket, limit_s: float) -> None:
        connection.settimeout(limit_s)

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not past the end. Raises DeadlineExceeded when there is no time left before sleeping."""
        time.sleep(min(seconds, self.check()))


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
        with self.connection(deadline) as connection:
            answer = _request(connection, "host:devices-l", deadline)
        return parse_devices(answer)

    def settled_phones(self) -> list[AttachedPhone]:
        """As `phones`, after those that are just connecting have had a moment to finish."""
        end = time.monotonic() + SETTLE_S
        while True:
            phones = self.phones()
            if all(phone.state not in ("authorizing", "connecting") for phone in phones) or time.monotonic() > end:
                return phones
            time.sleep(0.1)

    def features(self, transport_id: int, deadline: Deadline) -> frozenset[str]:
        with self.connection(deadline) as connection:
            answer = _request(connection, f"host-transport-id:{transport_id}:features", deadline)
        return frozenset(answer.split(","))

    def connect(self, address: str, deadline: Deadline) -> str:
        """Attaches a phone over the network; `address`: host:port. Returns what adb says, also about failures."""
        with self.connection(deadline) as connection:
            return _request(connection, f"host:connect:{address}", deadline)

    def disconnect(self, address: str, deadline: Deadline) -> None:
        """Forgets a phone on the network. Harmless when it is not known."""
        with self.connection(deadline) as connection:
            try:
                _request(connection, f"host:disconnect:{address}", deadline)
            except DeviceUnavailable:
                return

    @contextmanager
    def service(self, transport_id: int, service: str, deadline: Deadline) -> Iterator[socket.socket]:
        """A connection to a service of one phone, such as `shell,v2,raw:...` or `sync:`.

        Every failure inside the block leaves as one of our errors; the socket's time limit is what the deadline leaves.
        """
        with self.connection(deadline) as connection:
            _send_request(connection, f"host:transport-id:{transport_id}", deadline)
            with self.answering(transport_id, deadline) as first:
                _send_request(connection, service, first)
            deadline.limit(connection.conn)
            yield connection.conn

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

    @contextmanager
    def connection(self, deadline: Deadline) -> Iterator[AdbConnection]:
        """A connection to the server, all of whose failures are ours."""
        self._start_if_silent(deadline)
        from adbutils import AdbClient

        with translated(deadline):
            connection = AdbClient("127.0.0.1", self.port).make_connection()
        try:
            with translated(deadline):
                deadline.limit(connection.conn)
                yield connection
        finally:
            connection.conn.close()  # adbutils' close sleeps for 10 ms, which a command in 1 ms need not wait for

    def _start_if_silent(self, deadline: Deadline) -> None:
        # Not left to adbutils: its start raises CalledProcess and Timeout errors of its own and ignores exit codes.
        if self._answers():
            return
        import adbutils

        try:
            program = adbutils.adb_path()
            done = subprocess.run(
                [program, "-P", str(self.port), "start-server"],
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
        if done.returncode != 0 and not self._answers():
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            raise DeviceUnavailable(f"the adb server does not start: {said}", next_step=INSTALL_ADB)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _port_from_environment() -> int:
    text = os.environ.get("ANDROID_ADB_SERVER_PORT", "5037")
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DeviceUnavailable(f"ANDROID_ADB_SERVER_PORT = {text!r} is not a port", next_step="unset it")
    return int(text)


@contextmanager
def translated(deadline: Deadline) -> Iterator[None]:
    """Turns whatever adb, adbutils and sockets raise into our errors: the one place that knows them all."""
    import adbutils

    try:
        yield
    except DeviceError:
        raise
    except (TimeoutError, adbutils.AdbTimeout) as error:
        raise deadline.exceeded() from error
    except (EOFError, ConnectionError) as error:
        raise DeviceDisconnected(
            f"{deadline.what}: the link broke ({error or type(error).__name__})", next_step=CABLE
        ) from error
    except adbutils.AdbError as error:
        raise adb_failure(str(error), deadline.what) from error
    except OSError as error:
        raise DeviceDisconnected(f"{deadline.what}: {error}", next_step=CABLE) from error


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
        deadline.limit_for_notice(connection)
        try:
            part = connection.recv(min(missing, 1 << 20))
        except TimeoutError:
            deadline.has_waited()
            continue
        if not part:
            raise DeviceDisconnected(f"{deadline.what}: the link broke in the middle of an answer", next_step=CABLE)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _send_request(connection: AdbConnection, request: str, deadline: Deadline) -> None:
    """Sends a request in the server's framing and waits for its OKAY."""
    encoded = request.encode()
    if len(encoded) > 0xFFFF:
        raise DeviceUnavailable(f"{deadline.what}: a request of {len(encoded)} bytes is too long for adb")
    deadline.limit(connection.conn)
    # sendall: send() may stop half way on a socket with a time limit, which adbutils does not check.
    connection.conn.sendall(f"{len(encoded):04x}".encode() + encoded)
    status = read_exactly(connection.conn, 4, deadline)
    if status == b"FAIL":
        raise adb_failure(_read_block(connection.conn, deadline), deadline.what)
    if status != b"OKAY":
        raise DeviceUnavailable(
            f"{deadline.what}: whatever listens on the adb port answers {status!r}",
            next_step="set ANDROID_ADB_SERVER_PORT to a free port",
        )


def _read_block(connection: socket.socket, deadline: Deadline) -> str:
    size = read_exactly(connection, 4, deadline)
    try:
        length = int(size, 16)
    except ValueError as error:
        raise DeviceUnavailable(f"{deadline.what}: adb sent the length {size!r}") from error
    return phone_text(read_exactly(connection, length, deadline))


def _request(connection: AdbConnection, request: str, deadline: Deadline) -> str:
    _send_request(connection, request, deadline)
    return _read_block(connection.conn, deadline)


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

    The script's output is between two marker lines with a token of this call; whatever else reaches stdout is left
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
        """Waits until it prints or ends, or the link breaks: then False; True after `seconds` without any of these."""
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


SYNC_CHUNK_BYTES = 64 * 1024  # the most that the protocol allows
MAX_PATH_BYTES = 1024


@dataclass(frozen=True)
class RemoteFile:
    mode: int
    size_bytes: int  # modulo 2^32

    @property
    def exists(self) -> bool:
        return self.mode != 0


def stat_file(server: AdbServer, transport_id: int, path: str, deadline: Deadline) -> RemoteFile:
    """Mode 0 says that there is no such file."""
    with server.service(transport_id, "sync:", deadline) as connection:
        with server.answering(transport_id, deadline) as first:
            _send(connection, b"STAT", _encoded(path), first)
            answer = read_exactly(connection, 16, first)
        server.heard(transport_id)
        if answer[:4] != b"STAT":
            raise DeviceDisconnected(f"{deadline.what}: unexpected answer {answer[:4]!r} to STAT")
        mode, size, _ = struct.unpack("<III", answer[4:])
        _quit(connection)
    return RemoteFile(mode, size)


def push_file(server: AdbServer, transport_id: int, source: BinaryIO, path: str, mode: int, deadline: Deadline) -> int:
    """Writes `source` to `path`; returns its size in bytes. Raises PhoneCommandFailed with the reason.

    The phone says only at the end, or when it closes, why it did not take a file.
    """
    total = 0
    with server.service(transport_id, "sync:", deadline) as connection:
        _send(connection, b"SEND", _encoded(path) + f",{stat_modes.S_IFREG | mode}".encode(), deadline)
        try:
            while chunk := source.read(SYNC_CHUNK_BYTES):
                with server.answering(transport_id, deadline) as taking:
                    _send(connection, b"DATA", chunk, taking)
                total += len(chunk)
            deadline.limit(connection)
            connection.sendall(b"DONE" + struct.pack("<I", int(time.time())))
        except (BrokenPipeError, ConnectionResetError) as error:
            _raise_pending_failure(connection, path, deadline, error)
        with server.answering(transport_id, deadline) as last:
            _expect(connection, b"OKAY", path, last)
        _quit(connection)
    return total


def _encoded(path: str) -> bytes:
    encoded = path.encode()
    if not path.startswith("/") or len(encoded) > MAX_PATH_BYTES or b"\0" in encoded:
        raise InvalidInput(f"{path!r} is no path on a phone: absolute, at most {MAX_PATH_BYTES} bytes")
    return encoded


def _send(connection: socket.socket, kind: bytes, content: bytes, deadline: Deadline) -> None:
    deadline.limit(connection)
    connection.sendall(kind + struct.pack("<I", len(content)) + content)


def _header(connection: socket.socket, deadline: Deadline) -> tuple[bytes, int]:
    answer = read_exactly(connection, 8, deadline)
    return answer[:4], int.from_bytes(answer[4:], "little")


def _expect(connection: socket.socket, expected: bytes, path: str, deadline: Deadline) -> None:
    kind, size = _header(connection, deadline)
    if kind != expected:
        raise _failure(kind, size, connection, path, deadline)


def _failure(kind: bytes, size: int, connection: socket.socket, path: str, deadline: Deadline) -> DeviceError:
    if kind != b"FAIL":
        return DeviceDisconnected(f"{deadline.what}: unexpected answer {kind!r}")
    reason = phone_text(read_exactly(connection, min(size, SYNC_CHUNK_BYTES), deadline))
    return PhoneCommandFailed(f"transfer of {path}", 1, reason)


def _raise_pending_failure(connection: socket.socket, path: str, deadline: Deadline, error: OSError) -> None:
    """The phone closed while we were sending: it has usually said why."""
    try:
        _expect(connection, b"OKAY", path, deadline)
    except DeviceDisconnected:
        raise error from None
    raise error


def _quit(connection: socket.socket) -> None:
    """Ends the service politely; the work is done, so a link that breaks now does not matter."""
    try:
        connection.sendall(b"QUIT" + struct.pack("<I", 0))
    except OSError:
        return


PHONE_FOLDER = "/data/local/tmp"  # the only place where the shell user may both write and execute
COMMAND_TIMEOUT_S = 20.0  # dumpsys on an old phone takes seconds
TRANSFER_TIMEOUT_S = 300.0
RECONNECT_TIMEOUT_S = 60.0
ATTEMPTS = 3
POLL_S = 0.25
CONNECT_EVERY_S = 1.0
CONNECT_TIMEOUT_S = 3.0
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
        self, script: str, *, what: str, timeout_s: float | None = None, check: bool = True, retry: bool = True
    ) -> ShellOutput:
        """Runs a script in the phone's shell, by default for COMMAND_TIMEOUT_S. `what` names it in errors.

        Raises PhoneCommandFailed for a non-zero exit code when `check`, DeadlineExceeded, DeviceDisconnected.
        """

        def run(deadline: Deadline) -> ShellOutput:
            self._check_shell_v2(deadline)
            return run_shell(self.server, self.transport_id, script, deadline)

        output = self._with_retries(run, self.deadline(what, timeout_s or COMMAND_TIMEOUT_S), ATTEMPTS if retry else 1)
        if check and output.exit_code != 0:
            raise PhoneCommandFailed(what, output.exit_code, output.stderr or output.text)
        return output

    def start(
        self, script: str, *, what: str, timeout_s: float, stdin: Callable[[], Iterable[bytes]], until: bytes
    ) -> tuple[bytes, RunningShell]:
        """Starts a script that goes on: what it printed before the line `until`, and the shell in which it runs.

        `stdin`: gives what the script reads, once per attempt. Raises PhoneCommandFailed when it ended instead.
        """

        def run(deadline: Deadline) -> tuple[bytes, RunningShell]:
            self._check_shell_v2(deadline)
            running = RunningShell(self.server, self.transport_id, script, deadline, stdin())
            printed = running.read_until(until, deadline)
            if printed is None:
                output = running.output(what)
                raise PhoneCommandFailed(what, output.exit_code, output.stderr or output.text)
            return printed, running

        return self._with_retries(run, self.deadline(what, timeout_s))

    def run(self, *words: str, timeout_s: float | None = None, retry: bool = True) -> str:
        """Runs one command and returns its stdout. The words reach the program as they are, whatever they hold."""
        return self.shell(command_line(*words), what=" ".join(words), timeout_s=timeout_s, retry=retry).text

    def stat(self, path: str, *, timeout_s: float | None = None) -> RemoteFile:
        return self._with_retries(
            lambda deadline: stat_file(self.server, self.transport_id, path, deadline),
            self.deadline(f"looking at {path} on the phone", timeout_s or COMMAND_TIMEOUT_S),
        )

    def push(self, source: Path, path: str, *, mode: int = 0o644, timeout_s: float | None = None) -> int:
        """Copies a file to the phone, checks its size there and returns it in bytes. Raises PhoneDiskFull."""

        def push_once(deadline: Deadline) -> int:
            with source.open("rb") as file:
                return push_file(self.server, self.transport_id, file, path, mode, deadline)

        deadline = self.deadline(f"copying {source.name} to the phone", timeout_s or TRANSFER_TIMEOUT_S)
        try:
            size = self._with_retries(push_once, deadline)
        except PhoneCommandFailed as error:
            if is_disk_full(error):
                raise PhoneDiskFull(self.free_bytes(), f"{path} does not fit") from error
            raise
        arrived = self.stat(path)
        if arrived.size_bytes != size % (1 << 32):
            what = f"{arrived.size_bytes} of {size} bytes of {path} arrived on the phone"
            raise PhoneDiskFull(self.free_bytes(), what)
        return size

    def free_bytes(self) -> int:
        """What is free on the phone where we write."""
        output = self.shell(f"df -k {PHONE_FOLDER}", what="looking for free space on the phone", check=False)
        return parse_free_bytes(output.text)

    def wait_until_back(self, timeout_s: float | None = None) -> None:
        """Waits for the phone to be usable again after its link broke, by default for RECONNECT_TIMEOUT_S.

        Raises DeviceUnauthorized, DeviceUnavailable or DeviceDisconnected, as adb last saw it.
        """
        timeout_s = RECONNECT_TIMEOUT_S if timeout_s is None else timeout_s
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
                self._connect_again(min(CONNECT_TIMEOUT_S, timeout_s - waited))
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
        try:
            # While adb holds the dead connection, it takes a new one for a repetition.
            self.server.disconnect(self.serial, Deadline("forgetting the phone's old link", limit_s))
            self.server.connect(self.serial, Deadline("connecting to the phone", limit_s))
        except DeviceError:
            return

    def _check_shell_v2(self, deadline: Deadline) -> None:
        # Without it adb falls back to a shell that merges the streams, loses exit codes and truncates silently.
        if not self._has_shell_v2:
            if "shell_v2" not in self.server.features(self.transport_id, deadline):
                raise DeviceUnavailable(
                    f"the phone {self.serial} has no shell protocol v2, which Android has since version 7",
                    next_step="use a phone with Android 7 or newer",
                )
            self._has_shell_v2 = True

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
