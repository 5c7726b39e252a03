"""One run of the runner on a phone: started detached, its results fetched as they come.

A pulled cable loses nothing: the runner works on alone, and the results it wrote are fetched when the link is back.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from amc_mobile.device.adb import RECONNECT_TIMEOUT_S, AdbPhone
from amc_mobile.device.adb_shell import process_holds, quote
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_facts import BOOT_ID, PHONE_FOLDER
from amc_mobile.device.phone_output import parse_free_bytes
from amc_mobile.errors import (
    DeadlineExceeded,
    DeviceDisconnected,
    DeviceError,
    PhoneDiskFull,
    PhoneOutputInvalid,
    PhoneRebooted,
    RunnerFailed,
)

FOLDER = f"{PHONE_FOLDER}/amc-mobile"
MANIFEST = "manifest.txt"
RESULTS = "results.jsonl"
FULL_BYTES = 1 << 20
POLL_TIMEOUT_S = 20.0
SILENCE_TIMEOUT_S = 120.0  # a link that is up and carries nothing for so long will not mend itself
CLEAN_TIMEOUT_S = 10.0
# Every question is work that disturbs what the phone measures: it looks itself whether the runner has ended, at steps
# of this share of the time that passed, and answers after some steps or at the end.
STEP_SHARE, SHORTEST_STEP_S, LONGEST_STEP_S = 0.01, 0.05, 0.5
STEPS_PER_ANSWER = 10


class PhoneBatch:
    """One run of the runner. Its token is part of the command line, which proves that a pid is still the runner's."""

    def __init__(self, adb: AdbPhone, token: str) -> None:
        self._adb = adb
        self._token = token
        self._folder = f"{FOLDER}/batch-{token}"
        self._boot_id = ""
        self._may_exist = False

    def send(self, manifest: str) -> None:
        with tempfile.TemporaryDirectory(prefix="amc-batch-") as folder:
            local = Path(folder) / "manifest"
            local.write_text(manifest, encoding="utf-8")
            self._may_exist = True
            self._adb.push(local, f"{self._folder}/{MANIFEST}")

    def start(self, runner: str) -> None:
        # mkdir decides whether it was started already: a link that breaks here makes the command run twice.
        script = (
            f"cd {quote(self._folder)} || exit 9\n"
            "if mkdir started 2>/dev/null; then\n"
            "  detach=$(command -v setsid || command -v nohup)\n"
            # The token in the program's own name is what every way of reading a command line finds.
            f"  ln -s ../{quote(runner)} run-{self._token}\n"
            f"  $detach ./run-{self._token} {MANIFEST} {RESULTS} >log.txt 2>&1 </dev/null &\n"
            f"  cat {BOOT_ID} > boot_id; echo $! > pid\n"
            "fi\n"
            "cat boot_id pid"
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
            step_s = min(LONGEST_STEP_S, max(SHORTEST_STEP_S, STEP_SHARE * (time.monotonic() - began)))
            boot_id, alive, content = self._poll(offset, step_s, deadline)
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
                raise self._early_end()

    def _poll(self, offset: int, step_s: float, deadline: Deadline) -> tuple[str, bool, bytes]:
        """Boot id, whether the runner lives, and the results from `offset` on. Answers at its end, or after a while."""
        steps = max(1, min(STEPS_PER_ANSWER, int(deadline.check() / step_s)))
        # Alive is asked before reading: what a dead runner wrote is then all there.
        script = (
            f"cd {quote(self._folder)} || exit 9\n"
            # The command line of a process that has ended is empty, also while nobody has collected it.
            "pid=$(cat pid); n=0\n"
            f'while [ $n -lt {steps} ]; do line=; read -r line </proc/$pid/cmdline; [ -n "$line" ] || break; '
            f"sleep {step_s:.2f} || sleep 1; n=$((n + 1)); done 2>/dev/null\n"
            f"cat {BOOT_ID}\n"
            f"{process_holds('$pid', self._token)} && echo alive || echo ended\n"
            f"[ -e {RESULTS} ] && tail -c +{offset + 1} {RESULTS}\n"
            "exit 0"
        )
        asked = time.monotonic()
        while True:
            timeout_s = min(POLL_TIMEOUT_S + steps * step_s, deadline.check())
            try:
                answer = self._adb.shell(script, what="asking for results", timeout_s=timeout_s, retry=False).stdout
                break
            except DeadlineExceeded:
                if time.monotonic() - asked >= SILENCE_TIMEOUT_S:
                    raise
                continue  # a stalled link, not the runner: it goes on alone
            except DeviceDisconnected:
                self._adb.wait_until_back(min(RECONNECT_TIMEOUT_S, deadline.check()))
        head = answer.split(b"\n", 2)
        if len(head) < 3 or head[1].strip() not in (b"alive", b"ended"):
            raise PhoneOutputInvalid("answer about the runner", f"{answer[:80]!r}")
        return head[0].strip().decode(errors="replace"), head[1].strip() == b"alive", head[2]

    def _early_end(self) -> DeviceError:
        df = self._adb.shell(f"df -k {PHONE_FOLDER}", what="looking for free space on the phone", check=False)
        free_bytes = parse_free_bytes(df.text)
        if free_bytes < FULL_BYTES:  # then the log cannot say so either
            return PhoneDiskFull(
                f"the phone has {free_bytes >> 20} MiB free: the runner could not write its results",
                next_step="free some space on the phone, then run the same command again",
            )
        return RunnerFailed(
            f"the runner on the phone ended without finishing; its log ends: {self._log_end()}",
            next_step="run `amc-mobile doctor`; if it says nothing, the model or the runtime library fails",
        )

    def _log_end(self) -> str:
        output = self._adb.shell(f"tail -n 5 {quote(self._folder)}/log.txt", what="reading the log", check=False)
        return " / ".join(output.text.split("\n")).strip(" /")[-400:] or "(empty)"

    def remove(self) -> None:
        """Ends the runner if it lives and removes the folder; without a link the next `open` does."""
        if not self._may_exist:
            return
        script = remove_batches(f"batch-{self._token}")
        try:
            self._adb.shell(script, what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
        except DeviceError:
            return


def remove_batches(pattern: str) -> str:
    """A script that ends the runners of some batches, and removes them. A pid counts while it is still the runner's."""
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"for folder in {pattern}; do\n"
        '[ -d "$folder" ] || continue\n'
        'if [ -s "$folder/pid" ]; then pid=$(cat "$folder/pid")\n'
        f'token="${{folder#batch-}}"; {process_holds("$pid", "$token")} && kill -9 "$pid"; fi\n'
        'rm -rf "$folder"\n'
        "done\n"
    )


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
