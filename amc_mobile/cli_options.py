"""What commands share: their options, one by one and in groups, the --config file, progress and results.

A key is a flag's name with _ for -, or for a flag without a value of its own true or false. One file serves all
commands: each takes the keys of its own flags. What is typed on the command line comes first.

`expand_groups` shows Typer the single flags in its place.
"""

from __future__ import annotations

import getpass
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from amc_mobile.device.phone_output import visible
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.store import read_toml, write_text
from amc_mobile.workflows.workspace import RUNTIMES, WHOLE_JOB, Progress, Settings, Workspace, silent

# Panels of the help, in their order.
COMMAND_PANELS = MAIN_JOB, DEVICES, TABLES, RESEARCH = "Main job", "Devices", "Tables", "Research"
OPTION_PANELS = ("Options", "Budget", "Search", "Training", "Network", "Device", "Output", "Advanced")
budget_option, search_option, training_option, network_option, device_option, output_option, advanced_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in OPTION_PANELS[1:]
)

# What a help text in braces stands for: read from its registry when the help is shown, as NumPy takes long to load.
REGISTRIES = {
    "{policies}": ("amc_mobile.search.policy", "POLICIES"),
    "{rewards}": ("amc_mobile.search.reward", "REWARDS"),
    "{channel_choices}": ("amc_mobile.channels.plan", "CHANNEL_CHOICES"),
    "{granularities}": ("amc_mobile.workflows.search_config", "GRANULARITIES"),
}


def help_text(text: str) -> str:
    """`text` with the names that its braces stand for."""
    for braces in filter(text.__contains__, REGISTRIES):
        text = text.replace(braces, ", ".join(_names(braces)))
    return text


def _names(braces: str) -> tuple[str, ...]:
    module, name = REGISTRIES[braces]
    return tuple(getattr(import_module(module), name))


def completed(braces: str) -> Callable[[str], list[str]]:
    """For `autocompletion`: the names of a registry that begin as typed."""
    return lambda incomplete: [name for name in _names(braces) if name.startswith(incomplete)]


def completed_device(incomplete: str) -> list[str]:
    """The names of device profiles that begin as typed."""
    from amc_mobile.device.profiles import load_profiles, profiles_folder

    return [name for name in load_profiles(profiles_folder()) if name.startswith(incomplete)]


def completed_runtime(incomplete: str) -> list[str]:
    """The runtimes that begin as typed."""
    return [name for name in RUNTIMES if name.startswith(incomplete)]


class PanelCommand(TyperCommand):
    """Its help has the options in panels, as plain text: Rich's own panels would double the time that help takes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for flag in self.get_params(ctx):
            if (record := flag.get_help_record(ctx)) is not None:
                usual = "Arguments" if flag.param_type_name == "argument" else "Options"
                panel = "Output" if flag.name == "help" else getattr(flag, "rich_help_panel", None) or usual
                panels.setdefault(panel, []).append((record[0], help_text(record[1])))
        for panel in ("Arguments", *OPTION_PANELS):
            if panel in panels:
                with formatter.section(panel):
                    formatter.write_dl(panels[panel])


class PanelGroup(TyperGroup):
    """Its help has the commands in panels."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(str(panel), []).append((name, command.get_short_help_str(width)))
        for panel in (*COMMAND_PANELS, "Commands"):
            if panel in panels:
                with formatter.section(panel):
                    formatter.write_dl(panels[panel])


