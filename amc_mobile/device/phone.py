"""A phone that runs batches of models: with a runner, a runtime library and the models that are copied there once."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.adb_shell import quote
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_batch import CLEAN_TIMEOUT_S, FOLDER, MANIFEST, PhoneBatch, remove_batches
from amc_mobile.device.phone_facts import STATE_QUESTIONS, PhoneState, ask, state_from
from amc_mobile.device.phone_output import parse_free_bytes
from amc_mobile.errors import InvalidInput, PhoneDiskFull

MODELS = "models"
KEEP_BYTES = 512 << 20  # of models on the phone
SPARE_BYTES = 32 << 20  # left free on the phone; Android misbehaves on a full disk
END_GRACE_S = 30.0  # the runner ends itself at its deadline; this is how late it may be
FREE_VALID_S = 60.0  # the free space is asked again after this long, or when what is left of it would not do
FREE = {"free": f"mkdir -p {FOLDER} && df -k {FOLDER}"}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CLEAN_SCRIPT = remove_batches("batch-*") + f"rm -rf {MODELS} *.tar"


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

    Everything goes to a folder of ours on the phone. `open` before use, `close` after it.
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

    def open(self) -> PhoneState:
        """Ends and removes what earlier processes left on the phone, then copies runner and library where missing.

        Returns the phone's state, asked in the same breath.
        """
        remotes = " ".join(quote(file.remote) for file in self._installed)
        sizes = f"cd {FOLDER} && for file in {remotes}; do [ -f $file ] && wc -c <$file || echo 0; done"
        questions = {"clean": _CLEAN_SCRIPT, **FREE, "sizes": sizes, **STATE_QUESTIONS}
        answers = ask(self.adb, questions, what="looking at what is on the phone")
        self._sizes.clear()
        self._new.clear()
        self._see_free_space(answers)
        for file, size in zip_longest(self._installed, answers["sizes"].split()[: len(self._installed)]):
            if size != str(file.path.stat().st_size):
                self._require_space(file.path.stat().st_size)
                self._free_bytes -= self.adb.push(file.path, f"{FOLDER}/{file.remote}", mode=0o755)
        return state_from(answers)

    def close(self) -> None:
        """Removes all but runner and library."""
        self.adb.shell(_CLEAN_SCRIPT, what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
        self._sizes.clear()

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

    def run(self, manifest: str, *, deadline_s: float) -> Iterator[str]:
        """Runs one batch and yields the runner's result lines as they come, the end line included.

        `deadline_s`: the runner's own, of the manifest. Closing the iterator ends the runner. Raises RunnerFailed with
        the end of its log when it ended without an end line, PhoneRebooted after the last line that was written before,
        DeadlineExceeded, PhoneDiskFull, DeviceDisconnected when the phone does not come back.
        """
        token = secrets.token_hex(8)
        self._batch = batch = PhoneBatch(self.adb, token, STATE_QUESTIONS)
        archive = f"batch-{token}.tar"
        try:
            models = {f"{MODELS}/{name}": model for name, model in self._new.items()}
            self._send(archive, {**models, f"{batch.folder}/{MANIFEST}": manifest.encode()})
            batch.start(self._runner.remote, archive)
            self._sizes |= {name: len(model) for name, model in self._new.items()}
            self._new.clear()
            yield from batch.lines(Deadline("the batch on the phone", deadline_s + self.end_grace_s))
        finally:
            if not batch.is_done:  # else its folder stays until the session ends, which saves a question
                batch.remove()

    def take_state_at_end(self) -> PhoneState | None:
        """The phone's state when the last batch ended, once; None where that is not known."""
        batch, self._batch = self._batch, None
        return state_from(batch.answers) if batch and batch.answers else None

    def _send(self, name: str, files: Mapping[str, bytes]) -> None:
        """A transfer per file would cost far more than the files."""
        with tempfile.TemporaryDirectory(prefix="amc-batch-") as folder:
            archive = Path(folder) / name
            _write_archive(archive, files)
            self._require_space(2 * archive.stat().st_size)  # the archive and what comes out of it
            self._free_bytes -= self.adb.push(archive, f"{FOLDER}/{name}")

    def _see_free_space(self, answers: Mapping[str, str]) -> None:
        self._free_bytes = parse_free_bytes(answers["free"])
        self._free_asked_s = time.monotonic()

    def _require_space(self, size: int) -> None:
        if self._free_bytes < size + SPARE_BYTES or time.monotonic() - self._free_asked_s > FREE_VALID_S:
            self._see_free_space(ask(self.adb, FREE, what="looking for free space on the phone"))
        if self._free_bytes < size + SPARE_BYTES:
            raise PhoneDiskFull(
                f"the phone has {self._free_bytes >> 20} MiB free; {(size + SPARE_BYTES) >> 20} MiB are needed",
                next_step="free some space on the phone, then run the same command again",
            )


def _write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
