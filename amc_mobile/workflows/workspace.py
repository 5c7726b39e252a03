"""The workspace folder, which the Python API starts from: what was chosen last time, the latency table and the runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from amc_mobile.errors import CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.formats import BENCHMARK_MODEL, BY_RUNTIME, FLOAT32, PRECISIONS
from amc_mobile.latency.database_url import take_password
from amc_mobile.store import LATER, held, is_file_name, read_json, to_document, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amc_mobile.kernels.template import Template
    from amc_mobile.models.training import EpochReport, Epochs
    from amc_mobile.workflows.compare import Comparison
    from amc_mobile.workflows.devices import OpenedDevice
    from amc_mobile.workflows.network import Network
    from amc_mobile.workflows.profile import ProfiledLatency
    from amc_mobile.workflows.prune import CheckResult, PruneResult
    from amc_mobile.workflows.runs import Run
    from amc_mobile.workflows.search_config import Budget
    from amc_mobile.workflows.sensitivity import Sensitivity
    from amc_mobile.workflows.table import ProbeResult, ShownTable, TableResult
    from amc_mobile.workflows.training import TrainResult


WHOLE_JOB = "prune"  # the stage of `prune`: all steps together, counted in seconds


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
BUDGET, SEARCH, TRAINING, NETWORK, DEVICE, OUTPUT, ADVANCED = OPTION_PANELS = (
    "Budget", "Search", "Training", "Network", "Device", "Output", "Advanced",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """How a field of a configuration is given on the command line, and which numbers it may be.

    `help`: a name in braces, such as {policies}, lists the names of that registry. `flag`: where it is not the field's
    name. `repeatable`: the values are joined by commas. `is_argument`: given by its place.
    """

    help: str
    panel: str
    flag: str = ""
    repeatable: bool = False
    is_argument: bool = False
    least: float | None = None
    most: float | None = None


def option(default: Any, help: str, panel: str, flag: str = "", *, later: bool = False, **others: Any) -> Any:
    """A dataclass's field that is an option of commands; parameters as of Option. `later`: as LATER says."""
    return field(default=default, metadata={"option": Option(help, panel, flag, **others), **(LATER if later else {})})


def check_ranges(config: Any) -> None:
    """Raises InvalidConfig for a field of a configuration that is outside of its option's range."""
    for each in fields(config):
        value, shown = getattr(config, each.name), each.metadata.get("option")
        if value is None or shown is None:
            continue
        if (shown.least is not None and value < shown.least) or (shown.most is not None and value > shown.most):
            raise InvalidConfig(
                f"{shown.flag or '--' + each.name.replace('_', '-')} {value} is not allowed",
                next_step=f"use {shown.least} " + (f"to {shown.most:,}" if shown.most is not None else "or more"),
            )


