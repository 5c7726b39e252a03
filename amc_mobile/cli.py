"""The command line: each command parses, calls one workflow and prints. Heavy imports happen inside workflows."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from amc_mobile import __version__, cli_devices
from amc_mobile.cli_options import (
    DEFAULT_WORKSPACE,
    DEVICES,
    MAIN_JOB,
    OF_DEVICE,
    OF_NETWORK,
    RESEARCH,
    TABLES,
    Bf16Flag,
    CommandLine,
    ConfigFlag,
    EpochsFlag,
    JsonFlag,
    Opened,
    OutputFlags,
    QuickFlag,
    RunFlag,
    UntrainedFlag,
    WorkspaceFlag,
    ask_password,
    config,
    config_of,
    device_option,
    epochs_option,
    expand_groups,
    given_settings,
    opened_settings,
    output_option,
    show,
    show_error,
    show_json_error,
    training_option,
)  # fmt: skip
from amc_mobile.errors import AmcMobileError, BudgetNotMet, BudgetNotVerified, SystemRefused, ToleranceExceeded
from amc_mobile.formats import ONNX, TFLITE
from amc_mobile.latency.database_url import ask_with
from amc_mobile.workflows.search_config import CompareConfig, SearchConfig, SensitivityConfig
from amc_mobile.workflows.workspace import DEVICE, NETWORK, Option, Settings, Workspace, check_settings

MODEL = Option("As --model of `profile`; default: that of the last step.", "", is_argument=True)


@expand_groups
def search(
    *,
    search: SearchConfig = config_of(SearchConfig),
    untrained: UntrainedFlag = False,
    opened: Opened = opened_settings(
        *OF_NETWORK, *OF_DEVICE, "precision", "offline", "conditions", "memory_mb", "workers", "seed"
    ),
    run: RunFlag = None,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Find the most accurate plan within the budgets. Goes on where it was killed, and with more --episodes.

    Without --multiple, kept channels are multiples of what `table probe` found, at least 8.

    Example: amc-mobile search --latency-ratio 0.5

    One plan for two phones: amc-mobile search --latency-ms 30 --device pixel --also galaxy:35 --macs-ratio 0.6

    With a table that was measured before, and no phone: amc-mobile search --latency-ms 30 --device pixel --offline
    """
    from amc_mobile.workflows.search import search_plan  # late: it loads torch, which wrong flags need not wait for

    with output.progress() as progress:
        result = search_plan(*opened, search, run=run, progress=progress, untrained=untrained)
    output.show(result)
    result.raise_if_accuracy_not_kept()


