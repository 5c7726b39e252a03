"""A phone that runs batches of models: with a runner, a runtime library and the models that are copied there once."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.deadline import Deadline
from amc_mobile.device.phone_batch import CLEAN_TIMEOUT_S, FOLDER, PhoneBatch, remove_batches
from amc_mobile.device.phone_output import parse_free_bytes
from amc_mobile.errors import InvalidInput, PhoneDiskFull

MODELS = f"{FOLDER}/models"
KEEP_BYTES = 512 << 20  # of models on the phone
SPARE_BYTES = 32 << 20  # left free on the phone; Android misbehaves on a full disk
END_GRACE_S = 30.0  # the runner ends itself at its deadline; this is how late it may be
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CLEAN_SCRIPT = remove_batches("batch-*") + "rm -rf models"


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

    def open(self) -> None:
        """Ends and removes what earlier processes left on the phone, then copies runner and library where missing."""
        self.adb.shell(_CLEAN_SCRIPT, what="removing old batches from the phone")
        self._sizes.clear()
        for file in self._installed:
            remote = f"{FOLDER}/{file.remote}"
            if self.adb.stat(remote).size_bytes != file.path.stat().st_size:
                self._require_space(file.path.stat().st_size)
                self.adb.push(file.path, remote, mode=0o755)

    def close(self) -> None:
        """Removes all but runner and library."""
        self.adb.shell(_CLEAN_SCRIPT, what="cleaning up on the phone", timeout_s=CLEAN_TIMEOUT_S)
        self._sizes.clear()

    def keep(self, models: Iterable[bytes]) -> list[str]:
        """The models' paths for manifests, in order; those that are not on the phone yet are copied in one archive.

        They stay there for later batches, up to KEEP_BYTES together. Raises PhoneDiskFull.
        """
        names = []
        new: dict[str, bytes] = {}
        for model in models:
            name = f"model-{hashlib.sha256(model).hexdigest()[:24]}"
            names.append(name)
            if name not in self._sizes:
                new[name] = model
        if sum(self._sizes.values()) + sum(map(len, new.values())) > KEEP_BYTES and self._sizes:
            self.adb.shell(f"rm -rf {MODELS}", what="making room for models on the phone")
            self._sizes.clear()
            return self.keep(models if isinstance(models, Sequence) else tuple(models))
        if new:
            self._copy(new)
            self._sizes |= {name: len(model) for name, model in new.items()}
        return [f"../models/{name}" for name in names]

    def _copy(self, models: Mapping[str, bytes]) -> None:
        """A transfer per file would cost far more than the files."""
        with tempfile.TemporaryDirectory(prefix="amc-models-") as folder:
            archive = Path(folder) / "models.tar"
            _write_archive(archive, models)
            self._require_space(2 * archive.stat().st_size)  # the archive and what comes out of it
            self.adb.push(archive, f"{MODELS}/models.tar")
        self.adb.shell(f"cd {MODELS} && tar xf models.tar && rm models.tar", what="unpacking models on the phone")

    def run(self, manifest: str, *, deadline_s: float) -> Iterator[str]:
        """Runs one batch and yields the runner's result lines as they come, the end line included.

        `deadline_s`: the runner's own, of the manifest. Closing the iterator ends the runner. Raises RunnerFailed with
        the end of its log when it ended without an end line, PhoneRebooted after the last line that was written before,
        DeadlineExceeded, DeviceDisconnected when the phone does not come back.
        """
        batch = PhoneBatch(self.adb, secrets.token_hex(8))
        try:
            batch.send(manifest)
            batch.start(self._runner.remote)
            yield from batch.lines(Deadline("the batch on the phone", deadline_s + self.end_grace_s))
        finally:
            batch.remove()

    def _require_space(self, size: int) -> None:
        output = self.adb.shell(f"mkdir -p {FOLDER} && df -k {FOLDER}", what="looking for free space on the phone")
        free = parse_free_bytes(output.text)
        if free < size + SPARE_BYTES:
            raise PhoneDiskFull(
                f"the phone has {free >> 20} MiB free; {(size + SPARE_BYTES) >> 20} MiB are needed",
                next_step="free some space on the phone, then run the same command again",
            )


def _write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