@dataclass(frozen=True)
class Settings:
    """What a command works on. Order of precedence: flags, last step, these defaults."""

    model: str = option(
        "",
        "A name of `models`, torchvision:NAME, timm:NAME, or file.py:function: called with those of num_classes, "
        "input_size (pixels), in_channels and width_multiplier that it takes, it returns an nn.Module.",
        NETWORK,
    )
    checkpoint: str = option("", "Weights: .safetensors, or what torch.save wrote, e.g. a Lightning .ckpt.", NETWORK)
    accuracy: str = option(
        "",
        "file.py:function(outputs, labels) -> number in [0, 1], for networks that do not classify: outputs as the "
        "network returns them for a batch, labels (N, ...) as the data have them.",
        NETWORK,
    )
    loss: str = option("", "file.py:function(outputs, labels) -> mean loss of a batch, to train by.", NETWORK)
    data: str = option(  # a test holds it to the registry of sources, which loads torch
        "",
        "digits, shapes, cifar10:PATH, imagefolder:PATH, or file.py:function: returns (train, test), each (images, "
        "labels) with uint8 images (N, C, H, W) or (N, H, W, C) and labels (N,), or a torch Dataset.",
        NETWORK,
    )
    device: str = option("host", "host: this computer; or a phone's profile, e.g. pixel: see `devices`.", DEVICE)
    serial: str = option("", "Which phone, where several fit --device.", DEVICE)  # of several, separated by commas
    waive: str = option(
        "",
        "Measure in spite of a problem, e.g. HOT; BUSY: as if no other program ran. WIDE_BAND: search with a table "
        "that predicts badly. Repeatable.",
        ADVANCED, repeatable=True,
    )  # fmt: skip
    clock_mode: str = option("unlocked", "unlocked, or fixed_performance: Android's sustainable clocks.", ADVANCED)
    # Empty: tflite where it is installed.
    runtime: str = option("", "{runtimes}; the last takes .tflite files on phones and gives averages.", DEVICE)
    precision: str = FLOAT32  # of the files that are measured and exported: "float32", "int8" or "float16"
    threads: int = option(1, "Inference threads that are timed.", DEVICE, least=1, most=256)
    accelerator: str = option(
        "cpu", "cpu, or gpu: this computer's, with TFLite; an operator that it cannot run is an error.", DEVICE,
        later=True,
    )  # fmt: skip
    seed: int = option(0, "Seed of every random choice.", ADVANCED, least=0, most=(1 << 63) - 1)
    width_multiplier: float = option(
        1.0, "Width multiplier of the network, e.g. 0.5.", NETWORK, "--width", least=0, most=64
    )
    input_size: int = option(  # 0: the network's own
        0, "Input height and width in pixels. Default: the network's own, else that of the images.", NETWORK,
        least=0, most=1 << 16,
    )  # fmt: skip
    workers: int = option(  # 0: they are held in memory
        0, "Threads that decode image folders as they are used, e.g. 4.", ADVANCED, least=0, most=1024
    )
    memory_mb: int = option(
        0, "For a search's matrices, the rest goes to a file, and for refitting; e.g. 500; 0: half of what is free.",
        ADVANCED, least=0, most=1 << 30,
    )  # fmt: skip
    table: str = option(  # never with its password
        "",
        "postgresql+psycopg://USER@HOST/NAME; without: a file in the workspace. Its password: PGPASSWORD, ~/.pgpass or "
        "typed; one in the URL holds for this command and is not kept.",
        ADVANCED,
    )
    offline: bool = option(
        False, "Without the device: the table predicts, nothing is measured, no gate is passed.", DEVICE
    )
    conditions: str = option(
        "", "With --offline, where several of the table fit: a key as listed, e.g. 1a2b3c4d. Repeatable.", ADVANCED,
        repeatable=True,
    )  # fmt: skip

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
    from amc_mobile.device.phone_state import MODES, check_waivers  # here: --help needs no phone
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
    check_ranges(settings)
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
    known = {each.name: type(each.default) for each in fields(Settings)}
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
class StatusTable:
    key: str  # of the conditions, its first digits
    kernels: int
    device: str
    runtime: str
    runtime_version: str
    threads: int


@dataclass(frozen=True)
class StatusRun:
    """`short`: without the model's name. `stage`: the last step that it went through."""

    name: str
    short: str
    stage: str
    is_last: bool


