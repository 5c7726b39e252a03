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
from typing import Annotated, Any, TypeVar

import typer

from amc_mobile import __version__, cli_devices
from amc_mobile.cli_options import (
    DEFAULT_WORKSPACE,
    DEVICES,
    MAIN_JOB,
    RESEARCH,
    TABLES,
    AccuracyFlag,
    AlsoFlag,
    Bf16Flag,
    BudgetFlags,
    ChannelChoiceFlag,
    CheckpointFlag,
    CommandLine,
    ConditionsFlag,
    ConfigFlag,
    DataFlag,
    DeviceFlag,
    ImageFlags,
    JsonFlag,
    KeepFlag,
    LossFlag,
    MeasuringFlags,
    MemoryFlag,
    ModelArgument,
    ModelFlag,
    MultipleFlag,
    NetworkFlags,
    OfflineFlag,
    OutputFlags,
    PolicyFlag,
    PrecisionFlags,
    PruningFlags,
    QuickFlag,
    RewardFlag,
    RunFlag,
    SeedFlag,
    SerialFlag,
    SerialsFlag,
    StateFlags,
    TableFlag,
    ThreadsFlag,
    UntrainedFlag,
    VariantFlags,
    WorkersFlag,
    WorkspaceFlag,
    ask_password,
    budget_option,
    config,
    device_option,
    expand_groups,
    joined,
    network_option,
    opened,
    output_option,
    search_option,
    show,
    show_error,
    show_json_error,
    training_option,
)
from amc_mobile.errors import (
    AmcMobileError,
    BudgetNotMet,
    BudgetNotVerified,
    InvalidConfig,
    SystemRefused,
    ToleranceExceeded,
)
from amc_mobile.formats import ONNX, TFLITE
from amc_mobile.latency.database_url import ask_with
from amc_mobile.workflows.workspace import Settings, Workspace, check_settings

Number = TypeVar("Number", int, float)


