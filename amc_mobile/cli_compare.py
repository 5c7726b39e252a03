"""The `compare` command: policies and seeds at one budget, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from amc_mobile.errors import InvalidConfig
from amc_mobile.terminal import progress_bars, show
from amc_mobile.workflows.workspace import Workspace

Number = TypeVar("Number", int, float)


def compare(
    latency_ms: Annotated[float | None, typer.Option(help="Budget: p50 in ms, measured.")] = None,
    latency_ratio: Annotated[float | None, typer.Option(help="Budget: share of the original's latency.")] = None,
    macs_ratio: Annotated[float | None, typer.Option(help="Budget: share of the original's MACs.")] = None,
    params_ratio: Annotated[float | None, typer.Option(help="Budget: share of the original's parameters.")] = None,
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
    reward: Annotated[str, typer.Option(help="As in search.")] = "fidelity",
    channel_choice: Annotated[str, typer.Option(help="backward or l1.")] = "backward",
    measure_every: Annotated[int, typer.Option(help="Measure every K episodes; 0: new bests only.")] = 50,
    min_keep_ratio: Annotated[float, typer.Option(help="Lowest share of channels kept per group.")] = 0.2,
    multiple: Annotated[int, typer.Option(help="Kept channels are multiples of this.")] = 8,
    calibration_images: Annotated[int, typer.Option(help="Images for the least squares.")] = 1500,
    reward_images: Annotated[int, typer.Option(help="Images for the reward, apart from all others.")] = 128,
    keep: Annotated[str, typer.Option(help="Groups that stay whole: names, patterns, or residual.")] = "",
    finetune_epochs: Annotated[int, typer.Option(help="Fine-tune every plan so long; 0: not.")] = 0,
    model: Annotated[str | None, typer.Option(help="As in search.")] = None,
    data: Annotated[str | None, typer.Option(help="As in search.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Weights.")] = None,
    device: Annotated[str | None, typer.Option(help="As in search.")] = None,
    runtime: Annotated[str | None, typer.Option(help="tflite or onnxruntime.")] = None,
    threads: Annotated[int | None, typer.Option(help="Inference threads that are timed.")] = None,
    width: Annotated[float | None, typer.Option(help="Width multiplier of the network.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Input side in pixels.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder with the table and runs.")] = Path("amc-workspace"),
    config: Annotated[Path | None, typer.Option(help="TOML file with the same keys as the flags.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Compare policies at equal evaluations. Writes compare.json and compare.csv; goes on where it was killed.

    Example: amc-mobile compare --macs-ratio 0.5 --policies uniform,random,ddpg,critic --seeds 0,1,2
    """
    from amc_mobile.workflows.compare import CompareConfig, compare_policies
    from amc_mobile.workflows.search import SearchConfig

    space = Workspace(workspace)
    settings = space.settings(
        config, model=model, data=data, checkpoint=checkpoint, device=device, runtime=runtime,
        threads=threads, width_multiplier=width, input_size=input_size,
    )  # fmt: skip
    search = SearchConfig(
        latency_ms=latency_ms, latency_ratio=latency_ratio, macs_ratio=macs_ratio, params_ratio=params_ratio,
        reward=reward, episodes=episodes, channel_choice=channel_choice, measure_every=measure_every,
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
