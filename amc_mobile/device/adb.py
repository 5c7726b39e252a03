"""One phone through adb: commands and files with total deadlines, retried where a retry can help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from amc_mobile.device import remote_files
from amc_mobile.device.adb_server import CABLE, AdbServer
from amc_mobile.device.adb_shell import RunningShell, ShellOutput, command_line, run_shell
from amc_mobile.device.attached_phone import AttachedPhone
from amc_mobile.device.deadline import NOTICE_S, Deadline
from amc_mobile.device.phone_output import parse_free_bytes
from amc_mobile.errors import (
    AmbiguousDevice,
    DeviceDisconnected,
    DeviceError,
    DeviceUnavailable,
    PhoneCommandFailed,
    PhoneDiskFull,
    readable_s,
)

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

    def stat(self, path: str, *, timeout_s: float | None = None) -> remote_files.RemoteFile:
        return self._with_retries(
            lambda deadline: remote_files.stat_file(self.server, self.transport_id, path, deadline),
            self.deadline(f"looking at {path} on the phone", timeout_s or COMMAND_TIMEOUT_S),
        )

    def push(self, source: Path, path: str, *, mode: int = 0o644, timeout_s: float | None = None) -> int:
        """Copies a file to the phone, checks its size there and returns it in bytes. Raises PhoneDiskFull."""

        def push_once(deadline: Deadline) -> int:
            with source.open("rb") as file:
                return remote_files.push_file(self.server, self.transport_id, file, path, mode, deadline)

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

    def pull(self, path: str, target: Path, *, timeout_s: float | None = None) -> int:
        """Copies a file from the phone and returns its size in bytes. Raises PhoneCommandFailed when there is none."""
        if not self.stat(path).is_file:
            raise PhoneCommandFailed(f"read {path}", 1, "no such file")

        def pull_once(deadline: Deadline) -> int:
            with target.open("wb") as file:
                return remote_files.pull_file(self.server, self.transport_id, path, file, deadline)

        return self._with_retries(
            pull_once, self.deadline(f"copying {path} from the phone", timeout_s or TRANSFER_TIMEOUT_S)
        )

    def wait_until_back(self, timeout_s: float | None = None) -> None:
        """Waits for the phone to be usable again after its link broke, by default for RECONNECT_TIMEOUT_S.

        Raises DeviceUnauthorized, DeviceUnavailable or DeviceDisconnected, as adb last saw it.
        """
        timeout_s = RECONNECT_TIMEOUT_S if timeout_s is None else timeout_s
        began = time.monotonic()
        connect_at = began
        seen: AttachedPhone | None = None  # between two attempts to connect, adb lists no phone at all
        while True:
            found = self._find()
            if found is not None and found.is_ready:
                self._attached = found
                return
            seen = found or seen
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
