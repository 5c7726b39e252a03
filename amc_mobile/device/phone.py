"""A phone that runs batches of models: with a runner, a runtime library and the models that are copied there once."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.adb_shell import quote
from amc_mobile.device.batch_scripts import (
    FOLDER,
    MANIFEST,
    MODELS,
    PATIENCE,
    PLAN,
    REMOVE_ALL,
    TRASH,
    keep_installed,
    remove_batches,
    remove_unusable_batches,
)
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.neighbours import LOOK, LOOK_BACK
from amc_mobile.device.phone_batch import PhoneBatch
from amc_mobile.device.phone_facts import (
    NEIGHBOURS,
    STATE_QUESTIONS,
    PhoneState,
    answers_in,
    ask,
    asking,
    state_from,
)
from amc_mobile.device.phone_output import parse_free_bytes
from amc_mobile.errors import InvalidInput, PhoneDiskFull, PhoneOutputInvalid
from amc_mobile.store import parse_object

KEEP_BYTES = 512 << 20  # of models on the phone
CLEAN_TIMEOUT_S = 60.0  # of gigabytes on an old phone
SPARE_BYTES = 32 << 20  # left free on the phone; Android misbehaves on a full disk
END_GRACE_S = 30.0  # the runner ends itself at its deadline; this is how late it may be
FREE_VALID_S = 60.0  # the free space is asked again after this long, or when what is left of it would not do
FREE = {"free": f"[ -d {FOLDER} ] || mkdir -p {FOLDER}; df -k {FOLDER}"}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST = 16  # characters at the start of a batch's token that tell what it measures


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
    text = adb.shell(REMOVE_ALL, what="removing amc-mobile's files from the phone", timeout_s=CLEAN_TIMEOUT_S).text
    kib = text.split()[:1]
    if not kib or not re.fullmatch(r"\d{1,15}", kib[0], re.ASCII):
        raise PhoneOutputInvalid("size of our files (du)", repr(text[:80]))
    return int(kib[0]) * 1024


class PhoneRunner:
    """Runs batches on a phone with one runner and one runtime library.

    Everything goes to a folder of ours on the phone. `open` before use; CLEAN_UP of `batch_scripts` ends it.
    """

    def __init__(self, adb: AdbPhone, runner: InstalledFile, library: InstalledFile) -> None:
        for file in (runner, library):
            if not _FILE_NAME.fullmatch(file.path.name):
                raise InvalidInput(f"{file.path}: the file's name has characters no phone should see")
        self.adb = adb
        self.library_path = f"../{library.remote}"  # for manifests: relative to the folder of a batch
        self.end_grace_s = END_GRACE_S
        self._runner = runner
        self._installed = (runner, library)
        self._sizes: dict[str, int] = {}  # of the models on the phone, by name
        self._new: dict[str, bytes] = {}  # models that the next batch brings along
        self._free_bytes = 0  # as last asked, less what was copied since
        self._free_asked_s = 0.0
        self._batch: PhoneBatch | None = None
        self._left: dict[str, str] = {}  # batches of earlier processes that can be taken over: token -> boot id
        self._obsolete: list[str] = []  # folders of batches that came to their end
        self._began: dict[str, PhoneState] = {}  # the phone's state when the sessions of some of these began
        self.taken_over: PhoneState | None = None  # the same of the running batch, where another process started it
        self._state: Mapping[str, str] = {}  # answers to STATE_QUESTIONS when the session began

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
        manifest: str,
        *,
        deadline_s: float,
        plan: str = "",
        waiting_for: Callable[[], str] = lambda: "a result",
        patience_s: float = math.inf,
    ) -> Iterator[str]:
        """Runs one batch and yields the runner's result lines as they come, the end line included.

        `deadline_s`: the runner's own, of the manifest. `plan`: what a later process needs to go on with the batch if
        this one is killed. `waiting_for`: the model whose result is due, for people. `patience_s`: a runner that gives
        no result for so long hangs, and is ended. Closing the iterator ends the runner. Raises RunnerFailed with the
        end of its log when it ended without an end line, PhoneRebooted after the last line that was written before,
        DeadlineExceeded, PhoneDiskFull, DeviceDisconnected when the phone does not come back.
        """
        digest = hashlib.sha256(f"{self._runner.sha256}\n{manifest}".encode()).hexdigest()[:_DIGEST]
        same = [token for token in self._began if token.startswith(digest)]
        token = same[0] if same else digest + secrets.token_hex(8)
        self.taken_over = self._began.get(token)
        # The first question comes before the others put the phone to work.
        at_end = {NEIGHBOURS: LOOK_BACK, **STATE_QUESTIONS}
        self._batch = batch = PhoneBatch(self.adb, token, at_end, self._left.get(token, ""))
        try:
            self._remove_left(all_but=token)
            if not same:
                files = {f"{MODELS}/{name}": model for name, model in self._new.items()}
                if plan:
                    files[f"{batch.folder}/{PLAN}"] = json.dumps({"plan": plan, "state": self._state}).encode()
                if patience_s < math.inf:
                    files[f"{batch.folder}/{PATIENCE}"] = f"{math.ceil(patience_s)}\n".encode()
                files[f"{batch.folder}/{MANIFEST}"] = manifest.encode()
                size = sum(len(content) + 2 * tarfile.BLOCKSIZE for content in files.values())
                self._require_space(size)
                batch.start(self._runner.remote, partial(_archive, files), self._obsolete)
                self._free_bytes -= size
                self._obsolete.clear()
            self._sizes |= {name: len(model) for name, model in self._new.items()}
            self._new.clear()
            deadline = Deadline("the batch on the phone", deadline_s + self.end_grace_s)
            yield from batch.lines(deadline, waiting_for, patience_s)
        finally:
            if batch.is_done:  # what removes it comes with the next question
                self._obsolete.append(batch.folder)
            else:
                batch.remove()

    def _remove_left(self, all_but: str) -> None:
        others = [f"batch-{token}" for token in self._left if token != all_but]
        if others:
            clean = remove_batches(" ".join(others)) + ("" if all_but in self._left else f"rm -rf {MODELS}")
            self.adb.shell(clean, what="removing old batches from the phone")
        self._left.clear()
        self._began.clear()

    def take_state_at_end(self) -> PhoneState | None:
        """The phone's state when the last batch ended, once; None where that is not known."""
        batch, self._batch = self._batch, None
        return state_from(batch.answers) if batch and batch.answers else None

    def _see_free_space(self, answers: Mapping[str, str]) -> None:
        self._free_bytes = parse_free_bytes(answers["free"])
        self._free_asked_s = time.monotonic()

    def _require_space(self, size: int) -> None:
        if self._free_bytes < size + SPARE_BYTES or time.monotonic() - self._free_asked_s > FREE_VALID_S:
            self._see_free_space(ask(self.adb, FREE, what="looking for free space on the phone"))
        if self._free_bytes < size + SPARE_BYTES:
            raise PhoneDiskFull(self._free_bytes, f"{(size + SPARE_BYTES) >> 20} MiB are needed")


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
