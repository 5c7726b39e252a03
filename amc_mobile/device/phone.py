"""A phone that runs batches of models: the runner started detached, its results fetched as they come.

A pulled cable loses nothing: the runner works on alone, and the results it wrote are fetched when the link is back.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from amc_mobile.device.adb import RECONNECT_TIMEOUT_S, AdbPhone
from amc_mobile.device.adb_shell import quote
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_facts import BOOT_ID, PHONE_FOLDER
from amc_mobile.device.phone_output import parse_free_bytes
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

FOLDER = f"{PHONE_FOLDER}/amc-mobile"
MANIFEST_SUFFIX = ".manifest"
RESULTS = "results.jsonl"
SPARE_BYTES = 32 << 20  # left free on the phone; Android misbehaves on a full disk
POLL_TIMEOUT_S = 20.0
CLEAN_TIMEOUT_S = 10.0
END_GRACE_S = 30.0  # the runner ends itself at its deadline; this is how late it may be
# Asking costs the phone work that disturbs what it measures, so rarely; and at most this share of the time is wasted.
POLL_SHARE = 0.04
SHORTEST_POLL_S, LONGEST_POLL_S = 0.05, 5.0
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class InstalledFile:
    """A file that stays on the phone between batches, in a folder named by its content."""

    path: Path
    sha256: str

    @property
    def remote(self) -> str:
        """Relative to the folder that holds the batches."""
        return f"keep-{self.sha256[:16]}/{self.path.name}"


class PhoneRunner:
    """Runs batches on a phone with one runner and one runtime library.

    Files go to a folder of ours on the phone; every batch has its own, which is removed with it. `open` before use.
    """

    def __init__(self, adb: AdbPhone, runner: InstalledFile, library: InstalledFile) -> None:
        for file in (runner, library):
            if not _FILE_NAME.fullmatch(file.path.name):
                raise InvalidInput(f"{file.path}: the file's name has characters no phone should see")
        self.adb = adb
        self.library_path = f"../{library.remote}"  # for manifests: relative to the folder of a batch
        self.end_grace_s = END_GRACE_S
        self._runner = runner
        self._kept = (runner, library)

    def open(self) -> None:
        """Ends and removes what earlier processes left on the phone, then copies runner and library where missing."""
        self.adb.shell(_remove_batches_script(), what="removing old batches from the phone")
        for file in self._kept:
            remote = f"{FOLDER}/{file.remote}"
            if self.adb.stat(remote).size_bytes != file.path.stat().st_size:
                self._require_space(file.path.stat().st_size)
                self.adb.push(file.path, remote, mode=0o755)

    def run(self, manifest: str, files: Mapping[str, bytes], *, deadline_s: float) -> Iterator[str]:
        """Runs one batch and yields the runner's result lines as they come, the end line included.

        `files`: by the names the manifest calls them. `deadline_s`: the runner's own, of the manifest. Closing the
        iterator ends the runner. Raises RunnerFailed with the end of its log when it ended without an end line,
        PhoneRebooted after the last line that was written before, DeadlineExceeded, DeviceDisconnected when the phone
        does not come back.
        """
        batch = _Batch(self.adb, secrets.token_hex(8))
        archive_size = sum(len(content) for content in files.values()) + len(manifest) + 1024 * (len(files) + 20)
        self._require_space(2 * archive_size)  # the archive and what comes out of it
        try:
            batch.send(manifest, files)
            batch.start(self._runner.remote)
            yield from batch.lines(Deadline("the batch on the phone", deadline_s + self.end_grace_s))
        finally:
            batch.remove()

    def _require_space(self, size: int) -> None:
        self.adb.run("mkdir", "-p", FOLDER)
        free = parse_free_bytes(self.adb.run("df", "-k", FOLDER))
        if free < size + SPARE_BYTES:
            raise PhoneDiskFull(
                f"the phone has {free >> 20} MiB free; {(size + SPARE_BYTES) >> 20} MiB are needed",
                next_step="free some space on the phone, then run the same command again",
            )


class _Batch:
    """One run of the runner. Its token is part of the command line, which proves that a pid is still the runner's."""

    def __init__(self, adb: AdbPhone, token: str) -> None:
        self._adb = adb
        self._token = token
        self._folder = f"{FOLDER}/batch-{token}"
        self._boot_id = ""
        self._may_exist = False

    def send(self, manifest: str, files: Mapping[str, bytes]) -> None:
        """Copies everything as one archive: a transfer per file would cost far more than the files."""
        with tempfile.TemporaryDirectory(prefix="amc-batch-") as folder:
            archive = Path(folder) / "batch.tar"
            _write_archive(archive, {f"{self._token}{MANIFEST_SUFFIX}": manifest.encode(), **files})
            self._may_exist = True
            self._adb.push(archive, f"{self._folder}/batch.tar")
        self._adb.shell(f"cd {quote(self._folder)} && tar xf batch.tar && rm batch.tar", what="unpacking the batch")

    def start(self, runner: str) -> None:
        # mkdir decides whether it was started already: a link that breaks here makes the command run twice.
        script = (
            f"cd {quote(self._folder)} || exit 9\n"
            "if mkdir started 2>/dev/null; then\n"
            "  detach=$(command -v setsid || command -v nohup)\n"
            f"  $detach ../{quote(runner)} {self._token}{MANIFEST_SUFFIX} {RESULTS} >log.txt 2>&1 </dev/null &\n"
            "  echo $! > pid\n"
            "fi\n"
            f"cat {BOOT_ID} pid"
        )
        words = self._adb.shell(script, what="starting the runner on the phone").text.split()
        if len(words) != 2 or not words[1].isdecimal():
            raise RunnerFailed(f"the runner did not start: {' '.join(words)[:100]}", next_step="run the command again")
        self._boot_id = words[0]

    def lines(self, deadline: Deadline) -> Iterator[str]:
        """Complete lines as they come, until the runner has ended."""
        offset = 0
        began = time.monotonic()
        last_line = ""
        while True:
            boot_id, alive, content = self._poll(offset, deadline)
            complete = content[: content.rfind(b"\n") + 1]
            offset += len(complete)
            for line in complete.split(b"\n")[:-1]:
                last_line = _decoded(line)
                yield last_line
            if _is_end(last_line):
                return
            if boot_id != self._boot_id:
                raise PhoneRebooted(
                    f"the phone {self._adb.serial} started anew while it measured",
                    next_step="run the same command again: what was measured before is kept",
                )
            if not alive:
                raise RunnerFailed(
                    f"the runner on the phone ended without finishing; its log ends: {self._log_end()}",
                    next_step="run `amc-mobile doctor`; if it says nothing, the model or the runtime library fails",
                )
            deadline.sleep(min(LONGEST_POLL_S, max(SHORTEST_POLL_S, POLL_SHARE * (time.monotonic() - began))))

    def _poll(self, offset: int, deadline: Deadline) -> tuple[str, bool, bytes]:
        """Boot id, whether the runner lives, and the results from `offset` on."""
        # Alive is asked before reading: what a dead runner wrote is then all there.
        script = (
            f"cd {quote(self._folder)} || exit 9\n"
            f"cat {BOOT_ID}\n"
            f"{_is_alive(self._token)} && echo alive || echo ended\n"
            f"[ -e {RESULTS} ] && tail -c +{offset + 1} {RESULTS}\n"
            "exit 0"
        )
        while True:
            timeout_s = min(POLL_TIMEOUT_S, deadline.check())
            try:
                answer = self._adb.shell(script, what="asking for results", timeout_s=timeout_s, retry=False).stdout
                break
            except DeadlineExceeded:
                continue  # a stalled link, not the runner: it goes on alone
            except DeviceDisconnected:
                self._adb.wait_until_back(min(RECONNECT_TIMEOUT_S, deadline.check()))
        head = answer.split(b"\n", 2)
        if len(head) < 3 or head[1].strip() not in (b"alive", b"ended"):
            raise PhoneOutputInvalid("answer about the runner", f"{answer[:80]!r}")
        return head[0].strip().decode(errors="replace"), head[1].strip() == b"alive", head[2]

    def _log_end(self) -> str:
        output = self._adb.shell(f"tail -n 5 {quote(self._folder)}/log.txt", what="reading the log", check=False)
        return " / ".join(output.text.split("\n")).strip(" /")[-400:] or "(empty)"

    def remove(self) -> None:
        """Ends the runner if it lives and removes the folder; without a link the next `open` does."""
        if not self._may_exist:
            return
        try:
            self._adb.shell(_remove_script(self._folder), what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
        except DeviceError:
            return


def _is_alive(token: str) -> str:
    """A condition of the phone's shell; run in the batch's folder."""
    return f'[ -s pid ] && grep -q {token} "/proc/$(cat pid)/cmdline" 2>/dev/null'


def _remove_script(folder: str) -> str:
    """Kills the runner of a batch's folder, if its pid is still the runner's, and removes the folder."""
    return (
        f"cd {quote(folder)} 2>/dev/null || exit 0\n"
        "token=$(pwd); token=${token##*batch-}\n"
        'if [ -s pid ] && grep -q "$token" "/proc/$(cat pid)/cmdline" 2>/dev/null; then kill -9 "$(cat pid)"; fi\n'
        f"cd / && rm -rf {quote(folder)}"
    )


def _remove_batches_script() -> str:
    """The same for the folders of all batches, left by processes that were killed."""
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        "for folder in batch-*; do\n"
        '[ -d "$folder" ] || continue\n'
        'if [ -s "$folder/pid" ]; then pid=$(cat "$folder/pid")\n'
        'grep -q "${folder#batch-}" "/proc/$pid/cmdline" 2>/dev/null && kill -9 "$pid"; fi\n'
        'rm -rf "$folder"\n'
        "done\nexit 0"
    )


def _write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            if not _FILE_NAME.fullmatch(name):
                raise InvalidInput(f"{name!r} is no name for a file on the phone: letters, digits, . _ - only")
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PhoneOutputInvalid("results", f"{line[:60]!r} is no text", next_step="run the command again") from error


def _is_end(line: str) -> bool:
    try:
        document = json.loads(line)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("event") == "end"
