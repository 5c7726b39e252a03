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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from amc_mobile.device.phone_output import visible
from amc_mobile.errors import InvalidConfig, InvalidInput
from amc_mobile.store import read_toml, write_text
from amc_mobile.workflows.workspace import (
    ADVANCED,
    DEVICE,
    NETWORK,
    OPTION_PANELS,
    OUTPUT,
    TRAINING,
    WHOLE_JOB,
    Option,
    Progress,
    Settings,
    Workspace,
    silent,
)  # fmt: skip

# Panels of the help, in their order.
COMMAND_PANELS = MAIN_JOB, DEVICES, TABLES, RESEARCH = "Main job", "Devices", "Tables", "Research"
training_option, network_option, device_option, output_option, advanced_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in (TRAINING, NETWORK, DEVICE, OUTPUT, ADVANCED)
)

# What a help text in braces stands for: read from its registry when the help is shown, as NumPy takes long to load.
REGISTRIES = {
    "{policies}": ("amc_mobile.search.policy", "POLICIES"),
    "{rewards}": ("amc_mobile.search.reward", "REWARDS"),
    "{channel_choices}": ("amc_mobile.channels.plan", "CHANNEL_CHOICES"),
    "{runtimes}": ("amc_mobile.workflows.workspace", "RUNTIMES"),
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


class PanelCommand(TyperCommand):
    """Its help has the options in panels, as plain text: Rich's own panels would double the time that help takes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for flag in self.get_params(ctx):
            if (record := flag.get_help_record(ctx)) is not None:
                usual = "Arguments" if flag.param_type_name == "argument" else "Options"
                panel = "Output" if flag.name == "help" else getattr(flag, "rich_help_panel", None) or usual
                panels.setdefault(panel, []).append((record[0], help_text(record[1])))
        for panel in ("Arguments", "Options", *OPTION_PANELS):
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
    if flag.metavar == N_OR_AUTO:
        if type(value) is int or value == "auto":
            return value
        raise InvalidConfig(f"{path}: {key} = {value!r} is no number of epochs", next_step=f'{key} = 10, or "auto"')
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
            yield f"# {help_text(flag.help)}{_defaults_of_commands(context, key)}"
            yield f"{'' if is_set else '# '}{key} = {_toml(value if is_set else _example(flag))}"


def _defaults_of_commands(context: typer.Context, key: str) -> str:
    """What commands take without the key, where they differ: in a file it holds for all of them."""
    flags = {str(command.name): dict(_keys(command)).get(key) for command in commands(context)}
    defaults = {name: flag.default for name, flag in flags.items() if flag and type(flag.default) in (int, float)}
    if len(set(defaults.values())) < 2:
        return ""
    return f" Without this line: {', '.join(f'{name} {default:g}' for name, default in defaults.items())}."


def _example(flag: Any) -> Any:
    if flag.default is not None and not callable(flag.default):
        return flag.default
    return {int: 1, float: 0.5, bool: True}.get(_kind(flag), "")


def _toml(value: Any) -> str:
    return json.dumps(value if isinstance(value, int | float | bool | list) else str(value))


SETTLED_S = 2.0  # of a stage, after which the time left can be estimated


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
        # Waiting may take hours and may end at any moment: it is reported at 1, 2, 4, 8 ... seconds.
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


class Result(Protocol):
    """What a workflow returns: for people and for machines."""

    def text(self) -> str: ...

    def document(self) -> dict[str, Any]: ...


def show(result: Result, *, as_json: bool) -> None:
    """Prints a result on stdout."""
    print(json.dumps(result.document(), indent=1, allow_nan=False) if as_json else visible(result.text()))


DEFAULT_WORKSPACE = Path("amc-workspace")
WorkspaceFlag = Annotated[Path, output_option("--workspace", help="Folder with the table, templates and runs.")]
ConfigFlag = Annotated[
    Path | None,
    advanced_option(
        "--config",
        help="TOML file with flags, e.g. a line macs_ratio = 0.5 for --macs-ratio 0.5; `amc-mobile config` writes one.",
        is_eager=True,
        callback=read_config,
    ),
]
N_OR_AUTO = "N|auto"


def epochs_of(value: str | int) -> str | int:
    """A number of epochs, or "auto". Raises BadParameter."""
    text = str(value).strip()
    if text != "auto" and not (text.isascii() and text.isdecimal()):
        raise typer.BadParameter(f"{text!r} is neither a number nor auto")
    return text if text == "auto" else int(text)


epochs_option = partial(training_option, parser=epochs_of, metavar=N_OR_AUTO)
EpochsFlag = Annotated[
    Any, epochs_option(help="Passes over the training images; auto: until the held-out accuracy stops rising.")
]
Bf16Flag = Annotated[
    bool,
    advanced_option("--bf16", help="Forward passes in bfloat16: up to twice as fast on CPUs with AVX512-BF16."),
]
JsonFlag = Annotated[bool, output_option("--json", help="Print one JSON document.")]
RunFlag = Annotated[str | None, output_option("--run", help="Name of the run; default: the last one.")]
QuickFlag = Annotated[
    bool,
    device_option(
        "--quick",
        help="Fewer kernels, whole models and passes, a wider band; a later profile without it adds the rest.",
    ),
]
UntrainedFlag = Annotated[
    bool,
    network_option(
        "--untrained", envvar="AMC_MOBILE_UNTRAINED",
        help="Go on with a network that is no better than guessing on the images.",
    ),
]  # fmt: skip


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
        chosen = [precision for precision, flag in PRECISION.items() if getattr(self, flag)]
        if len(chosen) > 1:
            raise typer.BadParameter("choose one of --int8, --fp16, --fp32")
        return chosen[0] if chosen else None


@dataclass(frozen=True)
class OutputFlags:
    """What is printed, on stdout and stderr."""

    as_json: JsonFlag = False
    quiet: Annotated[bool, output_option("--quiet", help="No progress on stderr.")] = False

    def progress(self) -> AbstractContextManager[Progress]:
        return progress_bars(self.quiet)

    def show(self, result: Result) -> None:
        show(result, as_json=self.as_json)


Opened = tuple[Workspace, Settings]
OF_NETWORK = ("model", "data", "checkpoint", "accuracy", "loss", "width_multiplier", "input_size")
OF_DEVICE = ("device", "serial", "waive", "clock_mode", "runtime", "threads", "accelerator")


@dataclass(frozen=True)
class Options:
    """Several options in the place of one parameter, whose value is `make` of theirs."""

    parameters: Sequence[inspect.Parameter]
    make: Callable[[dict[str, Any]], Any]


def config_of(kind: Any, *names: str, but: Sequence[str] = (), **defaults: Any) -> Any:
    """The options of a configuration, as the default of the parameter that gets it.

    `names`: of its fields; none: all, `but` some. `defaults`: in place of the fields' own. The parameter gets a
    function of the fields that are no options and have no default, where there are any.
    """
    hints = get_type_hints(kind)
    chosen = [
        each for each in fields(kind)
        if "option" in each.metadata and each.name not in but and (each.name in names or not names)
    ]  # fmt: skip

    def make(flags: dict[str, Any]) -> Any:
        values = {name: _parsed(name, hints[name], value) for name, value in flags.items()}
        is_whole = all("option" in each.metadata or each.default is not MISSING for each in fields(kind))
        return kind(**values) if is_whole else partial(kind, **values)

    return Options(
        [
            _parameter(each.name, hints[each.name], defaults.get(each.name, each.default), each.metadata["option"])
            for each in chosen
        ],
        make,
    )


def given_settings(*names: str, **changed: Option) -> Any:
    """The options of fields of Settings; the parameter gets a dict of those that were given.

    `changed`: what differs from the option of that field.
    """
    by_name = {each.name: each for each in fields(Settings)}
    hints = get_type_hints(Settings)
    parameters: list[inspect.Parameter] = []
    for name in names:
        if name == "precision":
            parameters += _parameters_of(PrecisionFlags)
        else:
            hint, default = (bool, False) if hints[name] is bool else (hints[name] | None, None)
            option = changed.get(name) or by_name[name].metadata["option"]
            parameters.append(_parameter(name, hint, default, option))

    def make(flags: dict[str, Any]) -> dict[str, Any]:
        if "precision" in names:
            flags["precision"] = PrecisionFlags(
                **{each.name: flags.pop(each.name) for each in fields(PrecisionFlags)}
            ).chosen()
        given = {name: ",".join(value) if isinstance(value, list) else value for name, value in flags.items()}
        return {name: value for name, value in given.items() if value is not None and value is not False}

    return Options(parameters, make)


def opened_settings(*names: str, **changed: Option) -> Any:
    """As `given_settings`, with --workspace; the parameter gets the workspace, and its settings with what was given."""
    given = given_settings(*names, **changed)
    folder = inspect.Parameter(
        "workspace", inspect.Parameter.KEYWORD_ONLY, default=DEFAULT_WORKSPACE, annotation=WorkspaceFlag
    )

    def make(flags: dict[str, Any]) -> Opened:
        space = Workspace(flags.pop("workspace"))
        return space, space.settings(**given.make(flags))

    return Options([*given.parameters, folder], make)


def _parameter(name: str, hint: Any, default: Any, option: Option) -> inspect.Parameter:
    braces = next((braces for braces in REGISTRIES if braces in option.help), None)
    complete = completed_device if name == "device" else completed(braces) if braces else None
    if option.repeatable:
        hint, default = list[str] | None, None
    elif get_origin(hint) is tuple:
        hint, default = str, ",".join(map(str, default))
    if option.is_argument:
        shown = typer.Argument(help=option.help)
    else:
        flag = option.flag or f"--{name.replace('_', '-')}"
        shown = typer.Option(flag, help=option.help, rich_help_panel=option.panel, autocompletion=complete)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, shown])


def _parsed(name: str, hint: Any, value: Any) -> Any:
    """What was typed, as the field has it. Raises InvalidConfig for texts that are no list of numbers."""
    if get_origin(hint) is not tuple:
        return ",".join(value) if isinstance(value, list) else "" if value is None and hint is str else value
    try:
        kind: Callable[[str], Any] = get_args(hint)[0]
        return tuple(kind(item) for item in value.replace(" ", "").split(",") if item)
    except ValueError as error:
        raise InvalidConfig(f"--{name} {value!r} is not a list of numbers", next_step=f"--{name} 0,1,2") from error


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for Typer: a parameter that is Options, or a dataclass of options, gives way to its options."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Options] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group, kind = parameter.default, parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind) and not isinstance(group, Options):
            group = Options(_parameters_of(kind), partial(_made, kind))
        if isinstance(group, Options):
            groups[parameter.name] = group
            parameters += group.parameters
        else:
            parameters.append(parameter)

    @wraps(command)
    def expanded(**flags: Any) -> None:
        for name, group in groups.items():
            flags[name] = group.make({each.name: flags.pop(each.name) for each in group.parameters})
        command(**flags)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _made(kind: type[Any], values: dict[str, Any]) -> Any:
    return kind(**values)


@cache
def _parameters_of(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=hints[flag.name])
        for flag in fields(group)
    ]