@dataclass(frozen=True)
class WorkspaceStatus:
    """What the workspace remembers, its runs (the oldest first) and the next step."""

    workspace: str
    model: str
    data: str
    checkpoint: str
    device: str
    serial: str
    precision: str
    tables: tuple[StatusTable, ...]
    runs: tuple[StatusRun, ...]
    last_run: str

    @property
    def next_step(self) -> str:
        if not self.model:
            return "amc-mobile train --model MODEL --data DATA, or profile with --checkpoint FILE"
        stage = next((run.stage for run in self.runs if run.is_last), "")
        if not stage:
            return "amc-mobile search --latency-ratio 0.5" if self.tables else "amc-mobile profile"
        steps = {
            "begun": "amc-mobile search, with the flags it was begun with", "searched": "amc-mobile finetune",
            "fine-tuned": "amc-mobile export --tflite --onnx", "exported": "amc-mobile report",
        }  # fmt: skip
        return steps.get(stage, "amc-mobile search with another budget")

    def document(self) -> dict[str, Any]:
        return {**to_document(self), "next": self.next_step}

    def text(self) -> str:
        from amc_mobile.report.tables import render_rows  # --help needs no tables

        names = ("workspace", "model", "data", "checkpoint", "device", "serial", "precision")
        values = {name: getattr(self, name) for name in names}
        lines = [f"{name:<11}{value or '-'}" for name, value in values.items() if value or name != "serial"]
        lines += [
            f"table      {table.key}  {table.device}, {table.runtime} {table.runtime_version}, "
            f"{table.threads} thread{'s' if table.threads > 1 else ''}: {table.kernels} kernels"
            for table in self.tables
        ]
        rows = [(run.short, run.stage, "last" if run.is_last else "") for run in self.runs]
        parts = ["\n".join(lines), *([render_rows(["run", "stage", ""], rows)] if rows else [])]
        return "\n\n".join([*parts, f"next: {self.next_step}"])


def _stage(run: Path) -> str:
    """The last step that a run went through."""
    steps = {"report": "reported", "export": "exported", "finetune": "fine-tuned", "search": "searched"}
    return next((done for step, done in steps.items() if (run / f"{step}.json").exists()), "begun")


