"""A phone that runs batches of models: with a runner, a runtime library and the models that are copied there once.

A pulled cable loses nothing: the runner works on alone, and the results it wrote are fetched when the link is back.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from amc_mobile.device.adb import (
    NOTICE_S,
    PHONE_FOLDER,
    RECONNECT_TIMEOUT_S,
    SILENT,
    WAKE,
    AdbPhone,
    Deadline,
    RunningShell,
    is_disk_full,
    process_holds,
    quote,
)
from amc_mobile.device.device import LOOK, LOOK_BACK, SAVE_OWN, SAVE_TIMES
from amc_mobile.device.phone_output import parse_free_bytes, phone_text
from amc_mobile.device.phone_state import (
    BOOT_ID,
    NEIGHBOURS,
    STATE_QUESTIONS,
    PhoneState,
    answers_in,
    ask,
    asking,
    state_from,
)
from amc_mobile.device.runner import BenchEvent, BenchManifest, BenchPair, ResultStream
from amc_mobile.errors import (
    DeadlineExceeded,
    DeviceDisconnected,
    DeviceError,
    InvalidInput,
    PhoneCommandFailed,
    PhoneDiskFull,
    PhoneOutputInvalid,
    PhoneRebooted,
    RunnerFailed,
    readable_s,
)
from amc_mobile.store import parse_object

FOLDER = f"{PHONE_FOLDER}/amc-mobile"
MANIFEST = "manifest.txt"
PLAN = "plan.json"
RESULTS = "results.jsonl"
PATIENCE = "patience"  # seconds after which a runner without a new result hangs
MODELS = "models"
TRASH = "trash-*"
KEPT_FOLDERS = 6  # of runners and libraries, those last used: two of each measurement


def remove_batches(pattern: str, unless: str = "false") -> str:
    """A script that ends the runners of some batches, and removes them.

    `unless`: a condition of the phone's shell on `$folder`, which spares a batch.
    """
    return end_runners(pattern, unless, 'rm -rf "$folder"\n')


def end_runners(pattern: str, unless: str = "false", then: str = "") -> str:
    """A script that ends the runners of some batches. A pid counts while it is still the runner's.

    `unless`: as for `remove_batches`. `then`: runs on each `$folder` afterwards.
    """
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"for folder in {pattern}; do\n"
        f'[ -d "$folder" ] && ! {{ {unless}; }} || continue\n'
        'if [ -s "$folder/pid" ]; then read -r pid <"$folder/pid"\n'
        f'token="${{folder#batch-}}"; {process_holds("$pid", "$token")} && kill -9 "$pid"; fi\n'
        f"{then}done\n"
    )


def remove_unusable_batches(last: str) -> str:
    """A script that keeps and prints the batches that can still be used: `token boot-id` lines.

    Those are batches with a plan, started since the phone was, whose runner works or has come to its end. The others
    are removed, and where there is none left, `last` is run in their folder. A runner that is stopped (T in its state),
    or whose last result is older than its patience, hangs.
    """
    holds = process_holds("$pid", "$token")
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"read -r boot_id <{BOOT_ID}; kept=\n"
        "works() {\n"
        'line=; read -r line <"/proc/$pid/stat"; case "${line##*) }" in [TtXZ]*) return 1;; esac\n'
        f'[ -s "$folder/{PATIENCE}" ] && read -r patience <"$folder/{PATIENCE}" || return 0\n'
        f'written=$(stat -c %Y "$folder/{RESULTS}") || return 0; [ $(($(date +%s) - written)) -le "$patience" ]\n'
        "}\n"
        "for folder in batch-*; do\n"
        f'[ -s "$folder/{PLAN}" ] && [ -s "$folder/pid" ] && [ "$(cat "$folder/boot_id")" = "$boot_id" ] || continue\n'
        'token="${folder#batch-}"; pid=$(cat "$folder/pid")\n'
        f'if {{ {holds} && works; }} || tail -n 1 "$folder/{RESULTS}" | grep -q \'"status": *"done"\'; then\n'
        'kept="$kept $folder "; echo "$token $boot_id"; fi\n'
        "done\n"
        + remove_batches("batch-*", unless='case "$kept" in *" $folder "*) true;; *) false;; esac')
        + f'[ -n "$kept" ] || {{ {last}; }}\n'
    )


def keep_installed(folders: str) -> str:
    """A script that notes the use of these folders of installed files, and removes those not used for longest."""
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\ntouch -c {folders}\n"
        f'ls -td keep-* | tail -n +{KEPT_FOLDERS + 1} | while read -r folder; do rm -rf "$folder"; done'
    )


# Removes everything of ours, and prints how many KiB that were.
REMOVE_ALL = (
    f"[ -d {FOLDER} ] || {{ echo 0; exit 0; }}\n( {end_runners('batch-*')}\n)\ndu -sk {FOLDER}\nrm -rf {FOLDER}"
)

# Ends what still runs and removes all but runner and library. Nobody waits for megabytes to be freed: what is left of
# them the next `PhoneRunner.open` removes.
CLEAN_UP = (
    end_runners("batch-*")
    + f"mkdir trash-$$ && mv batch-* {MODELS} trash-$$\nrm -rf {TRASH} >/dev/null 2>&1 </dev/null &"
)


START_TIMEOUT_S = 60.0  # unpacking hundreds of megabytes
FULL_BYTES = 1 << 20
POLL_TIMEOUT_S = 20.0
SILENCE_TIMEOUT_S = 40.0  # a link that is up and carries nothing for this time does not recover by itself
CLEAN_TIMEOUT_S = 10.0
# Every question is work that disturbs what the phone measures: some steps, each of this share of the time that passed,
# lie between two. The shell that started the runner reports its end; without that, after a broken link, the phone
# looks itself at each step whether the runner has ended.
STEP_SHARE, SHORTEST_STEP_S, LONGEST_STEP_S = 0.01, 0.05, 0.5
STEPS_PER_ANSWER = 10
# What the phone answers as soon as the runner has ended. The first question comes before the others put it to work.
AT_END = {NEIGHBOURS: LOOK_BACK, **STATE_QUESTIONS}
KEEP_BYTES = 512 << 20  # of models on the phone
REMOVE_TIMEOUT_S = 60.0  # of gigabytes on an old phone
SPARE_BYTES = 32 << 20  # left free on the phone; Android misbehaves on a full disk
END_GRACE_S = 30.0  # the runner ends itself at its deadline; this is how late it may be
HANG_GRACE_S = 10.0
FREE_VALID_S = 60.0  # the free space is asked again after this long, or when what is left of it would not do
FREE = {"free": f"[ -d {FOLDER} ] || mkdir -p {FOLDER}; df -k {FOLDER}"}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = 16  # characters at the start of a batch's token that identify what it measures


@dataclass(frozen=True)
class InstalledFile:
    """A file that stays on the phone between batches, in a folder named by its content."""

    path: Path
    sha256: str

    @property
    def remote(self) -> str:
        """Relative to the folder that holds the batches."""
        return f"{self.folder}/{self.path.name}"

    @property
    def folder(self) -> str:
        return f"keep-{self.sha256[:16]}"


def remove_all(adb: AdbPhone) -> int:
    """Removes all files of ours from a phone, which the caller holds; returns how many bytes they took."""
    text = adb.shell(REMOVE_ALL, what="removing amc-mobile's files from the phone", timeout_s=REMOVE_TIMEOUT_S).text
    kib = text.split()[:1]
    if not kib or not re.fullmatch(r"\d{1,15}", kib[0], re.ASCII):
        raise PhoneOutputInvalid("size of our files (du)", repr(text[:80]))
    return int(kib[0]) * 1024


class PhoneRunner:
    """Runs batches on a phone with one runner and one runtime library.

    Everything goes to a folder of ours on the phone. `open` before use; CLEAN_UP ends it. A batch is one run of the
    runner; its token is part of the command line, which proves that a pid is still the runner's.
    """

    def __init__(self, adb: AdbPhone, runner: InstalledFile, library: InstalledFile) -> None:
        for file in (runner, library):
            if not _FILE_NAME.fullmatch(file.path.name):
                raise InvalidInput(f"{file.path}: the file's name has characters no phone should see")
        self.adb = adb
        self.library_path = f"../{library.remote}"  # for manifests: relative to the folder of a batch
        self._runner = runner
        self._installed = (runner, library)
        self._sizes: dict[str, int] = {}  # of the models on the phone, by name
        self._new: dict[str, bytes] = {}  # models that the next batch brings along
        self._free_bytes = 0  # as last asked, less what was copied since
        self._free_asked_s = 0.0
        self._state: Mapping[str, str] = {}  # answers to STATE_QUESTIONS when the session began
        self._left: dict[str, str] = {}  # batches of earlier processes that can be taken over: token -> boot id
        self._began: dict[str, PhoneState] = {}  # the phone's state when the sessions of some of these began
        self._obsolete: list[str] = []  # folders of batches that came to their end
        # Of the present batch, or the last one:
        self.taken_over: PhoneState | None = None  # the state when its session began, where another process started it
        self._token = self._boot_id = ""
        self._watch: tuple[RunningShell, str] | None = None  # the shell that waits for the runner, token of its answer
        self._at_end: dict[str, str] | None = None  # answers to AT_END, once the runner has ended

    def open(self, script: str = "true") -> PhoneState:
        """Ends and removes what earlier processes left on the phone, then copies runner and library where missing.

        What a killed process measured by a plan stays: see `unfinished`. Returns the phone's state, asked in the same
        breath after `script`. Raises PhoneCommandFailed where that fails.
        """
        remotes = " ".join(quote(file.remote) for file in self._installed)
        sizes = f"cd {FOLDER} && wc -c {remotes}"
        left = remove_unusable_batches(f"rm -rf {MODELS} {TRASH}")
        keep = keep_installed(" ".join(quote(file.folder) for file in self._installed))
        questions = {"left": left, "keep": keep, **FREE, "sizes": sizes, **STATE_QUESTIONS, NEIGHBOURS: LOOK}
        token = secrets.token_hex(8)
        script = f"( {script}\n) || exit\n{asking(questions, token)}\nexit 0"
        what = "preparing the phone and looking at what is on it"
        answers = answers_in(self.adb.shell(script, what=what).text, questions, token)
        self._sizes.clear()
        self._new.clear()
        self._obsolete.clear()
        self._left = _left_batches(answers["left"])
        self._began.clear()
        self._state = {name: answers[name] for name in STATE_QUESTIONS}
        self._see_free_space(answers)
        there = {tuple(line.split()) for line in answers["sizes"].splitlines()}
        for file in self._installed:
            if (str(file.path.stat().st_size), file.remote) not in there:
                self._require_space(file.path.stat().st_size)
                self._free_bytes -= self.adb.push(file.path, f"{FOLDER}/{file.remote}", mode=0o755)
        return state_from(answers)

    def keep(self, models: Iterable[bytes]) -> list[str]:
        """The models' paths for manifests, in order. Those that are not on the phone yet travel with the next batch.

        They stay there for later batches, up to KEEP_BYTES together.
        """
        files = tuple(models)
        names = [f"model-{hashlib.sha256(file).hexdigest()[:24]}" for file in files]
        self._new |= {name: file for name, file in zip(names, files, strict=True) if name not in self._sizes}
        if self._sizes and sum(self._sizes.values()) + sum(map(len, self._new.values())) > KEEP_BYTES:
            self.adb.shell(f"rm -rf {FOLDER}/{MODELS}", what="making room for models on the phone")
            self._sizes.clear()
            self._new |= zip(names, files, strict=True)
        return [f"../{MODELS}/{name}" for name in names]

    def has(self, path: str | None) -> bool:
        """Whether a model whose path `keep` gave is on the phone, or will travel with the next batch."""
        name = (path or "").rpartition("/")[2]
        return name in self._sizes or name in self._new

    def unfinished(self) -> str:
        """The plan of a batch that an earlier process did not see the end of; empty where there is none.

        `run` with the same manifest takes the batch over, once; with another one it removes it.
        """
        for token in self._left:
            path = f"{FOLDER}/batch-{token}/{PLAN}"
            text = self.adb.shell(f"cat {path}", what="reading the plan of an earlier batch", check=False).text
            if saved := saved_plan(text):
                self._began[token], plan = saved
                return plan
        return ""

    def run(
        self,
        manifest: BenchManifest,
        *,
        plan: str = "",
        labels: Sequence[str] = (),
    ) -> Iterator[BenchEvent]:
        """Runs one batch and yields what the runner says as it comes: start, results, models that failed, end.

        `plan`: what a later process needs to go on with the batch if this one is killed. `labels`: the models' names
        for people, in order. A runner that gives no result until some time after the manifest's `model_deadline_s`
        hangs, and is ended. Closing the iterator ends the runner. Raises RunnerFailed when it ended early, with the end
        of its log where it did not say why, PhoneRebooted after the last result that was written before,
        DeadlineExceeded, PhoneDiskFull, DeviceDisconnected when the phone does not come back, DeviceError for output
        that is no result.
        """
        text = manifest.text()
        names = list(labels) or [model.id for model in manifest.models]
        stream = ResultStream([model.id for model in manifest.models])
        digest = hashlib.sha256(f"{self._runner.sha256}\n{text}".encode()).hexdigest()[:_DIGEST]
        same = [token for token in self._began if token.startswith(digest)]
        self._token = same[0] if same else digest + secrets.token_hex(8)
        self._boot_id = self._left.get(self._token, "")
        self.taken_over = self._began.get(self._token)
        self._at_end = None
        try:
            self._remove_left(all_but=self._token)
            if not same:
                self._start(text, plan, _patience_s(manifest))
            self._sizes |= {name: len(model) for name, model in self._new.items()}
            self._new.clear()
            yield from self._events(stream, manifest, names)
        finally:
            if stream.end is not None:  # what removes it comes with the next question
                self._obsolete.append(self._folder)
            else:
                self._remove()
        if stream.end is not None and stream.end.status != "done":
            why = stream.end.message or stream.end.status
            if stream.missing:  # of all models only these can be named
                why = why.replace(manifest.models[stream.missing[0]].id, names[stream.missing[0]])
            raise RunnerFailed(
                f"the runner ended early with {len(stream.missing)} of {len(names)} models left: {why}",
                next_step="run the same command again: what was measured is kept",
            )

    @property
    def _folder(self) -> str:
        return f"batch-{self._token}"

    def _start(self, manifest: str, plan: str, patience_s: float) -> None:
        """Sends the manifest with the models that are not there, and starts the runner. Raises PhoneDiskFull."""
        folder = self._folder
        files = {f"{MODELS}/{name}": model for name, model in self._new.items()}
        if plan:
            files[f"{folder}/{PLAN}"] = json.dumps({"plan": plan, "state": self._state}).encode()
        if patience_s < math.inf:
            files[f"{folder}/{PATIENCE}"] = f"{math.ceil(patience_s)}\n".encode()
        files[f"{folder}/{MANIFEST}"] = manifest.encode()  # the last one: where it is, all are
        size = sum(len(content) + 2 * tarfile.BLOCKSIZE for content in files.values())
        self._require_space(size)
        token = secrets.token_hex(8)
        # A marker keeps it from starting twice: a link that breaks here makes the command run again.
        # All that is sent is read: adbd may drop what a script says that ends before.
        script = (
            f"cd {FOLDER} || {{ cat >/dev/null; exit 9; }}\n"
            + "".join(f"rm -rf {obsolete}\n" for obsolete in self._obsolete)
            + f"if [ -e {folder}/started ]; then cat >/dev/null\n"
            # The archive of a link that broke may end between two files.
            f"else tar xf - && [ -e {folder}/{MANIFEST} ] || {{ cat >/dev/null; exit 8; }}; fi\n"
            f"cd {folder} || exit 9\n"
            "started=; if mkdir started 2>/dev/null; then\n"
            "  detach=$(command -v setsid || command -v nohup)\n"
            # The token in the program's own name is what every way of reading a command line finds.
            f"  ln -s ../{quote(self._runner.remote)} run-{self._token}\n"
            f"  {SAVE_TIMES}\n"
            f"  $detach ./run-{self._token} {MANIFEST} {RESULTS} >log.txt 2>&1 </dev/null &\n"
            f"  read -r id <{BOOT_ID}; echo $! >pid; echo $id >boot_id; started=yes\n"
            "fi\n"
            f"read -r id <boot_id; read -r pid <pid; echo $id $pid; echo {token}\n"
            # On the first try only: another shell has nothing to wait for.
            f'[ -n "$started" ] && wait $pid || exit 0\n{SAVE_OWN}\n' + self._answering(0, token)
        )
        try:
            printed, shell = self.adb.start(
                script,
                what="starting the runner on the phone",
                timeout_s=START_TIMEOUT_S,
                stdin=partial(_archive, files),
                until=token.encode(),
            )
        except PhoneCommandFailed as error:
            # tar says so once per file.
            self._raise_if_disk_full("the models of a batch do not fit", certainly=is_disk_full(error))
            raise
        self._watch = shell, token
        words = phone_text(printed).split()
        if len(words) != 2 or not words[1].isdecimal():
            self._raise_if_disk_full("the runner's own files do not fit")
            raise RunnerFailed(f"the runner did not start: {' '.join(words)[:100]}", next_step="run the command again")
        self._boot_id = words[0]
        self._free_bytes -= size
        self._obsolete.clear()

    def _events(self, stream: ResultStream, manifest: BenchManifest, names: Sequence[str]) -> Iterator[BenchEvent]:
        """What `stream` reads in the runner's output as that comes, until the runner has ended."""
        deadline = Deadline("the batch on the phone", manifest.deadline_s + END_GRACE_S)
        patience_s = _patience_s(manifest)
        offset = 0
        began = heard = time.monotonic()
        while True:
            step_s = min(LONGEST_STEP_S, max(SHORTEST_STEP_S, STEP_SHARE * (time.monotonic() - began)))
            answer = None
            if self._watch and not self._watch[0].is_silent_for(min(STEPS_PER_ANSWER * step_s, deadline.check())):
                answer = self._end_watch(offset)
            boot_id, alive, content = answer or self._poll(offset, step_s, deadline)
            offset += len(content)
            for line in content.splitlines(keepends=True):
                yield from stream.feed(line)
            if stream.end is not None:
                self._end_watch(offset)
                return
            if boot_id != self._boot_id:
                raise PhoneRebooted(
                    f"the phone {self.adb.serial} started anew while it measured",
                    next_step="run the same command again: what was measured before is kept",
                )
            if not alive:
                self._raise_if_disk_full("the runner could not write its results")  # then the log cannot say so either
                raise RunnerFailed(
                    f"the runner on the phone ended without finishing; its log ends: {self._log_end()}",
                    next_step="run `amc-mobile doctor`; if it says nothing, the model or the runtime library fails",
                )
            heard = time.monotonic() if content else heard
            self._watch_silence(
                time.monotonic() - heard, patience_s, names[stream.missing[0]] if stream.missing else "nothing more"
            )

    def _watch_silence(self, silent_s: float, patience_s: float, model: str) -> None:
        """Reports that the result of `model` is due for `silent_s`. Raises RunnerFailed after `patience_s`."""
        if silent_s >= patience_s:
            raise RunnerFailed(
                f"the runner on the phone hangs: it has given no result for {readable_s(silent_s)} s, while it "
                f"measured {model}",
                next_step="run the same command again: what was measured is kept. If it hangs there again, restart the "
                "phone, or use another runtime",
            )
        if self.adb.server.on_wait and silent_s >= NOTICE_S:
            limit_s = patience_s if patience_s < math.inf else 0.0
            self.adb.server.on_wait(f"the runner measures {model}", silent_s, limit_s)

    def _poll(self, offset: int, step_s: float, deadline: Deadline) -> tuple[str, bool, bytes]:
        """Boot id, whether the runner lives, and the results from `offset` on. Answers at its end, or after a while."""
        steps = 0 if self._watch else max(1, min(STEPS_PER_ANSWER, int(deadline.check() / step_s)))
        token = secrets.token_hex(8)
        script = (
            f"cd {FOLDER}/{self._folder} || exit 9\n"
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
                answer = self.adb.shell(script, what="asking for results", timeout_s=timeout_s, retry=False).stdout
                break
            except DeadlineExceeded as error:
                if time.monotonic() - asked >= SILENCE_TIMEOUT_S:
                    raise DeadlineExceeded(
                        "asking for results", SILENCE_TIMEOUT_S, why=SILENT, next_step=WAKE
                    ) from error
                continue  # a stalled link, not the runner: it goes on alone
            except DeviceDisconnected:
                self.adb.wait_until_back(min(RECONNECT_TIMEOUT_S, deadline.check()))
        return self._answered(answer, token)

    def _answering(self, offset: int, token: str) -> str:
        """The script, in the batch's folder and for its `$pid`, whose output `_answered` understands."""
        # Alive is asked before reading: what a dead runner wrote is then all there.
        return (
            f"read -r id <{BOOT_ID}; echo $id; state=ended\n"
            f"{process_holds('$pid', self._token)} && state=alive\n"
            "echo $state\n"
            f"[ -e {RESULTS} ] && tail -c +{offset + 1} {RESULTS}\n"
            f"[ $state = alive ] || {{ echo; {asking(AT_END, token)}\n}}\n"
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
        self._at_end = answers_in(f"{token} {phone_text(answers)}", AT_END, token)
        return boot_id, alive, content

    def _raise_if_disk_full(self, what: str, *, certainly: bool = False) -> None:
        free_bytes = self.adb.free_bytes()
        if certainly or free_bytes < FULL_BYTES:
            raise PhoneDiskFull(free_bytes, what)

    def _log_end(self) -> str:
        output = self.adb.shell(f"tail -n 5 {FOLDER}/{self._folder}/log.txt", what="reading the log", check=False)
        return " / ".join(output.text.split("\n")).strip(" /")[-400:] or "(empty)"

    def _remove(self) -> None:
        """Ends the runner if it lives and removes the batch; without a link the next `open` does."""
        with suppress(DeviceError):
            self.adb.shell(remove_batches(self._folder), what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
            self._end_watch(0)
        if self._watch:
            self._watch[0].close()
            self._watch = None

    def _end_watch(self, offset: int) -> tuple[str, bool, bytes] | None:
        """As `_poll`, what the shell that started the runner says at its end; None where that or the link failed."""
        watch, self._watch = self._watch, None
        if watch is None:
            return None
        shell, token = watch
        try:
            printed = shell.finish(self.adb.deadline("seeing the runner's end", POLL_TIMEOUT_S)).stdout
            _, _, answer = printed.partition(f"{token}\n".encode())
            boot_id, alive, content = self._answered(answer, token)
        except DeviceError:
            return None
        finally:
            shell.close()
        return boot_id, alive, content[offset:]

    def _remove_left(self, all_but: str) -> None:
        others = [f"batch-{token}" for token in self._left if token != all_but]
        if others:
            clean = remove_batches(" ".join(others)) + ("" if all_but in self._left else f"rm -rf {MODELS}")
            self.adb.shell(clean, what="removing old batches from the phone")
        self._left.clear()
        self._began.clear()

    def take_state_at_end(self) -> PhoneState | None:
        """The phone's state when the last batch ended, once; None where unknown."""
        answers, self._at_end = self._at_end, None
        return state_from(answers) if answers else None

    def _see_free_space(self, answers: Mapping[str, str]) -> None:
        self._free_bytes = parse_free_bytes(answers["free"])
        self._free_asked_s = time.monotonic()

    def _require_space(self, size: int) -> None:
        if self._free_bytes < size + SPARE_BYTES or time.monotonic() - self._free_asked_s > FREE_VALID_S:
            self._see_free_space(ask(self.adb, FREE, what="looking for free space on the phone"))
        if self._free_bytes < size + SPARE_BYTES:
            raise PhoneDiskFull(self._free_bytes, f"{(size + SPARE_BYTES) >> 20} MiB are needed")


def _patience_s(manifest: BenchManifest) -> float:
    """Seconds without a result after which a runner hangs: one that works ends itself at a model's deadline."""
    if not manifest.model_deadline_s:
        return math.inf
    has_pair = any(isinstance(entry, BenchPair) for entry in manifest.entries)
    return manifest.model_deadline_s * (2 if has_pair else 1) + HANG_GRACE_S


def saved_plan(text: str) -> tuple[PhoneState, str] | None:
    """State and plan of an earlier batch as `run` saved them; None for what is no plan of ours: others may write it."""
    try:
        saved = parse_object(text)
        answers, plan = saved["state"], saved["plan"]
        if not isinstance(plan, str) or not isinstance(answers, dict):
            return None
        return state_from({name: str(answers[name]) for name in STATE_QUESTIONS}), plan
    except (ValueError, KeyError, PhoneOutputInvalid):
        return None


def _left_batches(answer: str) -> dict[str, str]:
    lines = (line.split() for line in answer.splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2 and re.fullmatch("[0-9a-f]{32}", words[0])}


def _archive(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """A tar archive in pieces. A transfer per file would cost far more than the files."""
    for name, content in files.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        entry.mode = 0o644
        yield entry.tobuf(tarfile.USTAR_FORMAT)
        yield content
        yield bytes(-len(content) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