@expand_groups
def train(
    *,
    epochs: EpochsFlag = 30,
    learning_rate: Annotated[
        float | None,
        training_option(help="Highest rate, e.g. 0.05. Default: 0.1; of detectors 0.01."),
    ] = None,
    batch_size: Annotated[int, training_option(help="Images per step.")] = 64,
    bf16: Bf16Flag = False,
    opened: Opened = opened_settings(
        *OF_NETWORK,
        "workers",
        "seed",
        checkpoint=Option(
            "Weights that the training starts from; `profile --checkpoint` takes them as they are.", NETWORK
        ),
    ),
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Train a network; the workspace remembers it for the next steps. Goes on where it was killed.

    Example: amc-mobile train --model mobilenet_v1 --width 0.25 --data digits --epochs 10
    """
    from amc_mobile.workflows.training import train_network

    with output.progress() as progress:
        result = train_network(
            *opened, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16, progress=progress
        )
    output.show(result)


@expand_groups
def finetune(
    *,
    epochs: EpochsFlag = 10,
    learning_rate: Annotated[
        float | None,
        training_option(help="Highest rate, e.g. 0.01. Default: 0.02; of detectors 0.002."),
    ] = None,
    batch_size: Annotated[int, training_option(help="Images per step.")] = 64,
    ema: Annotated[float, training_option(help="Keep a moving average of the weights, e.g. 0.999; 0: the last.")] = 0.0,
    bf16: Bf16Flag = False,
    given: dict[str, Any] = given_settings("workers", "precision"),
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    output: OutputFlags,
) -> None:
    """Train the pruned network on, distilled from the original. Keeps the weights unless clearly worse.

    With --int8, or where the run was searched so, the last fifth of the epochs round as int8 files do.

    Example: amc-mobile finetune --epochs 20 --ema 0.999
    """
    with output.progress() as progress:
        result = Workspace(workspace).run(run).finetune(
            epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16, ema_decay=ema,
            progress=progress, **given,
        )  # fmt: skip
    output.show(result)


app = CommandLine(
    help="Prune a trained CNN to a latency budget measured on the device.\n\n"
    "Example: amc-mobile prune mobilenet_v1 --checkpoint weights.pt --data imagefolder:DIR --latency-ratio 0.5",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# The root of the parser's errors about what was typed. Typer carries the parser within, at a place of its own choice.
UsageMistake: type[Exception] = typer.BadParameter.__mro__[2]


def _show_version(is_given: bool) -> None:
    if is_given:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


def models(as_json: JsonFlag = False) -> None:
    """List the networks that are built in.

    Example: amc-mobile models
    """
    from amc_mobile.workflows.network import list_models

    listed = list_models()
    show(listed, as_json=as_json)


@expand_groups
def check(
    *,
    opened: Opened = opened_settings(*OF_NETWORK, "workers", model=MODEL),
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Say in about ten seconds what can be pruned, exported and measured. Exit 1 where pruning cannot begin.

    Shows the input and its normalisation, the groups of channels that are pruned or kept whole and why, the accuracy,
    exporters, devices and warnings. Nothing is measured or changed.

    Example: amc-mobile check mobilenet_v1 --checkpoint weights.pt --data imagefolder:DIR
    """
    from amc_mobile.workflows.prune import check_network

    result = check_network(*opened)
    show(result, as_json=as_json)
    if not result.ok:
        raise typer.Exit(1)


@expand_groups
def prune(
    *,
    search: SearchConfig = config_of(
        SearchConfig, "latency_ms", "latency_ratio", "macs_ratio", "params_ratio", "episodes"
    ),
    epochs: Annotated[
        Any, epochs_option(help="Passes of fine-tuning over the training images, or auto; 0: none.")
    ] = 10,
    untrained: UntrainedFlag = False,
    quick: QuickFlag = False,
    opened: Opened = opened_settings(*OF_NETWORK, *OF_DEVICE, "precision", "workers", "seed", model=MODEL),
    folder: Annotated[
        Path, output_option("--output", help="Folder for the files to ship; those of an earlier prune are replaced.")
    ] = Path("amc-pruned"),
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Do the whole job: profile, search, fine-tune, export and report. Exit 3: budget missed; 4: not measured.

    Writes every format whose exporter is installed. Goes on where it was stopped. The single steps, which have more
    options, go on with its run.

    Example: amc-mobile prune mobilenet_v1 --checkpoint weights.pt --data imagefolder:DIR --latency-ratio 0.5
    """
    from amc_mobile.workflows.prune import prune_network  # late, as in `search`

    with output.progress() as progress:
        result = prune_network(
            *opened, search, epochs=epochs, output=folder, progress=progress, quick=quick, untrained=untrained
        )
    output.show(result)
    result.raise_if_not_passed()


@expand_groups
def profile(
    *,
    quick: QuickFlag = False,
    opened: Opened = opened_settings(
        *OF_NETWORK,
        *OF_DEVICE,
        "precision",
        "table",
        "seed",
        serial=Option(
            "Which phone, where several fit --device. Repeat it for phones of one model that share the work, e.g. "
            "--serial A --serial B: the table speaks of the first.",
            DEVICE,
            repeatable=True,
        ),
    ),
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Measure the kernels of a network on the device: builds the latency table. Resumable at any moment.

    Example: amc-mobile profile --device host --model resnet20 --checkpoint resnet20.th --data cifar10:DIR
    """
    from amc_mobile.workflows.profile import profile_device

    with output.progress() as progress:
        latency = profile_device(*opened, quick=quick, progress=progress)
    output.show(latency.result)


@expand_groups
def export(
    *,
    tflite: Annotated[bool, output_option("--tflite", help="Write model.tflite.")] = False,
    onnx: Annotated[bool, output_option("--onnx", help="Write model.onnx.")] = False,
    kotlin: Annotated[
        bool, output_option("--kotlin", help="Write Classify.kt, which feeds the files on Android.")
    ] = False,
    offline: Annotated[
        bool, device_option("--offline", help="Do not measure: the files are written and a latency budget stays open.")
    ] = False,
    changed: dict[str, Any] = given_settings("serial", "waive", "clock_mode", "precision"),
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    output: OutputFlags,
) -> None:
    """Write the pruned network, check it against torch, measure it. Exit 3: budget missed; 4: not measured.

    Without --int8, --fp16 or --fp32, and without --serial, --waive and --clock-mode: as the run was searched. int8
    takes its ranges from calibration images.

    Example: amc-mobile export --tflite --onnx
    """
    from amc_mobile.workflows.export import export_run

    formats = [name for name, is_given in ((TFLITE.name, tflite), (ONNX.name, onnx)) if is_given]
    if not formats:
        raise typer.BadParameter("choose at least one of --tflite, --onnx")
    with output.progress() as progress:
        result = export_run(
            Workspace(workspace), run=run, formats=formats, changed=changed, progress=progress, offline=offline,
            kotlin=kotlin,
        )  # fmt: skip
    output.show(result)
    result.raise_if_not_passed()


def inspect(
    file: Annotated[Path, typer.Argument(help="A .tflite or .onnx file, of this tool or of another.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a file says about itself: how to feed it, labels, accuracy, budget, measured latency.

    Example: amc-mobile inspect model.tflite
    """
    from amc_mobile.export.metadata import inspect as inspect_file

    description = inspect_file(file)
    show(description, as_json=as_json)


@expand_groups
def measure(
    *,
    file: Annotated[Path, typer.Argument(help="A .tflite or .onnx file.")],
    sustained_s: Annotated[
        float | None,
        device_option(help="Seconds to run for, e.g. 60: p50 and p90 over time as the device heats up."),
    ] = None,
    cadence_fps: Annotated[
        float | None,
        device_option(help="Runs per second, e.g. 30, with gaps as in an app; default: back to back."),
    ] = None,
    given: dict[str, Any] = given_settings(*OF_DEVICE),
    output: OutputFlags,
) -> None:
    """Measure the latency of one file on the device.

    Example: amc-mobile measure model.tflite --device pixel --threads 2
    """
    settings = Settings(**given)
    check_settings(settings)
    from amc_mobile.workflows import export as exports  # late: it loads torch, which wrong flags need not wait for
    from amc_mobile.workflows.devices import OpenedDevice

    opened = OpenedDevice(settings)
    result: exports.MeasureResult | exports.SustainedResult
    with output.progress() as progress:
        if sustained_s is None:
            result = exports.measure(file, opened, cadence_fps=cadence_fps, progress=progress)
        else:
            result = exports.measure_sustained(
                file, opened, seconds=sustained_s, cadence_fps=cadence_fps, progress=progress
            )
    output.show(result)


def status(workspace: WorkspaceFlag = DEFAULT_WORKSPACE, as_json: JsonFlag = False) -> None:
    """Show what the workspace remembers: network, data, device, table and runs, and what the next step is.

    Example: amc-mobile status
    """
    found = Workspace(workspace).status()
    show(found, as_json=as_json)


def report(
    run: RunFlag = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Write nothing; say how run B differs from run A. Names of runs, or paths of a report.json.",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="With --compare: exit 3 where B is slower by more than this share or loses as much accuracy."
        ),
    ] = 0.05,
    force: Annotated[
        bool, typer.Option("--force", help="With --compare: in spite of unlike devices, runtimes or test images.")
    ] = False,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
) -> None:
    """Write report.html, .json and .md of a run with its layers and samples, and print it.

    Example: amc-mobile report

    In a pull request: amc-mobile report --compare main/report.json my-run --tolerance 0.03
    """
    from amc_mobile.workflows.report import compare_reports, report_run

    if compare is None:
        result = report_run(Workspace(workspace), run=run)
        show(result, as_json=as_json)
        return
    compared = compare_reports(Workspace(workspace), *compare, tolerance=tolerance, force=force)
    show(compared, as_json=as_json)
    compared.raise_if_worse()


@expand_groups
def compare(
    *,
    comparison: Callable[[SearchConfig], CompareConfig] = config_of(CompareConfig),
    search: SearchConfig = config_of(SearchConfig, but=("policy", "max_loss"), multiple=8),
    untrained: UntrainedFlag = False,
    opened: Opened = opened_settings(
        *OF_NETWORK, *OF_DEVICE, "precision", "offline", "conditions", "memory_mb", "workers"
    ),
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Compare policies at equal evaluations. Writes compare.html, .json, .csv and the pictures as .svg; resumable.

    Example: amc-mobile compare --macs-ratio 0.5 --policies uniform,random,ddpg,critic --seeds 0,1,2

    Plans for two phones: amc-mobile compare --latency-ms 30 --device pixel --also galaxy:35 --macs-ratio 0.6

    With tables that were measured before, and no phone: the same with --offline; every latency is then predicted.
    """
    compared = comparison(search)
    from amc_mobile.workflows.compare import compare_policies  # late, as in `search`

    with output.progress() as progress:
        result = compare_policies(*opened, compared, progress=progress, untrained=untrained)
    output.show(result)


@expand_groups
def sensitivity(
    *,
    asked: SensitivityConfig = config_of(SensitivityConfig),
    untrained: UntrainedFlag = False,
    opened: Opened = opened_settings(*OF_NETWORK, "workers", "seed"),
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Accuracy with one channel group cut and all others whole: table, sensitivity.html, .svg, .json; resumable.

    Example: amc-mobile sensitivity --ratios 0.25,0.5,0.75
    """
    from amc_mobile.workflows.sensitivity import sensitivity as measure_sensitivity  # late, as in `search`

    with output.progress() as progress:
        result = measure_sensitivity(*opened, asked, progress=progress, untrained=untrained)
    output.show(result)


# In the order of `--help`.
MAIN_COMMANDS = (check, prune, train, profile, search, finetune, export, inspect, report, status, models, config)
for command in MAIN_COMMANDS:
    app.command(rich_help_panel=MAIN_JOB)(command)
for command in (measure, cli_devices.devices, cli_devices.doctor):
    app.command(rich_help_panel=DEVICES)(command)
app.add_typer(cli_devices.runtime_app, name="runtime", rich_help_panel=DEVICES)
app.add_typer(cli_devices.app, name="table", rich_help_panel=TABLES)
for command in (compare, sensitivity):
    app.command(rich_help_panel=RESEARCH)(command)


class Stopped(BaseException):
    """A person or another program ends the command. Not a KeyboardInterrupt: typer would end without a word."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal raise Stopped, so that a phone gets its settings back and its runner ends.

    Signals that the parent process ignores, as nohup does, stay ignored.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a child that has not replaced the program is not the command
            os._exit(128 + number)
        raise Stopped(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Runs the command line; turns our errors into `error: ...` and their exit code."""
    ask_with(ask_password)
    try:
        with stopped_by_signals():
            code = app(prog_name="amc-mobile", standalone_mode=False)  # also for `python -m amc_mobile`
    except (AmcMobileError, OSError) as raised:
        if isinstance(raised, OSError) and not SystemRefused.explains(raised):
            raise
        error = SystemRefused(raised) if isinstance(raised, OSError) else raised
        # Whether a budget was met is said after the command's own document.
        if "--json" in sys.argv and not isinstance(error, BudgetNotMet | BudgetNotVerified | ToleranceExceeded):
            show_json_error(type(error).__name__, error.message, error.next_step, error.exit_code)
        show_error(error.message, error.next_step)
        raise SystemExit(error.exit_code) from None
    except UsageMistake as mistake:
        if "--json" in sys.argv:
            show_json_error("UsageMistake", mistake.format_message(), "amc-mobile COMMAND --help", 2)  # type: ignore[attr-defined]
        mistake.show()  # type: ignore[attr-defined]
        raise SystemExit(2) from None
    except typer.Abort:
        raise SystemExit(1) from None
    except Stopped as stopped:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    raise SystemExit(code if isinstance(code, int) else 0)