class Workspace:
    """A folder with the latency table and the runs, and all that can be done with them: the front door.

        import amc_mobile as amc

        space = amc.Workspace("amc-workspace")
        digits = {"width": 0.5, "input_size": 64, "data": "digits"}
        space.train("mobilenet_v1", epochs=8, **digits)
        network = space.network("mobilenet_v1", **digits)
        latency = space.profile(network, amc.open_device("host"))
        run = space.search(network, amc.Budget(latency_ratio=0.5), latency, episodes=300)
        run.finetune(epochs=10)
        files = run.export("tflite", "onnx")
        run.report()

    Everything that is measured or searched is kept in the folder, so that a script which is stopped goes on where it
    was when it is started again; the commands of `amc-mobile --workspace FOLDER` work on the same folder.
    `progress`, a parameter of all that takes long: called as `progress(stage, done, total, note)`; silent by default.
    """

    def __init__(self, folder: Path | str = "amc-workspace") -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Workspace({str(self.folder)!r})"

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

    def network(
        self,
        model: str | nn.Module,
        *,
        width: float = 1.0,
        checkpoint: Path | str = "",
        data: Any = "",
        input_size: int = 0,
        example_input: Tensor | Sequence[Any] | None = None,
        accuracy: str | Callable[..., float] = "",
        loss: str | Callable[..., Tensor] = "",
        seed: int = 0,
        workers: int = 0,
    ) -> Network:
        """A trained network with its images and its channel groups, proven to be prunable.

        `model`: a name that `amc-mobile models` lists, `torchvision:NAME`, `timm:NAME`, `file.py:function`, or a module
        of yours, which needs `example_input`: a tensor (N, C, H, W), its shape, or a tensor for each of several inputs.
        `width`: width multiplier. `checkpoint`: its weights; without, those of `train` in this workspace, else random
        ones drawn by `seed`. `data`: `digits`, `shapes`, `cifar10:PATH`, `imagefolder:PATH`, `file.py:function`, or the
        data themselves: (train, test), each a torch Dataset or a pair (images, labels) of arrays, images uint8
        (N, C, H, W) or (N, H, W, C), labels (N,); profiling needs none. `input_size`: pixels; 0: the network's own.
        `accuracy`, `loss`: (outputs, labels) -> number, of networks that do not classify. `workers`: threads that
        decode image folders as they are used; 0: the images are held in memory.

        A network that was given as a module is found again by its weights: open it in each process before its runs
        are worked on.

        Raises InvalidInput for files and data that do not fit, UnsupportedLayer naming a layer that cannot be traced.

            network = space.network(my_resnet, example_input=torch.zeros(1, 3, 32, 32), data=(train, test))
            network.groups.channels  # {"conv1": 16, "layer1": 16, ...}
        """
        from amc_mobile.workflows.network import load_network

        settings = self._network_settings(
            model, width=width, checkpoint=checkpoint, data=data, input_size=input_size, example_input=example_input,
            accuracy=accuracy, loss=loss, seed=seed, workers=workers,
        )  # fmt: skip
        return load_network(self, settings)

    def _network_settings(
        self, model: str | nn.Module, *, width: float = 1.0, checkpoint: Path | str = "", data: Any = "",
        input_size: int = 0, example_input: Any = None, accuracy: Any = "", loss: Any = "", seed: int = 0,
        workers: int = 0,
    ) -> Settings:  # fmt: skip
        model_name, data_name, of_task = _named(model, example_input, data, accuracy, loss)
        settings = Settings(
            model=model_name, data=data_name, checkpoint=str(checkpoint), width_multiplier=width,
            input_size=input_size, seed=seed, workers=workers, table=self._remembered_settings().table, **of_task,
        )  # fmt: skip
        check_settings(settings)
        return settings

    def train(
        self,
        model: str | nn.Module,
        *,
        epochs: Epochs = 30,
        learning_rate: float | None = None,
        batch_size: int = 64,
        bf16: bool = False,
        progress: Progress = silent,
        **network: Any,
    ) -> TrainResult:
        """Trains a network; `network` then opens it with the trained weights.

        `model` and `network`: as in `network`; a `checkpoint` is where the training starts. A module is left as it is,
        and opened with `network(module, checkpoint=result.checkpoint, ...)`. `epochs`: "auto" ends when the accuracy on
        held-out images stops rising. `learning_rate`: the highest; None: 0.1, of detectors 0.01. Goes on where it was
        stopped.

            space.train("mobilenet_v1", width=0.25, data="digits", epochs=10).top1  # in [0, 1], on the test images
        """
        from amc_mobile.workflows.training import train_network

        settings = self._network_settings(model, **network)
        return train_network(
            self, settings, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16,
            progress=progress,
        )  # fmt: skip

    def profile(
        self,
        network: Network,
        device: OpenedDevice | str = "host",
        *,
        precision: str = FLOAT32,
        quick: bool = False,
        table: str = "",
        progress: Progress = silent,
    ) -> ProfiledLatency:
        """Measures the kernels of a network on a device, as far as the latency table lacks them.

        `precision`: of the files that are measured: "float32", "int8" or "float16". `quick`: fewer kernels, whole
        models and passes, and a wider error band. `table`: URL of a PostgreSQL database in place of the workspace's
        file. Raises DeviceError when the device fails; what was measured until then is kept.

            latency = space.profile(network, amc.open_device("pixel"))
            latency.p50_ms(plan), latency.band  # ms, and its relative error
        """
        from amc_mobile.workflows.profile import profile_device

        settings = _on(device, network, precision=precision, table=table or network.settings.table)
        return profile_device(self, settings, network=network, quick=quick, progress=progress)

    def template(
        self,
        network: Network,
        device: OpenedDevice | str = "host",
        *,
        precision: str = FLOAT32,
        progress: Progress = silent,
    ) -> Template:
        """The exported network as a template: its file and its kernels at any plan, without an exporter.

        Exported once, with the runtime of `device`, into the workspace; nothing is measured. Raises UnsupportedLayer.

            template = space.template(network)
            template.kernels(plan.widths)  # what the latency table is asked for
        """
        from amc_mobile.workflows.profile import template_of

        return template_of(self, _on(device, network, precision=precision), network, "", progress)

    def search(
        self,
        network: Network,
        budget: Budget,
        latency: ProfiledLatency | OpenedDevice | None = None,
        *,
        episodes: int = 300,
        policy: str = "critic",
        seed: int = 0,
        name: str | None = None,
        untrained: bool = False,
        memory_mb: int = 0,
        progress: Progress = silent,
        **options: Any,
    ) -> Run:
        """Finds the most accurate plan within the budget and prunes the network by it; goes on where it was stopped.

        `latency`: what `profile` returned, or a device whose table is there already; budgets of MACs and parameters
        need none. `episodes`: plans to try. `policy`: one of `amc.POLICIES`, e.g. "ddpg", the paper's agent. `name`: of
        the run; None: made of what was asked for. `untrained`: goes on with a network that is no better than guessing.
        `memory_mb`: for the matrices, the rest goes to a file; 0: half of what is free. `options`: the other fields of
        `amc.SearchConfig`, e.g. reward, multiple, min_keep_ratio, max_loss, keep, granularity.

        Raises UnreachableBudget before the search where no plan can meet the budget, MissingLatency for a device that
        was not profiled, BudgetNotMet, InvalidConfig for options that are not allowed.

            run = space.search(network, amc.Budget(macs_ratio=0.5), policy="ddpg", seed=1)
            run.plan().kept_channels
        """
        from amc_mobile.workflows.plans import Preparations
        from amc_mobile.workflows.runs import Run
        from amc_mobile.workflows.search import search_plan
        from amc_mobile.workflows.search_config import SearchConfig

        config = SearchConfig(**asdict(budget), episodes=episodes, policy=policy, **options)
        settings = _on(latency, network, seed=seed, memory_mb=memory_mb)
        found = search_plan(
            self, settings, config, run=name, progress=progress, prepared=Preparations(network), untrained=untrained
        )
        return Run(self.runs / found.run)

    def run(self, name: str | None = None) -> Run:
        """The run of that name, or the last one. Raises InvalidConfig, listing all runs, where there is none."""
        from amc_mobile.workflows.runs import Run

        return Run(self.run_folder(name))

    def compare(
        self,
        network: Network,
        budget: Budget,
        latency: ProfiledLatency | OpenedDevice | None = None,
        *,
        policies: Sequence[str] = ("uniform", "random", "ddpg", "evolution", "critic", "dp"),
        seeds: Sequence[int] = (0, 1, 2),
        ratios: Sequence[float] = (),
        episodes: int = 300,
        finetune_epochs: int = 0,
        untrained: bool = False,
        progress: Progress = silent,
        **options: Any,
    ) -> Comparison:
        """Searches by several policies at equal numbers of plans, and writes compare.html, .json, .csv and charts.

        `ratios`: in place of the budget's own, for a front. `finetune_epochs`: of every plan; 0: none. `options`: as
        in `search`. Runs that are there already are not made again.

            print(space.compare(network, amc.Budget(macs_ratio=0.5), policies=["uniform", "critic"]).text())
        """
        from amc_mobile.workflows.compare import compare_policies
        from amc_mobile.workflows.search_config import CompareConfig, SearchConfig

        search = SearchConfig(**asdict(budget), episodes=episodes, **options)
        config = CompareConfig(search, tuple(policies), tuple(seeds), tuple(ratios), finetune_epochs)
        settings = _on(latency, network)
        return compare_policies(self, settings, config, network=network, progress=progress, untrained=untrained)

    def sensitivity(
        self,
        network: Network,
        *,
        ratios: Sequence[float] = (0.25, 0.5, 0.75),
        seed: int = 0,
        untrained: bool = False,
        progress: Progress = silent,
        **options: Any,
    ) -> Sensitivity:
        """Accuracy with one channel group cut to each of `ratios` and all others whole; writes sensitivity.html.

        `options`: the other fields of SensitivityConfig: multiple, channel_choice, calibration_images, reward_images.

            space.sensitivity(network, ratios=[0.5]).most_sensitive()
        """
        from amc_mobile.workflows.search_config import SensitivityConfig
        from amc_mobile.workflows.sensitivity import sensitivity

        config = SensitivityConfig(ratios=tuple(ratios), **options)
        settings = _on(None, network, seed=seed)
        return sensitivity(self, settings, config, network=network, progress=progress, untrained=untrained)

    def check(self, model: str | nn.Module, **network: Any) -> CheckResult:
        """What a network offers to pruning, in about ten seconds: input, groups, accuracy, exporters, ready devices.

        `network`: `data`, `checkpoint` and the other parameters of `network`, which raises the same errors.

            print(space.check("mobilenet_v1", width=0.25, data="digits").text())
        """
        from amc_mobile.workflows.prune import check_network

        return check_network(self, self._network_settings(model, **network))

    def prune(
        self,
        network: Network,
        budget: Budget,
        device: OpenedDevice | str = "host",
        *,
        epochs: Epochs = 10,
        episodes: int = 300,
        output: Path | str = "amc-pruned",
        precision: str = FLOAT32,
        quick: bool = False,
        seed: int = 0,
        name: str | None = None,
        untrained: bool = False,
        progress: Progress = silent,
        **options: Any,
    ) -> PruneResult:
        """The whole job: `profile`, `search`, `finetune`, `export` of every installed format, and `report`.

        `output`: a folder that gets the files to ship. `epochs`: of fine-tuning; 0: none; "auto" as in `train`.
        `quick`, `precision`: as in `profile`; the others as in `search`. What is done already is not done again. Raises
        as the steps do.

            result = space.prune(network, amc.Budget(latency_ratio=0.5), epochs=10)
            result.passed, result.folder, result.files
        """
        from amc_mobile.workflows.prune import prune_network
        from amc_mobile.workflows.search_config import SearchConfig

        config = SearchConfig(**asdict(budget), episodes=episodes, **options)
        settings = _on(device, network, precision=precision, seed=seed)
        return prune_network(
            self, settings, config, epochs=epochs, output=Path(output), network=network, progress=progress, quick=quick,
            run=name, untrained=untrained,
        )  # fmt: skip

    def status(self) -> WorkspaceStatus:
        """What the workspace remembers, its tables and runs, and the next step."""
        from amc_mobile.latency.table import LatencyTable
        from amc_mobile.workflows.devices import SHOWN_KEY

        settings, last = self.settings(), self.last_run
        tables = []
        if self.table_path.exists():
            with LatencyTable(self.table_path) as table:
                tables = [
                    StatusTable(
                        c.key[:SHOWN_KEY], len(table.kernels(c)), c.device, c.runtime, c.runtime_version, c.threads
                    )
                    for c in table.conditions()
                ]
        prefix = f"{safe_name(settings.model)}-"
        runs = []
        for begun in sorted(self.runs.glob(f"*/{BEGUN}"), key=lambda path: path.stat().st_mtime):
            name = begun.parent.name
            runs.append(StatusRun(name, name.removeprefix(prefix), _stage(begun.parent), name == last))
        weights = settings.checkpoint or (str(self.trained_checkpoint) if self.trained_checkpoint.exists() else "")
        return WorkspaceStatus(
            str(self.folder), settings.model, settings.data, weights, settings.device, settings.serial,
            settings.precision, tuple(tables), tuple(runs), last,
        )  # fmt: skip

    def table(self) -> ShownTable:
        """What the latency table holds: `entries`, each of one set of conditions with its kernels, slowest first."""
        from amc_mobile.workflows.table import show_table

        return show_table(self)

    def export_table(self, path: Path | str) -> TableResult:
        """Writes the latency table as a `.jsonl` bundle, which `import_table` takes, or as `.csv` for reading."""
        from amc_mobile.workflows.table import export_table

        return export_table(self, Path(path))

    def import_table(self, path: Path | str) -> TableResult:
        """Adds a bundle to the latency table. Other conditions stay apart."""
        from amc_mobile.workflows.table import import_table

        return import_table(self, Path(path))

    def import_csv(
        self,
        path: Path | str,
        *,
        device: str,
        kernel: Sequence[str] = ("kernel",),
        ms: str = "ms",
        run: str | None = None,
        shape: Mapping[str, str] | None = None,
        network: str | None = None,
        soc: str | None = None,
        runtime: str | None = None,
        threads: int | None = None,
    ) -> TableResult:
        """Adds the table of another tool, one kernel per line: `kernel`, `ms`, `run` and `network` name its columns.

        `shape`: FIELD -> column of operator, in_channels, out_channels, out_size, stride, window; with it a search can
        use the table without the device. `network`: says which whole model a kernel is part of.
        """
        from amc_mobile.workflows.table import import_csv

        return import_csv(
            self, Path(path), device=device, kernel=kernel, ms=ms, run=run, shape=shape or {}, network=network, soc=soc,
            runtime=runtime, threads=threads,
        )  # fmt: skip

    def merge_table(self, other: Path | str) -> TableResult:
        """Adds the table.sqlite of another workspace."""
        from amc_mobile.workflows.table import merge_table

        return merge_table(self, Path(other))

    def verify_table(
        self, network: Network, device: OpenedDevice | str = "host", *, progress: Progress = silent
    ) -> TableResult:
        """Measures eight kernels again. Raises AmcMobileError when they no longer agree with the table."""
        from amc_mobile.workflows.table import verify_table

        return verify_table(self, _on(device, network), network=network, progress=progress)

    def adopt_table(
        self, network: Network, device: OpenedDevice | str = "host", *, progress: Progress = silent
    ) -> TableResult:
        """After an update of the system or runtime: takes the old kernels over where eight of them still agree."""
        from amc_mobile.workflows.table import adopt_table

        return adopt_table(self, _on(device, network), network=network, progress=progress)

    def probe(
        self, network: Network, device: OpenedDevice | str = "host", *, progress: Progress = silent
    ) -> ProbeResult:
        """Measures which multiples of channels the device prefers; a search then keeps such multiples."""
        from amc_mobile.workflows.table import probe_device

        return probe_device(self, _on(device, network), network=network, progress=progress)

    def plot_kernel(
        self,
        network: Network,
        kernel: str,
        path: Path | str = "kernel.svg",
        device: OpenedDevice | str = "host",
        *,
        progress: Progress = silent,
    ) -> TableResult:
        """Draws a kernel's latency over its channels: measured points and prediction. `kernel`: a layer's path."""
        from amc_mobile.workflows.table import plot_kernel

        return plot_kernel(self, _on(device, network), kernel, Path(path), network=network, progress=progress)


