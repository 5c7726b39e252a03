"""One run of the runner on a phone: started detached, its results fetched as they come.

A pulled cable loses nothing: the runner works on alone, and the results it wrote are fetched when the link is back.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence

from amc_mobile.device.adb import RECONNECT_TIMEOUT_S, AdbPhone
from amc_mobile.device.adb_shell import process_holds, quote
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_facts import BOOT_ID, PHONE_FOLDER, answers_in, asking
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
PLAN = "plan.json"
RESULTS = "results.jsonl"
START_TIMEOUT_S = 60.0  # unpacking hundreds of megabytes
FULL_BYTES = 1 << 20
POLL_TIMEOUT_S = 20.0
SILENCE_TIMEOUT_S = 120.0  # a link that is up and carries nothing for so long will not mend itself
CLEAN_TIMEOUT_S = 10.0
# Every question is work that disturbs what the phone measures: it looks itself whether the runner has ended, at steps
# of this share of the time that passed, and answers after some steps or at the end.
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

    def start(self, runner: str, archive: str, obsolete: Sequence[str] = ()) -> None:
        """Unpacks `archive`, which holds the manifest and what it needs that is not there, and starts the runner.

        `obsolete`: folders of batches that have been seen to their end, which are removed.
        """
        # What stands in a file's way to a second start is there: a link that breaks here makes the command run twice.
        script = (
            f"cd {FOLDER} || exit 9\n"
            + "".join(f"rm -rf {folder}\n" for folder in obsolete)
            + f"[ ! -e {archive} ] || {{ tar xf {archive} && rm {archive}; }} || exit 8\n"
            f"cd {self.folder} || exit 9\n"
            "if mkdir started 2>/dev/null; then\n"
            "  detach=$(command -v setsid || command -v nohup)\n"
            # The token in the program's own name is what every way of reading a command line finds.
            f"  ln -s ../{quote(runner)} run-{self._token}\n"
            f"  $detach ./run-{self._token} {MANIFEST} {RESULTS} >log.txt 2>&1 </dev/null &\n"
            f"  cat {BOOT_ID} > boot_id; echo $! > pid\n"
            "fi\n"
            "cat boot_id pid"
        )
        words = self._adb.shell(script, what="starting the runner on the phone", timeout_s=START_TIMEOUT_S).text.split()
        if len(words) != 2 or not words[1].isdecimal():
            raise RunnerFailed(f"the runner did not start: {' '.join(words)[:100]}", next_step="run the command again")
        self._boot_id = words[0]

    def lines(self, deadline: Deadline) -> Iterator[str]:
        """Complete lines as they come, until the runner has ended."""
        offset = 0
        began = time.monotonic()
        while True:
            step_s = min(LONGEST_STEP_S, max(SHORTEST_STEP_S, STEP_SHARE * (time.monotonic() - began)))
            boot_id, alive, content = self._poll(offset, step_s, deadline)
            complete = content[: content.rfind(b"\n") + 1]
            offset += len(complete)
            lines = complete.split(b"\n")[:-1]
            self.is_done = bool(lines) and _is_end(lines[-1])
            yield from map(_decoded, lines)
            if self.is_done:
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
        token = secrets.token_hex(8)
        # Alive is asked before reading: what a dead runner wrote is then all there.
        script = (
            f"cd {FOLDER}/{self.folder} || exit 9\n"
            # The command line of a process that has ended is empty, also while nobody has collected it.
            "pid=$(cat pid); n=0; state=ended\n"
            f'while [ $n -lt {steps} ]; do line=; read -r line </proc/$pid/cmdline; [ -n "$line" ] || break; '
            f"sleep {step_s:.2f} || sleep 1; n=$((n + 1)); done 2>/dev/null\n"
            f"cat {BOOT_ID}\n"
            f"{process_holds('$pid', self._token)} && state=alive\n"
            "echo $state\n"
            f"[ -e {RESULTS} ] && tail -c +{offset + 1} {RESULTS}\n"
            f"[ $state = alive ] || {{ echo; {asking(self._at_end, token)}\n}}\n"
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
        boot_id, alive = head[0].strip().decode(errors="replace"), head[1].strip() == b"alive"
        if alive:
            return boot_id, alive, head[2]
        content, _, answers = head[2].partition(f"\n{token} ".encode())
        self.answers = answers_in(f"{token} {answers.decode(errors='replace')}", self._at_end, token)
        return boot_id, alive, content

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
        output = self._adb.shell(f"tail -n 5 {FOLDER}/{self.folder}/log.txt", what="reading the log", check=False)
        return " / ".join(output.text.split("\n")).strip(" /")[-400:] or "(empty)"

    def remove(self) -> None:
        """Ends the runner if it lives and removes the folder; without a link the next `open` does."""
        script = remove_batches(self.folder) + f"rm -f {self.folder}.tar"
        try:
            self._adb.shell(script, what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
        except DeviceError:
            return


def remove_batches(pattern: str, unless: str = "false") -> str:
    """A script that ends the runners of some batches, and removes them. A pid counts while it is still the runner's.

    `unless`: a condition of the phone's shell on `$folder`, which spares a batch.
    """
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"for folder in {pattern}; do\n"
        f'[ -d "$folder" ] && ! {{ {unless}; }} || continue\n'
        'if [ -s "$folder/pid" ]; then pid=$(cat "$folder/pid")\n'
        f'token="${{folder#batch-}}"; {process_holds("$pid", "$token")} && kill -9 "$pid"; fi\n'
        'rm -rf "$folder"\n'
        "done\n"
    )


def remove_unusable_batches(last: str) -> str:
    """A script that keeps and prints the batches that can still be used: `token boot-id` lines.

    Those are batches with a plan, started since the phone was, whose runner works or has come to its end. The others
    are removed, and where there is none left, `last` is run in their folder.
    """
    holds = process_holds("$pid", "$token")
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"boot_id=$(cat {BOOT_ID}); kept=\n"
        "for folder in batch-*; do\n"
        f'[ -s "$folder/{PLAN}" ] && [ -s "$folder/pid" ] && [ "$(cat "$folder/boot_id")" = "$boot_id" ] || continue\n'
        'token="${folder#batch-}"; pid=$(cat "$folder/pid")\n'
        f'if {holds} || tail -n 1 "$folder/{RESULTS}" | grep -q \'"status": *"done"\'; then\n'
        'kept="$kept $folder "; echo "$token $boot_id"; fi\n'
        "done\n"
        + remove_batches("batch-*", unless='case "$kept" in *" $folder "*) true;; *) false;; esac')
        + f'[ -n "$kept" ] || {{ {last}; }}\n'
    )


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PhoneOutputInvalid("results", f"{line[:60]!r} is no text", next_step="run the command again") from error


def _is_end(line: bytes) -> bool:
    try:
        document = json.loads(line)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("event") == "end"
