"""The commands that set many plans side by side: `compare` and `sensitivity`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from amc_mobile.cli_options import (
    DEFAULT_WORKSPACE,
    AlsoFlag,
    BudgetFlags,
    ChannelChoiceFlag,
    ConditionsFlag,
    ConfigFlag,
    DeviceFlag,
    ImageFlags,
    KeepFlag,
    MeasuringFlags,
    MemoryFlag,
    MultipleFlag,
    NetworkFlags,
    OfflineFlag,
    OutputFlags,
    PrecisionFlags,
    PruningFlags,
    RewardFlag,
    SeedFlag,
    SerialFlag,
    ThreadsFlag,
    UntrainedFlag,
    VariantFlags,
    WorkersFlag,
    WorkspaceFlag,
    budget_option,
    expand_groups,
    opened,
    search_option,
)
from amc_mobile.errors import InvalidConfig

Number = TypeVar("Number", int, float)


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