@expand_groups
def search(
    *,
    budgets: BudgetFlags,
    also: AlsoFlag = None,
    policy: PolicyFlag = "critic",
    reward: RewardFlag = "fidelity",
    episodes: Annotated[int, search_option(help="Plans to try.")] = 300,
    pruning: PruningFlags,
    multiple: Annotated[
        int | None,
        search_option(
            "--multiple",
            help="Kept channels are multiples of this, e.g. 16. Default: what `table probe` found, at least 8.",
        ),
    ] = None,
    images: ImageFlags,
    untrained: UntrainedFlag = False,
    max_loss: Annotated[
        float | None,
        budget_option(
            help="Cheapest plan that loses at most so much accuracy, e.g. 0.01; exit 3 if the refitted one loses more."
        ),
    ] = None,
    keep: KeepFlag = "",
    offline: OfflineFlag = False,
    conditions: ConditionsFlag = None,
    network: NetworkFlags,
    device: DeviceFlag = None,
    serial: SerialFlag = None,
    measuring: MeasuringFlags,
    precision: PrecisionFlags,
    threads: ThreadsFlag = None,
    memory_mb: MemoryFlag = None,
    variant: VariantFlags,
    workers: WorkersFlag = None,
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Find the most accurate plan within the budgets. Goes on where it was killed, and with more --episodes.

    Example: amc-mobile search --latency-ratio 0.5

    One plan for two phones: amc-mobile search --latency-ms 30 --device pixel --also galaxy:35 --macs-ratio 0.6

    With a table that was measured before, and no phone: amc-mobile search --latency-ms 30 --device pixel --offline
    """
    from amc_mobile.workflows.search_config import SearchConfig

    wanted = SearchConfig(
        **vars(budgets), **vars(pruning), **vars(images), policy=policy, reward=reward, episodes=episodes,
        multiple=multiple, max_loss=max_loss, keep=keep, also=",".join(also or []),
    )  # fmt: skip
    space, settings = opened(
        workspace, **vars(network), **vars(variant), **vars(measuring), precision=precision.chosen(),
        device=device, serial=serial, threads=threads, seed=seed, offline=offline or None, conditions=conditions,
        workers=workers, memory_mb=memory_mb,
    )  # fmt: skip
    from amc_mobile.workflows.search import search_plan  # late: it loads torch, which wrong flags need not wait for

    with output.progress() as progress:
        result = search_plan(space, settings, wanted, run=run, progress=progress, untrained=untrained)
    output.show(result)
    result.raise_if_accuracy_not_kept()


@expand_groups
def train(
    *,
    model: ModelFlag = None,
    data: DataFlag = None,
    epochs: Annotated[int, training_option(help="Passes over the training images.")] = 30,
    learning_rate: Annotated[
        float | None,
        training_option(help="Peak of the cosine schedule, e.g. 0.05. Default: 0.1; of detectors 0.01."),
    ] = None,
    batch_size: Annotated[int, training_option(help="Images per step.")] = 64,
    variant: VariantFlags,
    bf16: Bf16Flag = False,
    checkpoint: Annotated[
        str | None,
        network_option(
            "--checkpoint", help="Weights that the training starts from; `profile --checkpoint` takes them as they are."
        ),
    ] = None,
    accuracy: AccuracyFlag = None,
    loss: LossFlag = None,
    workers: WorkersFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Train a network; the workspace remembers it for the next steps. Goes on where it was killed.

    Example: amc-mobile train --model mobilenet_v1 --width 0.25 --data digits --epochs 10
    """
    from amc_mobile.workflows.training import train_network

    space, settings = opened(
        workspace, model=model, data=data, checkpoint=checkpoint, accuracy=accuracy, loss=loss, seed=seed,
        workers=workers, **vars(variant),
    )  # fmt: skip
    with output.progress() as progress:
        result = train_network(
            space, settings, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16,
            progress=progress,
        )  # fmt: skip
    output.show(result)


@expand_groups
def finetune(
    *,
    epochs: Annotated[int, training_option(help="Passes over the training images.")] = 10,
    learning_rate: Annotated[
        float | None,
        training_option(help="Peak rate of the cosine schedule, e.g. 0.01. Default: 0.02; of detectors 0.002."),
    ] = None,
    batch_size: Annotated[int, training_option(help="Images per step.")] = 64,
    ema: Annotated[float, training_option(help="Keep a moving average of the weights, e.g. 0.999; 0: the last.")] = 0.0,
    bf16: Bf16Flag = False,
    workers: WorkersFlag = None,
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    output: OutputFlags,
) -> None:
    """Train the pruned network on, distilled from the original. Keeps the weights unless clearly worse.

    Example: amc-mobile finetune --epochs 20 --ema 0.999
    """
    from amc_mobile.workflows.training import finetune_run

    space = Workspace(workspace)
    with output.progress() as progress:
        result = finetune_run(
            space, run=run, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16,
            ema_decay=ema, workers=workers, progress=progress,
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


def _show_version(wanted: bool) -> None:
    if wanted:
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
    show(listed.text(), listed.document(), as_json=as_json)


@expand_groups
def check(
    *,
    model: ModelArgument = None,
    checkpoint: CheckpointFlag = None,
    data: DataFlag = None,
    variant: VariantFlags,
    accuracy: AccuracyFlag = None,
    loss: LossFlag = None,
    workers: WorkersFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Say in about ten seconds what can be pruned, exported and measured. Exit 1 where pruning cannot begin.

    Shows the input and its normalisation, the groups of channels that are pruned or kept whole and why, the accuracy,
    exporters, devices and warnings. Nothing is measured or changed.

    Example: amc-mobile check mobilenet_v1 --checkpoint weights.pt --data imagefolder:DIR
    """
    from amc_mobile.workflows.prune import check_network

    space, settings = opened(
        workspace, model=model, checkpoint=checkpoint, data=data, accuracy=accuracy, loss=loss, workers=workers,
        **vars(variant),
    )  # fmt: skip
    result = check_network(space, settings)
    show(result.text(), result.document(), as_json=as_json)
    if not result.ok:
        raise typer.Exit(1)


@expand_groups
def prune(
    *,
    model: ModelArgument = None,
    checkpoint: CheckpointFlag = None,
    data: DataFlag = None,
    budgets: BudgetFlags,
    episodes: Annotated[int, search_option(help="Plans to try.")] = 300,
    epochs: Annotated[int, training_option(help="Passes of fine-tuning over the training images; 0: none.")] = 10,
    quick: QuickFlag = False,
    device: DeviceFlag = None,
    serial: SerialFlag = None,
    measuring: MeasuringFlags,
    precision: PrecisionFlags,
    threads: ThreadsFlag = None,
    variant: VariantFlags,
    accuracy: AccuracyFlag = None,
    loss: LossFlag = None,
    untrained: UntrainedFlag = False,
    workers: WorkersFlag = None,
    folder: Annotated[
        Path, output_option("--output", help="Folder for the files to ship; those of an earlier prune are replaced.")
    ] = Path("amc-pruned"),
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Do the whole job: profile, search, fine-tune, export and report. Exit 3: budget missed; 4: not measured.

    Writes every format whose exporter is installed. Goes on where it was stopped. The single steps, which have more
    options, go on with its run.

    Example: amc-mobile prune mobilenet_v1 --checkpoint weights.pt --data imagefolder:DIR --latency-ratio 0.5
    """
    from amc_mobile.workflows.search_config import SearchConfig

    search = SearchConfig(**vars(budgets), episodes=episodes)
    space, settings = opened(
        workspace, model=model, checkpoint=checkpoint, data=data, accuracy=accuracy, loss=loss, workers=workers,
        **vars(variant), **vars(measuring), precision=precision.chosen(), device=device, serial=serial,
        threads=threads, seed=seed,
    )  # fmt: skip
    from amc_mobile.workflows.prune import prune_network  # late: it loads torch, which wrong flags need not wait for

    with output.progress() as progress:
        result = prune_network(
            space, settings, search, epochs=epochs, output=folder, progress=progress, quick=quick, untrained=untrained
        )
    output.show(result)
    result.raise_if_not_passed()


@expand_groups
def profile(
    *,
    network: NetworkFlags,
    device: DeviceFlag = None,
    serial: SerialsFlag = None,
    measuring: MeasuringFlags,
    precision: PrecisionFlags,
    threads: ThreadsFlag = None,
    table: TableFlag = None,
    quick: QuickFlag = False,
    variant: VariantFlags,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Measure the kernels of a network on the device: builds the latency table. Resumable at any moment.

    Example: amc-mobile profile --device host --model resnet20 --checkpoint resnet20.th --data cifar10:DIR
    """
    from amc_mobile.workflows.profile import profile_device

    space, settings = opened(
        workspace, **vars(network), **vars(variant), **vars(measuring), precision=precision.chosen(),
        device=device, serial=serial, threads=threads, seed=seed, table=table,
    )  # fmt: skip
    with output.progress() as progress:
        latency = profile_device(space, settings, quick=quick, progress=progress)
    output.show(latency.result)


@expand_groups
def export(
    *,
    tflite: Annotated[bool, output_option("--tflite", help="Write model.tflite.")] = False,
    onnx: Annotated[bool, output_option("--onnx", help="Write model.onnx.")] = False,
    kotlin: Annotated[
        bool, output_option("--kotlin", help="Write Classify.kt, which feeds the files on Android.")
    ] = False,
    precision: PrecisionFlags,
    offline: Annotated[
        bool, device_option("--offline", help="Do not measure: the files are written and a latency budget stays open.")
    ] = False,
    serial: SerialFlag = None,
    state: StateFlags,
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

    formats = [name for name, wanted in ((TFLITE.name, tflite), (ONNX.name, onnx)) if wanted]
    if not formats:
        raise typer.BadParameter("choose at least one of --tflite, --onnx")
    changed = joined({"serial": serial, **vars(state), "precision": precision.chosen()})
    with output.progress() as progress:
        result = export_run(
            Workspace(workspace),
            run=run,
            formats=formats,
            changed=changed,
            progress=progress,
            offline=offline,
            kotlin=kotlin,
        )
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
    show(description.text(), description.document(), as_json=as_json)


@expand_groups
def measure(
    *,
    file: Annotated[Path, typer.Argument(help="A .tflite or .onnx file.")],
    threads: Annotated[int, device_option(help="Inference threads.")] = 1,
    sustained_s: Annotated[
        float | None,
        device_option(help="Run for so many seconds, e.g. 60: p50 and p90 over time as the device heats up."),
    ] = None,
    cadence_fps: Annotated[
        float | None,
        device_option(help="So many runs a second, e.g. 30, with gaps as in an app; default: back to back."),
    ] = None,
    device: DeviceFlag = "host",
    serial: SerialFlag = None,
    measuring: MeasuringFlags,
    output: OutputFlags,
) -> None:
    """Measure the latency of one file on the device.

    Example: amc-mobile measure model.tflite --device pixel --threads 2
    """
    from amc_mobile.workflows.export import measure_file

    given = joined({"device": device, "serial": serial, "threads": threads, **vars(measuring)})
    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    check_settings(settings)
    with output.progress() as progress:
        result = measure_file(file, settings, sustained_s=sustained_s, cadence_fps=cadence_fps, progress=progress)
    output.show(result)


def status(workspace: WorkspaceFlag = DEFAULT_WORKSPACE, as_json: JsonFlag = False) -> None:
    """Show what the workspace remembers: network, data, device, table and runs, and what the next step is.

    Example: amc-mobile status
    """
    found = Workspace(workspace).status()
    show(found.text(), found.document(), as_json=as_json)


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
        show(result.text(), result.document(), as_json=as_json)
        return
    compared = compare_reports(Workspace(workspace), *compare, tolerance=tolerance, force=force)
    show(compared.text(), compared.document(), as_json=as_json)
    compared.raise_if_worse()


@expand_groups
def compare(
    *,
    limits: BudgetFlags,
    also: AlsoFlag = None,
    budgets: Annotated[
        str, budget_option(help="Ratios in place of the first budget's, for the front, e.g. 0.3,0.5,0.7.")
    ] = "",
    policies: Annotated[
        str,
        search_option(help="Any of {policies}:PATH, separated by commas."),
    ] = "uniform,random,ddpg,evolution,critic,dp",
    seeds: Annotated[str, search_option(help="Seeds, separated by commas.")] = "0,1,2",
    episodes: Annotated[int, search_option(help="Plans each policy tries.")] = 300,
    reward: RewardFlag = "fidelity",
    pruning: PruningFlags,
    multiple: MultipleFlag = 8,
    images: ImageFlags,
    untrained: UntrainedFlag = False,
    keep: KeepFlag = "",
    finetune_epochs: Annotated[int, search_option(help="Fine-tune every plan so long; 0: not.")] = 0,
    offline: OfflineFlag = False,
    conditions: ConditionsFlag = None,
    network: NetworkFlags,
    device: DeviceFlag = None,
    serial: SerialFlag = None,
    measuring: MeasuringFlags,
    precision: PrecisionFlags,
    threads: ThreadsFlag = None,
    memory_mb: MemoryFlag = None,
    variant: VariantFlags,
    workers: WorkersFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Compare policies at equal evaluations. Writes compare.html, .json, .csv and the pictures as .svg; resumable.

    Example: amc-mobile compare --macs-ratio 0.5 --policies uniform,random,ddpg,critic --seeds 0,1,2

    Plans for two phones: amc-mobile compare --latency-ms 30 --device pixel --also galaxy:35 --macs-ratio 0.6

    With tables that were measured before, and no phone: the same with --offline; every latency is then predicted.
    """
    from amc_mobile.workflows.search_config import CompareConfig, SearchConfig

    search = SearchConfig(
        **vars(limits), **vars(pruning), **vars(images), reward=reward, episodes=episodes, multiple=multiple,
        keep=keep, also=",".join(also or []),
    )  # fmt: skip
    wanted = CompareConfig(
        search, tuple(_items(policies)), tuple(_numbers(seeds, int, "--seeds")),
        tuple(_numbers(budgets, float, "--budgets")), finetune_epochs,
    )  # fmt: skip
    space, settings = opened(
        workspace, **vars(network), **vars(variant), **vars(measuring), precision=precision.chosen(),
        device=device, serial=serial, threads=threads, memory_mb=memory_mb, offline=offline or None,
        conditions=conditions, workers=workers,
    )  # fmt: skip
    from amc_mobile.workflows.compare import compare_policies  # late, as in `search`

    with output.progress() as progress:
        result = compare_policies(space, settings, wanted, progress=progress, untrained=untrained)
    output.show(result)


@expand_groups
def sensitivity(
    *,
    ratios: Annotated[str, search_option(help="Keep ratios, separated by commas.")] = "0.25,0.5,0.75",
    multiple: Annotated[int, search_option("--multiple", help="Round kept channels up to multiples of this.")] = 1,
    channel_choice: ChannelChoiceFlag = "backward",
    images: ImageFlags,
    untrained: UntrainedFlag = False,
    network: NetworkFlags,
    variant: VariantFlags,
    workers: WorkersFlag = None,
    seed: SeedFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    config: ConfigFlag = None,
    output: OutputFlags,
) -> None:
    """Accuracy with one channel group cut and all others whole: table, sensitivity.html, .svg, .json; resumable.

    Example: amc-mobile sensitivity --ratios 0.25,0.5,0.75
    """
    from amc_mobile.workflows.search_config import SensitivityConfig

    wanted = SensitivityConfig(
        tuple(_numbers(ratios, float, "--ratios")),
        multiple,
        channel_choice,
        images.calibration_images,
        images.reward_images,
    )
    space, settings = opened(workspace, **vars(network), **vars(variant), workers=workers, seed=seed)
    from amc_mobile.workflows.sensitivity import sensitivity as measure_sensitivity  # late, as in `search`

    with output.progress() as progress:
        result = measure_sensitivity(space, settings, wanted, progress=progress, untrained=untrained)
    output.show(result)


def _items(text: str) -> list[str]:
    return [item for item in text.replace(" ", "").split(",") if item]


def _numbers(text: str, kind: Callable[[str], Number], flag: str) -> list[Number]:
    try:
        return [kind(item) for item in _items(text)]
    except ValueError as error:
        raise InvalidConfig(f"{flag} {text!r} is not a list of numbers", next_step=f"{flag} 0,1,2") from error


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
        # Whether a budget was met is told after the command's own document.
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
