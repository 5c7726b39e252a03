"""The commands that set many plans side by side: `compare` and `sensitivity`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from amc_mobile.cli_flags import (
    DEFAULT_WORKSPACE,
    CalibrationFlag,
    ChannelChoiceFlag,
    CheckpointFlag,
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
    MultipleFlag,
    ParamsRatioFlag,
    QuietFlag,
    RewardFlag,
    RewardImagesFlag,
    RuntimeFlag,
    SeedFlag,
    SizeFlag,
    ThreadsFlag,
    WidthFlag,
    WorkspaceFlag,
    precision_of,
)
from amc_mobile.errors import InvalidConfig
from amc_mobile.terminal import progress_bars, show
from amc_mobile.workflows.workspace import Workspace

Number = TypeVar("Number", int, float)


def compare(
    latency_ms: LatencyMsFlag = None,
    latency_ratio: LatencyRatioFlag = None,
    macs_ratio: MacsRatioFlag = None,
    params_ratio: ParamsRatioFlag = None,
    budgets: Annotated[str, typer.Option(help="Several ratios of that kind for the front, e.g. 0.3,0.5,0.7.")] = "",
    policies: Annotated[
        str,
        typer.Option(
            help="Any of ddpg, ddpg-sequential, critic, evolution, cma, netadapt, random, uniform, shallow, deep, dp, "
            "from-file:PATH, separated by commas."
        ),
    ] = "uniform,random,ddpg,evolution,critic,dp",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    episodes: Annotated[int, typer.Option(help="Plans each policy tries.")] = 300,
    reward: RewardFlag = "fidelity",
    granularity: GranularityFlag = "channel",
    channel_choice: ChannelChoiceFlag = "backward",
    measure_every: MeasureEveryFlag = 50,
    min_keep_ratio: MinKeepRatioFlag = 0.2,
    multiple: MultipleFlag = 8,
    calibration_images: CalibrationFlag = 1500,
    reward_images: RewardImagesFlag = None,
    keep: KeepFlag = "",
    finetune_epochs: Annotated[int, typer.Option(help="Fine-tune every plan so long; 0: not.")] = 0,
    model: ModelFlag = None,
    data: DataFlag = None,
    checkpoint: CheckpointFlag = None,
    device: DeviceFlag = None,
    runtime: RuntimeFlag = None,
    int8: Int8Flag = False,
    fp16: Fp16Flag = False,
    fp32: Fp32Flag = False,
    threads: ThreadsFlag = None,
    memory_mb: MemoryFlag = None,
    width: WidthFlag = None,
    input_size: SizeFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare policies at equal evaluations. Writes compare.html, .json, .csv and the pictures as .svg; resumable.

    Example: amc-mobile compare --macs-ratio 0.5 --policies uniform,random,ddpg,critic --seeds 0,1,2
    """
    from amc_mobile.workflows.compare import CompareConfig, compare_policies
    from amc_mobile.workflows.search_config import SearchConfig

    space = Workspace(workspace)
    settings = space.settings(
        config, model=model, data=data, checkpoint=checkpoint, device=device, runtime=runtime,
        precision=precision_of(int8=int8, fp16=fp16, fp32=fp32),
        threads=threads, width_multiplier=width, input_size=input_size, memory_mb=memory_mb,
    )  # fmt: skip
    search = SearchConfig(
        latency_ms=latency_ms, latency_ratio=latency_ratio, macs_ratio=macs_ratio, params_ratio=params_ratio,
        reward=reward, episodes=episodes, granularity=granularity,
        channel_choice=channel_choice, measure_every=measure_every,
        min_keep_ratio=min_keep_ratio, multiple=multiple, calibration_images=calibration_images,
        reward_images=reward_images, keep=keep,
    )  # fmt: skip
    wanted = CompareConfig(
        search, tuple(_items(policies)), tuple(_numbers(seeds, int, "--seeds")),
        tuple(_numbers(budgets, float, "--budgets")), finetune_epochs,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        result = compare_policies(space, settings, wanted, progress=progress)
    show(result.text(), result.document(), as_json=as_json)


def sensitivity(
    ratios: Annotated[str, typer.Option(help="Keep ratios, separated by commas.")] = "0.25,0.5,0.75",
    multiple: Annotated[int, typer.Option("--multiple", help="Round kept channels up to multiples of this.")] = 1,
    channel_choice: ChannelChoiceFlag = "backward",
    calibration_images: CalibrationFlag = 1500,
    reward_images: RewardImagesFlag = None,
    model: ModelFlag = None,
    data: DataFlag = None,
    checkpoint: CheckpointFlag = None,
    width: WidthFlag = None,
    input_size: SizeFlag = None,
    seed: SeedFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Accuracy with one channel group cut and all others whole: table, sensitivity.html, .svg, .json; resumable.

    Example: amc-mobile sensitivity --ratios 0.25,0.5,0.75
    """
    from amc_mobile.workflows.sensitivity import SensitivityConfig
    from amc_mobile.workflows.sensitivity import sensitivity as measure_sensitivity

    space = Workspace(workspace)
    settings = space.settings(
        config, model=model, data=data, checkpoint=checkpoint, width_multiplier=width, input_size=input_size, seed=seed
    )
    wanted = SensitivityConfig(
        tuple(_numbers(ratios, float, "--ratios")), multiple, channel_choice, calibration_images, reward_images
    )
    with progress_bars(quiet) as progress:
        result = measure_sensitivity(space, settings, wanted, progress=progress)
    show(result.text(), result.document(), as_json=as_json)


def _items(text: str) -> list[str]:
    return [item for item in text.replace(" ", "").split(",") if item]


def _numbers(text: str, kind: Callable[[str], Number], flag: str) -> list[Number]:
    try:
        return [kind(item) for item in _items(text)]
    except ValueError as error:
        raise InvalidConfig(f"{flag} {text!r} is not a list of numbers", next_step=f"{flag} 0,1,2") from error
