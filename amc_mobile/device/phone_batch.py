"""One run of the runner on a phone: started detached, its results fetched as they come.

A pulled cable loses nothing: the runner works on alone, and the results it wrote are fetched when the link is back.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from amc_mobile.device.adb import RECONNECT_TIMEOUT_S, AdbPhone, is_disk_full
from amc_mobile.device.adb_server import SILENT, WAKE
from amc_mobile.device.adb_shell import RunningShell, process_holds, quote
from amc_mobile.device.batch_scripts import FOLDER, MANIFEST, RESULTS, remove_batches
from amc_mobile.device.deadline import NOTICE_S, Deadline
from amc_mobile.device.neighbours import SAVE_OWN, SAVE_TIMES
from amc_mobile.device.phone_facts import BOOT_ID, answers_in, asking
from amc_mobile.device.phone_output import phone_text
from amc_mobile.errors import (
    DeadlineExceeded,
    DeviceDisconnected,
    DeviceError,
    PhoneCommandFailed,
    PhoneDiskFull,
    PhoneOutputInvalid,
    PhoneRebooted,
    RunnerFailed,
    readable_s,
)
from amc_mobile.store import parse_json

START_TIMEOUT_S = 60.0  # unpacking hundreds of megabytes
FULL_BYTES = 1 << 20
POLL_TIMEOUT_S = 20.0
SILENCE_TIMEOUT_S = 40.0  # a link that is up and carries nothing for so long does not recover by itself
CLEAN_TIMEOUT_S = 10.0
# Every question is work that disturbs what the phone measures: some steps, each of this share of the time that passed,
# lie between two. The runner's end is told by the shell that started it; without that, after a broken link, the phone
# looks itself at each step whether the runner has ended.
STEP_SHARE, SHORTEST_STEP_S, LONGEST_STEP_S = 0.01, 0.05, 0.5
STEPS_PER_ANSWER = 10


class PhoneBatch:
    """One run of the runner. Its token is part of the command line, which proves that a pid is still the runner's.

    `at_end`: scripts that the phone answers as soon as the runner has ended; `answers` holds what they printed.
    `boot_id`: of a batch that was started before, by another process.
    """

    def __init__(self, adb: AdbPhone, token: str, at_end: Mapping[str, str], boot_id: str = "") -> None:
        self.folder = f"batch-{token}"
        self.answers: dict[str, str] | None = None
        self.is_done = False  # the end line has come
        self._adb = adb
        self._token = token
        self._at_end = at_end
        self._boot_id = boot_id
        self._watch_token = ""
        self._watch: RunningShell | None = None  # the shell that started the runner, which ends when that ends

    def start(self, runner: str, files: Callable[[], Iterable[bytes]], obsolete: Sequence[str] = ()) -> None:
        """Starts the runner on a tar archive with the manifest, as its last file, and what it needs that is not there.

        `files`: gives the archive in pieces. `obsolete`: folders of batches that have been seen to their end, which are
        removed. Raises PhoneDiskFull.
        """
        token = secrets.token_hex(8)
        # What stands in a file's way to a second start is there: a link that breaks here makes the command run twice.
        # All that is sent is read: adbd may drop what a script says that ends before.
        script = (
            f"cd {FOLDER} || {{ cat >/dev/null; exit 9; }}\n"
            + "".join(f"rm -rf {folder}\n" for folder in obsolete)
            + f"if [ -e {self.folder}/started ]; then cat >/dev/null\n"
            # The archive of a link that broke may end between two files.
            f"else tar xf - && [ -e {self.folder}/{MANIFEST} ] || {{ cat >/dev/null; exit 8; }}; fi\n"
            f"cd {self.folder} || exit 9\n"
            "started=; if mkdir started 2>/dev/null; then\n"
            "  detach=$(command -v setsid || command -v nohup)\n"
            # The token in the program's own name is what every way of reading a command line finds.
            f"  ln -s ../{quote(runner)} run-{self._token}\n"
            f"  {SAVE_TIMES}\n"
            f"  $detach ./run-{self._token} {MANIFEST} {RESULTS} >log.txt 2>&1 </dev/null &\n"
            f"  read -r id <{BOOT_ID}; echo $! >pid; echo $id >boot_id; started=yes\n"
            "fi\n"
            f"read -r id <boot_id; read -r pid <pid; echo $id $pid; echo {token}\n"
            # On the first try only: another shell has nothing to wait for.
            f'[ -n "$started" ] && wait $pid || exit 0\n{SAVE_OWN}\n' + self._answering(0, token)
        )
        try:
            printed, self._watch = self._adb.start(
                script,
                what="starting the runner on the phone",
                timeout_s=START_TIMEOUT_S,
                stdin=files,
                until=token.encode(),
            )
        except PhoneCommandFailed as error:
            # tar says so once per file.
            self._raise_if_disk_full("the models of a batch do not fit", certainly=is_disk_full(error))
            raise
        words = phone_text(printed).split()
        if len(words) != 2 or not words[1].isdecimal():
            self._raise_if_disk_full("the runner's own files do not fit")
            raise RunnerFailed(f"the runner did not start: {' '.join(words)[:100]}", next_step="run the command again")
        self._boot_id = words[0]
        self._watch_token = token

    def lines(
        self, deadline: Deadline, waiting_for: Callable[[], str] = lambda: "a result", patience_s: float = math.inf
    ) -> Iterator[str]:
        """Complete lines as they come, until the runner has ended.

        `waiting_for`: what the next line is to tell, for people. Raises RunnerFailed when none came for `patience_s`.
        """
        offset = 0
        began = heard = time.monotonic()
        while True:
            step_s = min(LONGEST_STEP_S, max(SHORTEST_STEP_S, STEP_SHARE * (time.monotonic() - began)))
            answer = None
            if self._watch and not self._watch.is_silent_for(min(STEPS_PER_ANSWER * step_s, deadline.check())):
                answer = self._end_watch(offset)
            boot_id, alive, content = answer or self._poll(offset, step_s, deadline)
            complete = content[: content.rfind(b"\n") + 1]
            offset += len(complete)
            lines = complete.split(b"\n")[:-1]
            self.is_done = bool(lines) and _is_end(lines[-1])
            yield from map(_decoded, lines)
            if self.is_done:
                self._end_watch(offset)
                return
            if boot_id != self._boot_id:
                raise PhoneRebooted(
                    f"the phone {self._adb.serial} started anew while it measured",
                    next_step="run the same command again: what was measured before is kept",
                )
            if not alive:
                self._raise_if_disk_full("the runner could not write its results")  # then the log cannot say so either
                raise self._early_end()
            heard = time.monotonic() if lines else heard
            self._watch_silence(time.monotonic() - heard, patience_s, waiting_for)

    def _watch_silence(self, silent_s: float, patience_s: float, waiting_for: Callable[[], str]) -> None:
        if silent_s >= patience_s:
            raise RunnerFailed(
                f"the runner on the phone hangs: it has given no result for {readable_s(silent_s)} s, while it "
                f"measured {waiting_for()}",
                next_step="run the same command again: what was measured is kept. If it hangs there again, restart the "
                "phone, or use another runtime",
            )
        if self._adb.server.on_wait and silent_s >= NOTICE_S:
            limit_s = patience_s if patience_s < math.inf else 0.0
            self._adb.server.on_wait(f"the runner measures {waiting_for()}", silent_s, limit_s)

    def _poll(self, offset: int, step_s: float, deadline: Deadline) -> tuple[str, bool, bytes]:
        """Boot id, whether the runner lives, and the results from `offset` on. Answers at its end, or after a while."""
        steps = 0 if self._watch else max(1, min(STEPS_PER_ANSWER, int(deadline.check() / step_s)))
        token = secrets.token_hex(8)
        script = (
            f"cd {FOLDER}/{self.folder} || exit 9\n"
            # The command line of a process that has ended is empty, also while nobody has collected it.
            "read -r pid <pid; n=0\n"
            f'while [ $n -lt {steps} ]; do line=; read -r line </proc/$pid/cmdline; [ -n "$line" ] || break; '
            f"sleep {step_s:.2f} || sleep 1; n=$((n + 1)); done 2>/dev/null\n" + self._answering(offset, token)
        )
        asked = time.monotonic()
        while True:
            left_s = asked + SILENCE_TIMEOUT_S - time.monotonic()
            timeout_s = min(POLL_TIMEOUT_S + steps * step_s, deadline.check(), max(left_s, SHORTEST_STEP_S))
            try:
                answer = self._adb.shell(script, what="asking for results", timeout_s=timeout_s, retry=False).stdout
                break
            except DeadlineExceeded as error:
                if time.monotonic() - asked >= SILENCE_TIMEOUT_S:
                    raise DeadlineExceeded(
                        "asking for results", SILENCE_TIMEOUT_S, why=SILENT, next_step=WAKE
                    ) from error
                continue  # a stalled link, not the runner: it goes on alone
            except DeviceDisconnected:
                self._adb.wait_until_back(min(RECONNECT_TIMEOUT_S, deadline.check()))
        return self._answered(answer, token)

    def _answering(self, offset: int, token: str) -> str:
        """The script, in the batch's folder and for its `$pid`, whose output `_answered` understands."""
        # Alive is asked before reading: what a dead runner wrote is then all there.
        return (
            f"read -r id <{BOOT_ID}; echo $id; state=ended\n"
            f"{process_holds('$pid', self._token)} && state=alive\n"
            "echo $state\n"
            f"[ -e {RESULTS} ] && tail -c +{offset + 1} {RESULTS}\n"
            f"[ $state = alive ] || {{ echo; {asking(self._at_end, token)}\n}}\n"
            "exit 0"
        )

    def _answered(self, answer: bytes, token: str) -> tuple[str, bool, bytes]:
        head = answer.split(b"\n", 2)
        if len(head) < 3 or head[1].strip() not in (b"alive", b"ended"):
            raise PhoneOutputInvalid("answer about the runner", f"{answer[:80]!r}")
        boot_id, alive = phone_text(head[0].strip()), head[1].strip() == b"alive"
        if alive:
            return boot_id, alive, head[2]
        content, _, answers = head[2].partition(f"\n{token} ".encode())
        self.answers = answers_in(f"{token} {phone_text(answers)}", self._at_end, token)
        return boot_id, alive, content

    def _early_end(self) -> DeviceError:
        return RunnerFailed(
            f"the runner on the phone ended without finishing; its log ends: {self._log_end()}",
            next_step="run `amc-mobile doctor`; if it says nothing, the model or the runtime library fails",
        )

    def _raise_if_disk_full(self, what: str, *, certainly: bool = False) -> None:
        free_bytes = self._adb.free_bytes()
        if certainly or free_bytes < FULL_BYTES:
            raise PhoneDiskFull(free_bytes, what)

    def _log_end(self) -> str:
        output = self._adb.shell(f"tail -n 5 {FOLDER}/{self.folder}/log.txt", what="reading the log", check=False)
        return " / ".join(output.text.split("\n")).strip(" /")[-400:] or "(empty)"

    def remove(self) -> None:
        """Ends the runner if it lives and removes the folder; without a link the next `open` does."""
        script = remove_batches(self.folder)
        with suppress(DeviceError):
            self._adb.shell(script, what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
            self._end_watch(0)
        if self._watch:
            self._watch.close()

    def _end_watch(self, offset: int) -> tuple[str, bool, bytes] | None:
        """As `_poll`, what the shell that started the runner says at its end; None where that or the link failed."""
        watch, self._watch = self._watch, None
        if watch is None:
            return None
        try:
            printed = watch.finish(self._adb.deadline("seeing the runner's end", POLL_TIMEOUT_S)).stdout
            _, _, answer = printed.partition(f"{self._watch_token}\n".encode())
            boot_id, alive, content = self._answered(answer, self._watch_token)
        except DeviceError:
            return None
        finally:
            watch.close()
        return boot_id, alive, content[offset:]


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PhoneOutputInvalid("results", f"{line[:60]!r} is no text", next_step="run the command again") from error


def _is_end(line: bytes) -> bool:
    try:
        document = parse_json(line)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("event") == "end"
