"""The workspace folder: what was chosen last time, the latency table, the templates and the runs."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from amc_mobile.errors import CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.formats import BENCHMARK_MODEL, BY_RUNTIME, FLOAT32, PRECISIONS
from amc_mobile.latency.database_url import take_password
from amc_mobile.store import held, is_file_name, read_json, write_json

if TYPE_CHECKING:
    from amc_mobile.models.training import EpochReport


class Progress(Protocol):
    """Called with a stage, how much of it is done, its total (0: unknown) and a short note."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Reports nothing."""


@dataclass
class TrainingProgress:
    """Reports every step of a training of several epochs, with what the last epoch gave."""

    progress: Progress
    stage: str
    metric: str  # what the accuracies are
    note: str  # until the first epoch is done
    steps: int = 0  # of all epochs

    def on_step(self, done: int, steps: int) -> None:
        self.steps = steps
        if done < steps:  # the last epoch reports the last step
            self.progress(self.stage, done, steps, self.note)

    def on_epoch(self, report: EpochReport) -> None:
        parts = [f"epoch {report.epoch}/{report.epochs}: loss {report.train_loss:.3f}"]
        if report.validation_top1 is not None:
            parts.append(f"held-out {self.metric} {report.validation_top1:.1%}")
        elif report.train_top1 is not None:
            parts.append(f"{self.metric} {report.train_top1:.1%}")
        self.note = ", ".join(parts)
        if report.epoch == report.epochs:
            self.progress(self.stage, self.steps, self.steps, self.note)


