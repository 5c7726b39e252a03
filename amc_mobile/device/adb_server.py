"""The adb server of this computer: started when needed, asked which phones it sees, opened towards one of them.

With `adb_shell` and `remote_files` the only code that talks to adb. adbutils brings the program and its connections;
deadlines and errors are ours, since its time limits hold per receive and its failures come as ten kinds of exception.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import adbutils
from adbutils import AdbClient, AdbConnection

from amc_mobile.device.attached_phone import AttachedPhone, parse_devices, remedy
from amc_mobile.device.deadline import Deadline, OnWait
from amc_mobile.device.phone_output import phone_text
from amc_mobile.errors import DeadlineExceeded, DeviceDisconnected, DeviceError, DeviceUnavailable

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

    `on_wait`: told what a phone is waited for, wherever that lasts.
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
            found = self.phones()
            if all(phone.state not in ("authorizing", "connecting") for phone in found) or time.monotonic() > end:
                return found
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
        connection: AdbConnection | None = None
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
