"""The commands that train: `train` before a search, `finetune` after it."""

from __future__ import annotations

from typing import Annotated

import typer

from amc_mobile.cli_flags import (
    DEFAULT_WORKSPACE,
    AccuracyFlag,
    Bf16Flag,
    ConfigFlag,
    DataFlag,
    LossFlag,
    ModelFlag,
    RunFlag,
    SeedFlag,
    WorkersFlag,
    WorkspaceFlag,
)
from amc_mobile.cli_groups import OutputFlags, VariantFlags, expand_groups, opened
from amc_mobile.workflows.workspace import Workspace


@expand_groups
def train(
    *,
    model: ModelFlag = None,
    data: DataFlag = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak rate of the cosine schedule, e.g. 0.05. Default: 0.1; of detectors 0.01.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    variant: VariantFlags,
    bf16: Bf16Flag = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
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
    from amc_mobile.workflows.train import train_network

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
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak rate of the cosine schedule, e.g. 0.01. Default: 0.02; of detectors 0.002."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    ema: Annotated[float, typer.Option(help="Keep a moving average of the weights, e.g. 0.999; 0: the last.")] = 0.0,
    bf16: Bf16Flag = False,
    workers: WorkersFlag = None,
    run: RunFlag = None,
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    output: OutputFlags,
) -> None:
    """Train the pruned network on, distilled from the original. Keeps the weights unless clearly worse.

    Example: amc-mobile finetune --epochs 20 --ema 0.999
    """
    from amc_mobile.workflows.finetune import finetune_run

    space = Workspace(workspace)
    with output.progress() as progress:
        result = finetune_run(
            space, run=run, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, bf16=bf16,
            ema_decay=ema, workers=workers, progress=progress,
        )  # fmt: skip
    output.show(result)