def _on(device: ProfiledLatency | OpenedDevice | str | None, network: Network, **changed: Any) -> Settings:
    """The settings of a step on a network and a device; None: a step that measures nothing."""
    known = network.settings
    if device is not None:
        if isinstance(device, str):
            from amc_mobile.workflows.devices import open_device

            device = open_device(device)
        of_device = asdict(device.settings)
        names = (
            "device", "serial", "waive", "clock_mode", "runtime", "precision", "threads", "accelerator", "offline",
            "conditions",
        )  # fmt: skip
        known = replace(known, **{name: of_device[name] for name in names})
    settings = replace(known, **changed)
    check_settings(settings)
    return settings


def _named(
    model: str | nn.Module, example_input: Any, data: Any, accuracy: Any, loss: Any
) -> tuple[str, str, dict[str, Any]]:
    """Objects by the names that every later step finds them by; what is a name already stays."""
    from amc_mobile.data.sources import name_data
    from amc_mobile.models.loading import name_module
    from amc_mobile.models.task import OwnTask

    data_name = data if isinstance(data, str) else name_data(data)
    if isinstance(model, str):
        return model, data_name, {"accuracy": accuracy, "loss": loss}
    if example_input is None:
        raise InvalidConfig("a module needs an example input", next_step="pass example_input=torch.zeros(1, 3, 32, 32)")
    task = OwnTask(accuracy, loss or None) if accuracy else None
    return name_module(model, example_input, task=task), data_name, {}