FORMAT_VERSION = 1  # 1: settings, last_run, checkpoint
RUNTIMES = (*BY_RUNTIME, BENCHMARK_MODEL)  # the last runs .tflite files on phones
LIMITS = (
    ("threads", 1, 256), ("width_multiplier", 0, 64), ("input_size", 0, 1 << 16), ("workers", 0, 1024),
    ("memory_mb", 0, 1 << 30), ("seed", 0, (1 << 63) - 1),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a command works on. Order of precedence: flags, last step, these defaults."""

    model: str = ""
    checkpoint: str = ""
    accuracy: str = ""  # file.py:function of outputs and labels, in place of the network's own task
    loss: str = ""  # likewise, to train by
    data: str = ""
    device: str = "host"  # a profile's name
    serial: str = ""  # of the phone, where several fit the device; of several that share a profile, separated by commas
    waive: str = ""  # names of a phone's problems that do not matter, separated by commas
    clock_mode: str = "unlocked"  # "fixed_performance": Android's sustainable clocks, steadier and slower
    runtime: str = ""  # one of RUNTIMES; empty: tflite where it is installed
    precision: str = FLOAT32  # of the files that are measured and exported: "float32", "int8" or "float16"
    threads: int = 1
    seed: int = 0
    width_multiplier: float = 1.0
    input_size: int = 0  # pixels; 0: the model's own
    workers: int = 0  # threads that decode image folders as they are used; 0: they are held in memory
    memory_mb: int = 0  # for the matrices of a search, the rest goes to a file; 0: half of what is free
    table: str = ""  # URL of a PostgreSQL database, never with its password; empty: a file in the workspace
    offline: bool = False  # the table alone tells latencies; the device is never opened
    conditions: str = ""  # offline, where several fit: first digits of their keys, separated by commas

    def __post_init__(self) -> None:
        # What is in here is saved and shown.
        object.__setattr__(self, "table", take_password(self.table))

    @property
    def waived(self) -> tuple[str, ...]:
        return tuple(name for name in self.waive.replace(" ", "").split(",") if name)

    @property
    def memory_bytes(self) -> int | None:
        return self.memory_mb * 2**20 or None

    @property
    def serials(self) -> tuple[str, ...]:
        return tuple(serial for serial in self.serial.replace(" ", "").split(",") if serial)

    def required(self, key: str) -> str:
        value = str(getattr(self, key))
        if not value:
            raise InvalidConfig(
                f"no --{key} was given and this workspace does not remember one",
                next_step=f"pass --{key}; `amc-mobile models` lists the networks"
                if key == "model"
                else f"pass --{key}",
            )
        return value


def check_settings(settings: Settings) -> None:
    """Raises InvalidConfig for values that cannot be."""
    from amc_mobile.device.clock_mode import MODES  # here: --help needs no phone
    from amc_mobile.device.phone_state import check_waivers
    from amc_mobile.device.profiles import load_profiles, profile_named, profiles_folder

    if settings.runtime not in ("", *RUNTIMES):
        raise InvalidConfig(f"runtime {settings.runtime!r} is unknown", next_step=f"use one of {', '.join(RUNTIMES)}")
    if settings.precision not in PRECISIONS:
        raise InvalidConfig(
            f"precision {settings.precision!r} is unknown", next_step=f"use one of {', '.join(PRECISIONS)}"
        )
    if not settings.offline:  # a table may name a device that no profile describes
        profile_named(load_profiles(profiles_folder()), settings.device)
    check_waivers(settings.waived)
    if settings.clock_mode not in MODES:
        raise InvalidConfig(f"clock mode {settings.clock_mode!r} is unknown", next_step=f"use {' or '.join(MODES)}")
    for key, lowest, highest in LIMITS:
        value = getattr(settings, key)
        if not lowest <= value <= highest:
            raise InvalidConfig(f"{key} {value} is not allowed", next_step=f"use {lowest} to {highest:,}")
    if settings.width_multiplier <= 0:
        raise InvalidConfig("a width multiplier of 0 leaves no channels", next_step="use, for example, 0.5")


def settings_from_document(path: Path, document: Any) -> Settings:
    """Settings as they were saved in a file. Raises CorruptFile."""
    if not isinstance(document, dict):
        raise CorruptFile(path, "its settings are no object", next_step="delete the file")
    try:
        _check_types(document)
    except InvalidConfig as error:
        raise CorruptFile(path, error.message, next_step="delete the file") from error
    return Settings(**document)


def _check_types(document: dict[str, Any]) -> None:
    known = {field.name: type(field.default) for field in fields(Settings)}
    for key, value in document.items():
        if key not in known:
            raise InvalidConfig(f"unknown key {key!r}", next_step=f"known keys: {', '.join(known)}")
        if type(value) is not known[key] and not (known[key] is float and type(value) is int):
            raise InvalidConfig(
                f"{key} = {str(value)[:60]!r} is not of type {known[key].__name__}", next_step="correct that value"
            )


def safe_name(text: str) -> str:
    """`text` as a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


BEGUN = "settings.json"  # of a run's folder; a search that no plan can satisfy ends before it is written


@dataclass(frozen=True)
class Workspace:
    """Paths of one workspace and what it remembers between commands."""

    folder: Path

    @property
    def table_path(self) -> Path:
        return self.folder / "table.sqlite"

    def table_location(self, settings: Settings | None = None) -> Path | str:
        """Where the latency table lies: of `settings`, else as the last step remembered it."""
        return (settings.table if settings is not None else self._remembered_settings().table) or self.table_path

    @property
    def templates(self) -> Path:
        return self.folder / "templates"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def trained_checkpoint(self) -> Path:
        return self.folder / "trained.safetensors"

    @property
    def trained_record(self) -> Path:
        """What `train` says of its weights: which images it left out, and the checkpoint it began with."""
        return self.folder / "trained.json"

    def _remembered(self) -> dict[str, Any]:
        path = self.folder / "workspace.json"
        return read_json(path, format_version=FORMAT_VERSION) if path.exists() else {}

    def _remembered_settings(self) -> Settings:
        return settings_from_document(self.folder / "workspace.json", self._remembered().get("settings", {}))

    def settings(self, **flags: Any) -> Settings:
        """The remembered settings with the flags that are not None on top."""
        remembered = asdict(self._remembered_settings())
        chosen = {key: value for key, value in flags.items() if value is not None}
        # To be without the device is asked for each time: a measurement must not be left out by memory.
        remembered = {k: v for k, v in remembered.items() if k not in ("offline", "conditions")}
        if chosen.get("model", remembered.get("model")) != remembered.get("model"):
            # Another network: its weights and size are not the remembered ones.
            of_network = ("checkpoint", "width_multiplier", "input_size", "accuracy", "loss")
            remembered = {k: v for k, v in remembered.items() if k not in of_network}
        if chosen.get("device", remembered.get("device")) != remembered.get("device"):
            # Another device: the phone, its problems and its runtime are not the remembered ones.
            remembered = {k: v for k, v in remembered.items() if k not in ("serial", "waive", "clock_mode", "runtime")}
        settings = replace(Settings(), **{**remembered, **chosen})
        check_settings(settings)
        return settings

    def remember(self, settings: Settings, *, run: str | None = None) -> None:
        last_run = run if run is not None else self._remembered().get("last_run", "")
        write_json(
            self.folder / "workspace.json",
            {"settings": asdict(settings), "last_run": last_run},
            format_version=FORMAT_VERSION,
        )

    def working_on(self, run: str) -> AbstractContextManager[None]:
        """Keeps other commands from changing the run. Raises InvalidInput naming the process that works on it."""
        return held(
            self.runs / f".{run}.lock",
            lambda holder: InvalidInput(
                f"run {run} is in use by {holder}",
                next_step="wait for it to finish, or pass another name with --run",
            ),
        )

    def writing(self, command: str) -> AbstractContextManager[None]:
        """Keeps another call of `command` from writing the same files. Raises InvalidInput naming its process."""
        return held(
            self.folder / f".{command}.lock",
            lambda holder: InvalidInput(
                f"`amc-mobile {command}` is at work in {self.folder} already: {holder}",
                next_step="wait for it to finish, or pass another --workspace",
            ),
        )

    @property
    def last_run(self) -> str:
        """The name of the run that was worked on last; empty where there is none."""
        return str(self._remembered().get("last_run", ""))

    def run_folder(self, name: str | None) -> Path:
        """The folder of the named run, or of the last one. Raises InvalidConfig when there is none.

        `name`: may leave out the model's name before it, as `status` does.
        """
        chosen = name or self.last_run
        if name and is_file_name(name) and not (self.runs / name / BEGUN).exists():
            longer = [
                path.parent.name for path in self.runs.glob(f"*/{BEGUN}") if path.parent.name.endswith(f"-{name}")
            ]
            chosen = longer[0] if len(longer) == 1 else name
        folder = self.runs / chosen
        if not is_file_name(chosen) or not (folder / BEGUN).exists():
            known = sorted(path.parent.name for path in self.runs.glob(f"*/{BEGUN}"))
            missing = f"no run {chosen!r} in {self.runs}" if chosen else f"no run yet in {self.runs}"
            raise InvalidConfig(
                f"{self.folder} remembers no last run" if known and not chosen else missing,
                next_step=f"pass --run with one of: {', '.join(known)}" if known else "run `amc-mobile search` first",
            )
        return folder
