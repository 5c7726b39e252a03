"""The command line: each command parses, calls one workflow and prints. Heavy imports happen inside workflows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from amc_mobile import cli_device, cli_table
from amc_mobile.cli_compare import compare, sensitivity
from amc_mobile.cli_flags import (
    DEFAULT_WORKSPACE,
    AlsoFlag,
    Bf16Flag,
    CalibrationFlag,
    ChannelChoiceFlag,
    CheckpointFlag,
    ClockFlag,
    ConditionsFlag,
    ConfigFlag,
    DataFlag,
    DeviceFlag,
    Fp16Flag,
    Fp32Flag,
    GranularityFlag,
    Int8Flag,
    JsonFlag,
    KeepFlag,
    LatencyMsFlag,
    LatencyRatioFlag,
    MacsRatioFlag,
    MeasureEveryFlag,
    MemoryFlag,
    MinKeepRatioFlag,
    ModelFlag,
    OfflineFlag,
    ParamsRatioFlag,
    QuietFlag,
    RewardFlag,
    RewardImagesFlag,
    RunFlag,
    RuntimeFlag,
    SeedFlag,
    SerialFlag,
    SerialsFlag,
    SizeFlag,
    TableFlag,
    ThreadsFlag,
    WaiveFlag,
    WidthFlag,
    WorkersFlag,
    WorkspaceFlag,
    precision_of,
)
from amc_mobile.errors import AmcMobileError
from amc_mobile.terminal import progress_bars, show
from amc_mobile.workflows.workspace import Settings, Workspace, check_settings

app = typer.Typer(
    help="Prune a trained CNN to a latency budget measured on the device.\n\n"
    "Example: amc-mobile profile --device host --model mobilenet_v1 --data digits; "
    "amc-mobile search --latency-ratio 0.5; amc-mobile finetune; amc-mobile export --tflite --onnx; amc-mobile report",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_table.app, name="table")
cli_device.register(app)
app.command()(compare)
app.command()(sensitivity)


def _settings(workspace: Path, config: Path | None = None, **flags: Any) -> tuple[Workspace, Settings]:
    space = Workspace(workspace)
    return space, space.settings(config, **_joined(flags))


def _joined(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that may be repeated, as the settings keep them."""
    return {key: ",".join(value) if isinstance(value, list) else value for key, value in flags.items()}


@app.command()
def models(as_json: JsonFlag = False) -> None:
    """List the networks that are built in.

    Example: amc-mobile models
    """
    from amc_mobile.workflows.listing import list_models, models_text

    document = list_models()
    show(models_text(document), document, as_json=as_json)


