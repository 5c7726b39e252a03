"""The `compare` command: policies and seeds at one budget, in one table."""

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
    GranularityFlag,
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
    SizeFlag,
    ThreadsFlag,
    WidthFlag,
    WorkspaceFlag,
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
    budgets: Annotated[str, typer.Option(help="Several ratios of that kind, e.g. 0.3,0.5,0.7.")] = "",
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
    reward_images: RewardImagesFlag = 128,
    keep: KeepFlag = "",
    finetune_epochs: Annotated[int, typer.Option(help="Fine-tune every plan so long; 0: not.")] = 0,
    model: ModelFlag = None,
    data: DataFlag = None,
    checkpoint: CheckpointFlag = None,
    device: DeviceFlag = None,
    runtime: RuntimeFlag = None,
    threads: ThreadsFlag = None,
    memory_mb: MemoryFlag = None,
    width: WidthFlag = None,
    input_size: SizeFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Compare policies at equal evaluations. Writes compare.json and compare.csv; goes on where it was killed.

    Example: amc-mobile compare --macs-ratio 0.5 --policies uniform,random,ddpg,critic --seeds 0,1,2
    """
    from amc_mobile.workflows.compare import CompareConfig, compare_policies
    from amc_mobile.workflows.search import SearchConfig

    space = Workspace(workspace)
    settings = space.settings(
        config, model=model, data=data, checkpoint=checkpoint, device=device, runtime=runtime,
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


def _items(text: str) -> list[str]:
    return [item for item in text.replace(" ", "").split(",") if item]


def _numbers(text: str, kind: Callable[[str], Number], flag: str) -> list[Number]:
    try:
        return [kind(item) for item in _items(text)]
    except ValueError as error:
        raise InvalidConfig(f"{flag} {text!r} is not a list of numbers", next_step=f"{flag} 0,1,2") from error
