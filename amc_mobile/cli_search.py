"""The command that searches a plan within the budgets."""

from __future__ import annotations

from typing import Annotated

import typer

from amc_mobile.cli_flags import (
    DEFAULT_WORKSPACE,
    AlsoFlag,
    ConditionsFlag,
    ConfigFlag,
    DeviceFlag,
    KeepFlag,
    MemoryFlag,
    OfflineFlag,
    RewardFlag,
    RunFlag,
    SeedFlag,
    SerialFlag,
    ThreadsFlag,
    UntrainedFlag,
    WorkersFlag,
    WorkspaceFlag,
)
from amc_mobile.cli_groups import (
    BudgetFlags,
    ImageFlags,
    MeasuringFlags,
    NetworkFlags,
    OutputFlags,
    PrecisionFlags,
    PruningFlags,
    VariantFlags,
    expand_groups,
    opened,
)


@expand_groups
def search(
    *,
    budgets: BudgetFlags,
    also: AlsoFlag = None,
    policy: Annotated[str, typer.Option(help="How plans are proposed; `compare --help` lists all.")] = "critic",
    reward: RewardFlag = "fidelity",
    episodes: Annotated[int, typer.Option(help="Plans to try.")] = 300,
    pruning: PruningFlags,
    multiple: Annotated[
        int | None,
        typer.Option(
            "--multiple",
            help="Kept channels are multiples of this, e.g. 16. Default: what `table probe` found, at least 8.",
        ),
    ] = None,
    images: ImageFlags,
    untrained: UntrainedFlag = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
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