@app.command()
def train(
    model: ModelFlag = None,
    data: DataFlag = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of the cosine schedule.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    width: WidthFlag = None,
    input_size: SizeFlag = None,
    bf16: Bf16Flag = False,
    checkpoint: CheckpointFlag = None,
    workers: WorkersFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a network; the workspace remembers it for the next steps. Goes on where it was killed.

    Example: amc-mobile train --model mobilenet_v1 --width 0.25 --data digits --epochs 10
    """
    from amc_mobile.workflows.train import train_network

    space, settings = _settings(
        workspace, config, model=model, data=data, width_multiplier=width, input_size=input_size, checkpoint=checkpoint,
        seed=seed, workers=workers,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        result = train_network(
            space, settings, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16,
            progress=progress,
        )  # fmt: skip
    show(result.text(), result.document(), as_json=as_json)


@app.command()
def profile(
    model: ModelFlag = None,
    data: DataFlag = None,
    checkpoint: CheckpointFlag = None,
    device: DeviceFlag = None,
    serial: SerialsFlag = None,
    waive: WaiveFlag = None,
    clock_mode: ClockFlag = None,
    runtime: RuntimeFlag = None,
    int8: Int8Flag = False,
    fp16: Fp16Flag = False,
    fp32: Fp32Flag = False,
    threads: ThreadsFlag = None,
    table: TableFlag = None,
    width: WidthFlag = None,
    input_size: SizeFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure the kernels of a network on the device: builds the latency table. Resumable at any moment.

    Example: amc-mobile profile --device host --model resnet20 --checkpoint resnet20.th --data cifar10:DIR
    """
    from amc_mobile.workflows.profile import profile_device

    space, settings = _settings(
        workspace, config, model=model, data=data, checkpoint=checkpoint, device=device, serial=serial,
        waive=waive, clock_mode=clock_mode, runtime=runtime,
        precision=precision_of(int8=int8, fp16=fp16, fp32=fp32),
        threads=threads, width_multiplier=width, input_size=input_size, seed=seed,
        table=table,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        result = profile_device(space, settings, progress=progress)
    show(result.text(), result.document(), as_json=as_json)


@app.command()
def search(
    latency_ms: LatencyMsFlag = None,
    latency_ratio: LatencyRatioFlag = None,
    macs_ratio: MacsRatioFlag = None,
    params_ratio: ParamsRatioFlag = None,
    also: AlsoFlag = None,
    policy: Annotated[str, typer.Option(help="How plans are proposed; `compare --help` lists all.")] = "ddpg",
    reward: RewardFlag = "fidelity",
    episodes: Annotated[int, typer.Option(help="Plans to try.")] = 300,
    granularity: GranularityFlag = "channel",
    channel_choice: ChannelChoiceFlag = "backward",
    measure_every: MeasureEveryFlag = 50,
    min_keep_ratio: MinKeepRatioFlag = 0.2,
    multiple: Annotated[
        int | None,
        typer.Option(
            "--multiple",
            help="Kept channels are multiples of this, e.g. 16. Default: what `table probe` found, at least 8.",
        ),
    ] = None,
    calibration_images: CalibrationFlag = 1500,
    reward_images: RewardImagesFlag = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Cheapest plan that loses at most so much accuracy, e.g. 0.01.")
    ] = None,
    keep: KeepFlag = "",
    offline: OfflineFlag = False,
    conditions: ConditionsFlag = None,
    model: ModelFlag = None,
    data: DataFlag = None,
    checkpoint: CheckpointFlag = None,
    device: DeviceFlag = None,
    serial: SerialFlag = None,
    waive: WaiveFlag = None,
    clock_mode: ClockFlag = None,
    runtime: RuntimeFlag = None,
    int8: Int8Flag = False,
    fp16: Fp16Flag = False,
    fp32: Fp32Flag = False,
    threads: ThreadsFlag = None,
    memory_mb: MemoryFlag = None,
    width: WidthFlag = None,
    input_size: SizeFlag = None,
    workers: WorkersFlag = None,
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    seed: SeedFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Find the most accurate plan within the budgets. The same command goes on where it was killed.

    Example: amc-mobile search --latency-ratio 0.5

    One plan for two phones: amc-mobile search --latency-ms 30 --device pixel --also galaxy:35 --macs-ratio 0.6

    With a table that was measured before, and no phone: amc-mobile search --latency-ms 30 --device pixel --offline
    """
    from amc_mobile.workflows.search import search_plan
    from amc_mobile.workflows.search_config import SearchConfig

    space, settings = _settings(
        workspace, config, model=model, data=data, checkpoint=checkpoint, device=device, serial=serial,
        waive=waive, clock_mode=clock_mode, runtime=runtime,
        precision=precision_of(int8=int8, fp16=fp16, fp32=fp32),
        threads=threads, width_multiplier=width, input_size=input_size, seed=seed, offline=offline or None,
        conditions=conditions, workers=workers, memory_mb=memory_mb,
    )  # fmt: skip
    wanted = SearchConfig(
        latency_ms=latency_ms, latency_ratio=latency_ratio, macs_ratio=macs_ratio, params_ratio=params_ratio,
        policy=policy, reward=reward, episodes=episodes, granularity=granularity,
        channel_choice=channel_choice, measure_every=measure_every,
        min_keep_ratio=min_keep_ratio, multiple=multiple, calibration_images=calibration_images,
        reward_images=reward_images, max_loss=max_loss, keep=keep, also=",".join(also or []),
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        result = search_plan(space, settings, wanted, run=run, progress=progress)
    show(result.text(), result.document(), as_json=as_json)


@app.command()
def finetune(
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of the cosine schedule.")] = 0.02,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    ema: Annotated[float, typer.Option(help="Keep a moving average of the weights, e.g. 0.999; 0: the last.")] = 0.0,
    bf16: Bf16Flag = False,
    workers: WorkersFlag = None,
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train the pruned network on, distilled from the original. Keeps the weights unless clearly worse.

    Example: amc-mobile finetune --epochs 20 --ema 0.999
    """
    from amc_mobile.workflows.finetune import finetune_run

    space = Workspace(workspace)
    with progress_bars(quiet) as progress:
        result = finetune_run(
            space, run=run, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16,
            ema_decay=ema, workers=workers, progress=progress,
        )  # fmt: skip
    show(result.text(), result.document(), as_json=as_json)


@app.command()
def export(
    tflite: Annotated[bool, typer.Option("--tflite", help="Write model.tflite.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx.")] = False,
    int8: Int8Flag = False,
    fp16: Fp16Flag = False,
    fp32: Fp32Flag = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not measure: the files are written and a latency budget stays open.")
    ] = False,
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write the pruned network, check it against torch, measure it. Exit 3: budget missed; 4: not measured.

    Without --int8, --fp16 or --fp32: as the run was searched. int8 takes its ranges from calibration images.

    Example: amc-mobile export --tflite --onnx
    """
    from amc_mobile.workflows.export import export_run

    formats = [name for name, wanted in (("tflite", tflite), ("onnx", onnx)) if wanted]
    if not formats:
        raise typer.BadParameter("choose at least one of --tflite, --onnx")
    precision = precision_of(int8=int8, fp16=fp16, fp32=fp32)
    with progress_bars(quiet) as progress:
        result = export_run(
            Workspace(workspace), run=run, formats=formats, precision=precision, progress=progress, offline=offline
        )
    show(result.text(), result.document(), as_json=as_json)
    result.raise_if_over_budget()


@app.command()
def measure(
    file: Annotated[Path, typer.Argument(help="A .tflite or .onnx file.")],
    threads: Annotated[int, typer.Option(help="Inference threads.")] = 1,
    device: DeviceFlag = "host",
    serial: SerialFlag = None,
    waive: WaiveFlag = None,
    clock_mode: ClockFlag = None,
    runtime: RuntimeFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure the latency of one file on the device.

    Example: amc-mobile measure model.tflite --device pixel --threads 2
    """
    from amc_mobile.workflows.measure import measure_file

    flags: dict[str, Any] = {
        "device": device,
        "serial": serial,
        "waive": waive,
        "clock_mode": clock_mode,
        "runtime": runtime,
        "threads": threads,
    }
    settings = Settings(**{key: value for key, value in _joined(flags).items() if value is not None})
    check_settings(settings)
    with progress_bars(quiet) as progress:
        result = measure_file(file, settings, progress=progress)
    show(result.text(), result.document(), as_json=as_json)


@app.command()
def report(
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
) -> None:
    """Write report.html, report.json and layers.csv of a run, and print it.

    Example: amc-mobile report
    """
    from amc_mobile.workflows.report import report_run

    result = report_run(Workspace(workspace), run=run)
    show(result.text(), result.document(), as_json=as_json)


def main() -> None:
    """Runs the command line; turns our errors into `error: ...` and their exit code."""
    try:
        app()
    except AmcMobileError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.next_step:
            print(f"next: {error.next_step}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(130) from None