class CommandLine(typer.Typer):
    """A group of commands with panels in its help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=PanelGroup, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=PanelCommand, **settings)


NAMES_OF_KINDS = {"integer": int, "float": float, "boolean": bool}  # as older versions of Typer have them
NOT_IN_FILES = ("config", "help", "json", "run")  # `run` names one run, which no second command should share
PRECISION = {"int8": "int8", "float16": "fp16", "float32": "fp32"}  # of files of earlier versions: precision = "int8"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """The callback of `--config`, called before the other flags are read. Raises InvalidConfig."""
    if path is not None:
        context.default_map = flags_from(path, context)
    return path


def flags_from(path: Path, context: typer.Context) -> dict[str, Any]:
    """The values for the flags of the command at work. Raises InvalidConfig for what no command takes."""
    document = read_toml(path)
    if (precision := document.pop("precision", None)) is not None:
        if precision not in list(PRECISION):
            raise InvalidConfig(f"{path}: precision = {precision!r} is unknown", next_step="write int8 = true")
        document.setdefault(PRECISION[precision], True)
    own = dict(_keys(context.command))
    known = {key: flag for command in commands(context) for key, flag in _keys(command)}
    found = {}
    for key, value in document.items():
        flag = own.get(key) or known.get(key)
        if flag is None:
            raise InvalidConfig(f"{path}: unknown key {key!r}", next_step=f"known keys: {', '.join(sorted(known))}")
        checked = _checked(path, key, value, flag)
        if key in own:
            found[str(flag.name)] = checked
    return found


def commands(context: typer.Context) -> Iterator[Any]:
    """Every command that takes a configuration."""
    inner = [context.find_root().command]
    while inner:
        command = inner.pop(0)
        inner += getattr(command, "commands", {}).values()
        if any(flag.name == "config" for flag in command.params):
            yield command


def _keys(command: Any) -> Iterator[tuple[str, Any]]:
    for flag in command.params:
        longest = max(flag.opts, key=len)
        key = longest.removeprefix("--").replace("-", "_")
        if key not in NOT_IN_FILES:
            yield key, flag
            if flag.name != key:
                yield str(flag.name), flag  # of files of earlier versions: width_multiplier


def _checked(path: Path, key: str, value: Any, flag: Any) -> Any:
    if flag.multiple:
        values = value if isinstance(value, list) else [one for one in str(value).split(",") if one]
        if not all(isinstance(one, str) for one in values):
            raise InvalidConfig(f"{path}: {key} = {value!r} is no list of texts", next_step=f'{key} = ["A", "B"]')
        return values
    kind = _kind(flag)
    if type(value) is not kind and not (kind is float and type(value) is int):
        shown = "" if kind is str else f" = {str(value)[:60]!r}"  # which may hold a password
        raise InvalidConfig(f"{path}: {key}{shown} is not of type {kind.__name__}", next_step="correct that value")
    return value


def _kind(flag: Any) -> type:
    """int, float or bool; str for all others."""
    annotation = getattr(getattr(flag, "type_descriptor", None), "annotation", None)
    if annotation in (int, float, bool):
        return type(annotation())
    return NAMES_OF_KINDS.get(getattr(getattr(flag, "type", None), "name", ""), str)


def config(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")] = Path("amc.toml"),
    workspace: Annotated[Path, typer.Option("--workspace", help="Folder whose last choices are put in.")] = Path(
        "amc-workspace"
    ),
) -> None:
    """Write a file for --config: every flag with its meaning, those that the workspace remembers set.

    Example: amc-mobile config amc.toml; amc-mobile search --config amc.toml
    """
    if file.exists():
        raise InvalidInput(f"{file} is there already", next_step="name another file, or delete it")
    write_text(file, "\n".join(_config_lines(context, workspace)) + "\n")
    print(f"wrote {file}: take the # from a line to set it; amc-mobile search --config {file}")


def _config_lines(context: typer.Context, workspace: Path) -> Iterator[str]:
    from dataclasses import asdict

    from amc_mobile.workflows.workspace import Settings, Workspace

    remembered = {**asdict(Workspace(workspace).settings()), "config": None}
    usual = asdict(Settings())
    done: set[str] = set()
    yield "# Flags of amc-mobile: amc-mobile COMMAND --config FILE. What is typed on the command line comes first."
    for command in commands(context):
        new = [(key, flag) for key, flag in _keys(command) if flag.name not in done]
        if new:
            yield f"\n# {command.name}"
        for key, flag in new:
            if flag.name in done:
                continue
            done.add(str(flag.name))
            value = remembered.get(str(flag.name))
            is_set = value is not None and value != usual.get(str(flag.name)) and flag.name != "table"
            yield f"# {help_text(flag.help)}"
            yield f"{'' if is_set else '# '}{key} = {_toml(value if is_set else _example(flag))}"


def _example(flag: Any) -> Any:
    if flag.default is not None and not callable(flag.default):
        return flag.default
    return {int: 1, float: 0.5, bool: True}.get(_kind(flag), "")


def _toml(value: Any) -> str:
    return json.dumps(value if isinstance(value, int | float | bool | list) else str(value))


SETTLED_S = 2.0  # of a stage, after which what is left of it can be foretold


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """A callback that draws one bar per stage on stderr; lines of text where stderr is not a terminal."""
    if quiet:
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _progress_lines()
        return

    class Done(MofNCompleteColumn):
        def render(self, task: Any) -> Any:
            return f"{task.percentage:.0f} %" if task.description == WHOLE_JOB else super().render(task)

    columns = (TextColumn("{task.description}"), BarColumn(), Done(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None, note=note)
            bars.update(tasks[stage], completed=done, total=total or None, note=note)

        yield report


def _progress_lines() -> Progress:
    """At most twenty lines per stage, for logs, and one more as soon as it is known how long the stage takes."""
    shown: dict[str, tuple[int, bool]] = {}
    begun: dict[str, tuple[float, int]] = {}

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        started, before = begun.setdefault(stage, (now, done))
        # Waiting may take hours and may end at any moment: it is told at 1, 2, 4, 8 ... seconds.
        is_waiting = stage.startswith("wait for ") or not total
        step = done.bit_length() if is_waiting else done * 20 // total
        is_timed = now - started >= SETTLED_S and done > before
        if shown.get(stage) not in ((step, is_timed), (step, True)):
            shown[stage] = (step, is_timed)
            count = f" {done}/{total}" if total else ""
            if stage == WHOLE_JOB and total:
                count = f" {done / total:.0%}"
            left = (now - started) * (total - done) / (done - before) if is_timed and total > done else 0.0
            remaining = f"  about {_duration(left)} left" if left else ""
            print(visible(f"{stage}{count}{remaining}{'  ' + note if note else ''}"), file=sys.stderr, flush=True)

    return report


def ask_password(url: str) -> str:
    """What the user types, unseen; "" where nobody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    return getpass.getpass(f"Password for {url}: ", stream=sys.stderr)


def _duration(seconds: float) -> str:
    """Like `40 s` or `3 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def show_error(message: str, next_step: str) -> None:
    # Tables and files of strangers are quoted in errors too.
    print(f"error: {visible(message)}", file=sys.stderr)
    if next_step:
        print(f"next: {visible(next_step)}", file=sys.stderr)


def show_json_error(kind: str, message: str, next_step: str, exit_code: int) -> None:
    """In the place of the result, for programs that read stdout."""
    document = {"error": {"kind": kind, "message": message, "next": next_step, "exit_code": exit_code}}
    print(json.dumps(document, indent=1))


def show(text: str, document: dict[str, Any], *, as_json: bool) -> None:
    """Prints one result on stdout: `document` for machines, `text` for people."""
    print(json.dumps(document, indent=1, allow_nan=False) if as_json else visible(text))


WorkspaceFlag = Annotated[Path, output_option("--workspace", help="Folder with the table, templates and runs.")]
ModelFlag = Annotated[
    str | None,
    network_option(
        "--model",
        help="A name of `models`, torchvision:NAME, timm:NAME, or file.py:function: called with those of num_classes, "
        "input_size (pixels), in_channels and width_multiplier that it takes, it returns an nn.Module.",
    ),
]
CheckpointFlag = Annotated[
    str | None,
    network_option("--checkpoint", help="Weights: .safetensors, or what torch.save wrote, e.g. a Lightning .ckpt."),
]
# A test holds it to the registry of sources, which loads torch.
DATA_HELP = (
    "digits, shapes, cifar10:PATH, imagefolder:PATH, or file.py:function: returns (train, test), each (images, labels) "
    "with uint8 images (N, C, H, W) or (N, H, W, C) and labels (N,), or a torch Dataset."
)
ModelArgument = Annotated[str | None, typer.Argument(help="As --model of `profile`; default: that of the last step.")]
DataFlag = Annotated[str | None, network_option("--data", help=DATA_HELP)]
AccuracyFlag = Annotated[
    str | None,
    network_option(
        "--accuracy",
        help="file.py:function(outputs, labels) -> number in [0, 1], for networks that do not classify: outputs as the "
        "network returns them for a batch, labels (N, ...) as the data have them.",
    ),
]
LossFlag = Annotated[
    str | None,
    network_option("--loss", help="file.py:function(outputs, labels) -> mean loss of a batch, to train by."),
]
DeviceFlag = Annotated[
    str | None,
    device_option(
        "--device", autocompletion=completed_device,
        help="host: this computer; or a phone's profile, e.g. pixel: see `devices`.",
    ),
]  # fmt: skip
SerialFlag = Annotated[str | None, device_option("--serial", help="Which phone, where several fit --device.")]
SerialsFlag = Annotated[
    list[str] | None,
    device_option(
        "--serial",
        help="Which phone, where several fit --device. Repeat it for phones of one model that share the work, e.g. "
        "--serial A --serial B: the table speaks of the first.",
    ),
]
RuntimeFlag = Annotated[
    str | None,
    device_option(
        "--runtime", autocompletion=completed_runtime,
        help=f"{', '.join(RUNTIMES)}; the last takes .tflite files on phones and gives averages.",
    ),
]  # fmt: skip
TableFlag = Annotated[
    str | None,
    advanced_option(
        "--table",
        help="postgresql+psycopg://USER@HOST/NAME; without: a file in the workspace. Its password: PGPASSWORD, "
        "~/.pgpass or typed; one in the URL holds for this command and is not kept.",
    ),
]
QuickFlag = Annotated[
    bool,
    device_option(
        "--quick",
        help="Fewer kernels, whole models and passes, a wider band; a later profile without it adds the rest.",
    ),
]
OfflineFlag = Annotated[
    bool,
    device_option("--offline", help="Without the device: the table predicts, nothing is measured, no gate is passed."),
]
ConditionsFlag = Annotated[
    list[str] | None,
    advanced_option(
        "--conditions",
        help="With --offline, where several of the table fit: a key as listed, e.g. 1a2b3c4d. Repeatable.",
    ),
]
ThreadsFlag = Annotated[int | None, device_option("--threads", help="Inference threads that are timed.")]
MemoryFlag = Annotated[
    int | None,
    advanced_option(
        "--memory-mb",
        help="For a search's matrices, the rest goes to a file, and for refitting; e.g. 500; 0: half of what is free.",
    ),
]
SeedFlag = Annotated[int | None, advanced_option("--seed", help="Seed of every random choice.")]
ConfigFlag = Annotated[
    Path | None,
    advanced_option(
        "--config",
        help="TOML file with flags, e.g. a line macs_ratio = 0.5 for --macs-ratio 0.5; `amc-mobile config` writes one.",
        is_eager=True,
        callback=read_config,
    ),
]
Bf16Flag = Annotated[
    bool,
    advanced_option("--bf16", help="Forward passes in bfloat16: up to twice as fast on CPUs with AVX512-BF16."),
]
WorkersFlag = Annotated[
    int | None,
    advanced_option("--workers", help="Threads that decode image folders as they are used, e.g. 4."),
]
JsonFlag = Annotated[bool, output_option("--json", help="Print one JSON document.")]
RunFlag = Annotated[str | None, output_option("--run", help="Name of the run; default: the last one.")]
AlsoFlag = Annotated[
    list[str] | None,
    budget_option(
        "--also", help="DEVICE:MS: a latency budget on another device, by its own table, e.g. galaxy:35. Repeatable."
    ),
]
ChannelChoiceFlag = Annotated[
    str,
    advanced_option(
        "--channel-choice", autocompletion=completed("{channel_choices}"), help="{channel_choices}; AMC's is l1."
    ),
]
MultipleFlag = Annotated[int, search_option("--multiple", help="Kept channels are multiples of this.")]
KeepFlag = Annotated[str, search_option("--keep", help="Groups that stay whole: names, patterns, or residual.")]
UntrainedFlag = Annotated[
    bool,
    network_option(
        "--untrained", envvar="AMC_MOBILE_UNTRAINED",
        help="Go on with a network that is no better than guessing on the images.",
    ),
]  # fmt: skip
RewardFlag = Annotated[
    str,
    search_option(
        "--reward", autocompletion=completed("{rewards}"),
        help="What makes a plan good: {rewards}.",
    ),
]  # fmt: skip
PolicyFlag = Annotated[
    str,
    search_option(
        "--policy", autocompletion=completed("{policies}"),
        help="How plans are proposed: {policies}:PATH. The paper's agent is ddpg-sequential.",
    ),
]  # fmt: skip
DEFAULT_WORKSPACE = Path("amc-workspace")


@dataclass(frozen=True)
class NetworkFlags:
    """Which network, on which images, with which weights."""

    model: ModelFlag = None
    data: DataFlag = None
    checkpoint: CheckpointFlag = None
    accuracy: AccuracyFlag = None
    loss: LossFlag = None


@dataclass(frozen=True)
class VariantFlags:
    """How wide the network is and what it looks at."""

    width_multiplier: Annotated[
        float | None, network_option("--width", help="Width multiplier of the network, e.g. 0.5.")
    ] = None
    input_size: Annotated[
        int | None,
        network_option(help="Input height and width in pixels. Default: the network's own, else that of the images."),
    ] = None


@dataclass(frozen=True)
class StateFlags:
    """In what state the device measures."""

    waive: Annotated[
        list[str] | None,
        advanced_option(
            help="Measure in spite of a problem, e.g. HOT; BUSY: as if no other program ran. "
            "WIDE_BAND: search with a table that predicts badly. Repeatable."
        ),
    ] = None
    clock_mode: Annotated[
        str | None, advanced_option(help="unlocked, or fixed_performance: Android's sustainable clocks.")
    ] = None


@dataclass(frozen=True)
class MeasuringFlags(StateFlags):
    """How the device measures."""

    runtime: RuntimeFlag = None


@dataclass(frozen=True)
class PrecisionFlags:
    """What the files compute in."""

    int8: Annotated[
        bool, device_option("--int8", help="Files in int8, e.g. `profile --int8`; the workspace remembers it.")
    ] = False
    fp16: Annotated[bool, device_option("--fp16", help="Files with float16 weights, e.g. `profile --fp16`.")] = False
    fp32: Annotated[bool, device_option("--fp32", help="Back to float32 after `--int8` or `--fp16`.")] = False

    def chosen(self) -> str | None:
        """None where no flag was given: as the workspace remembers it."""
        chosen = [name for name, flag in (("int8", self.int8), ("float16", self.fp16), ("float32", self.fp32)) if flag]
        if len(chosen) > 1:
            raise typer.BadParameter("choose one of --int8, --fp16, --fp32")
        return chosen[0] if chosen else None


@dataclass(frozen=True)
class BudgetFlags:
    """What a plan may cost at most."""

    latency_ms: Annotated[float | None, budget_option(help="p50 in ms, measured, e.g. 30.")] = None
    latency_ratio: Annotated[float | None, budget_option(help="Share of the original's latency, e.g. 0.5.")] = None
    macs_ratio: Annotated[float | None, budget_option(help="Share of the original's MACs.")] = None
    params_ratio: Annotated[float | None, budget_option(help="Share of the original's parameters.")] = None


@dataclass(frozen=True)
class PruningFlags:
    """What is cut, and which plans are measured."""

    granularity: Annotated[
        str,
        search_option(
            help="What is pruned: {granularities}; weight: single weights (fine-grained), e.g. with --params-ratio 0.3."
        ),
    ] = "channel"
    channel_choice: ChannelChoiceFlag = "backward"
    measure_every: Annotated[int, advanced_option(help="Measure every K episodes; 0: new bests only.")] = 50
    min_keep_ratio: Annotated[
        float, search_option(help="Lowest share of channels kept per group, of weights per convolution.")
    ] = 0.2


@dataclass(frozen=True)
class ImageFlags:
    """How many images the search looks at."""

    calibration_images: Annotated[
        int, advanced_option(help="Images for the least squares, at most a third of the training images.")
    ] = 1500
    reward_images: Annotated[
        int | None,
        advanced_option(
            help="Images for the reward, apart from all others; at most a third of the training images. Default: 256, "
            "at most a tenth.",
        ),
    ] = None


class Result(Protocol):
    """What a workflow returns: for people and for machines."""

    def text(self) -> str: ...

    def document(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class OutputFlags:
    """What is printed, on stdout and stderr."""

    as_json: JsonFlag = False
    quiet: Annotated[bool, output_option("--quiet", help="No progress on stderr.")] = False

    def progress(self) -> AbstractContextManager[Progress]:
        return progress_bars(self.quiet)

    def show(self, result: Result) -> None:
        show(result.text(), result.document(), as_json=self.as_json)


@dataclass(frozen=True)
class StoredFlags(MeasuringFlags, VariantFlags, NetworkFlags):
    """Which of the tables that are already there, and how its device measures."""

    device: DeviceFlag = None
    serial: SerialFlag = None
    threads: ThreadsFlag = None
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE

    def opened(self) -> tuple[Workspace, Settings]:
        flags = dict(vars(self))
        return opened(flags.pop("workspace"), **flags)


def opened(workspace: Path, **flags: Any) -> tuple[Workspace, Settings]:
    """The workspace, and its settings with `flags` on top: fields of Settings, None where not given."""
    space = Workspace(workspace)
    return space, space.settings(**joined(flags))


def joined(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that may be repeated, as the settings keep them."""
    return {key: ",".join(value) if isinstance(value, list) else value for key, value in flags.items()}


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for Typer: each parameter that is a dataclass gives way to the dataclass's fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group: type[Any] = parameter.annotation
        if is_dataclass(group):
            groups[parameter.name] = group
            parameters += _parameters_of(group)
        else:
            parameters.append(parameter)

    @wraps(command)
    def expanded(**flags: Any) -> None:
        for name, group in groups.items():
            flags[name] = group(**{flag.name: flags.pop(flag.name) for flag in fields(group)})
        command(**flags)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


@cache
def _parameters_of(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=hints[flag.name])
        for flag in fields(group)
    ]
