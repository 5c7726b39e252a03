"""Flags that come together: a command takes each group as one parameter.

`expand_groups` shows Typer the single flags in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, Protocol, get_type_hints

import typer

from amc_mobile.cli_flags import (
    DEFAULT_WORKSPACE,
    AccuracyFlag,
    ChannelChoiceFlag,
    CheckpointFlag,
    DataFlag,
    DeviceFlag,
    JsonFlag,
    LossFlag,
    ModelFlag,
    RuntimeFlag,
    SerialFlag,
    ThreadsFlag,
    WorkspaceFlag,
)
from amc_mobile.terminal import progress_bars, show
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.workspace import Settings, Workspace


@dataclass(frozen=True)
class NetworkFlags:
    """Which network, on which images, with which weights."""

    model: ModelFlag = None
    data: DataFlag = None
    checkpoint: CheckpointFlag = None
    accuracy: AccuracyFlag = None
    loss: LossFlag = None


@dataclass(frozen=True)
class VariantFlags:
    """How wide the network is and what it looks at."""

    width_multiplier: Annotated[
        float | None, typer.Option("--width", help="Width multiplier of the network, e.g. 0.5.")
    ] = None
    input_size: Annotated[
        int | None,
        typer.Option(help="Input height and width in pixels. Default: the network's own, else that of the images."),
    ] = None


@dataclass(frozen=True)
class StateFlags:
    """In what state the device measures."""

    waive: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure in spite of a problem, e.g. HOT; BUSY: as if no other program ran. "
            "WIDE_BAND: search with a table that predicts badly. Repeatable."
        ),
    ] = None
    clock_mode: Annotated[
        str | None, typer.Option(help="unlocked, or fixed_performance: Android's sustainable clocks.")
    ] = None


@dataclass(frozen=True)
class MeasuringFlags(StateFlags):
    """How the device measures."""

    runtime: RuntimeFlag = None


@dataclass(frozen=True)
class PrecisionFlags:
    """What the files compute in."""

    int8: Annotated[
        bool, typer.Option("--int8", help="Files in int8, e.g. `profile --int8`; the workspace remembers it.")
    ] = False
    fp16: Annotated[bool, typer.Option("--fp16", help="Files with float16 weights, e.g. `profile --fp16`.")] = False
    fp32: Annotated[bool, typer.Option("--fp32", help="Back to float32, e.g. `profile --fp32` after `--int8`.")] = False

    def chosen(self) -> str | None:
        """None where no flag was given: as the workspace remembers it."""
        chosen = [name for name, flag in (("int8", self.int8), ("float16", self.fp16), ("float32", self.fp32)) if flag]
        if len(chosen) > 1:
            raise typer.BadParameter("choose one of --int8, --fp16, --fp32")
        return chosen[0] if chosen else None


@dataclass(frozen=True)
class BudgetFlags:
    """What a plan may cost at most."""

    latency_ms: Annotated[float | None, typer.Option(help="Budget: p50 in ms, measured.")] = None
    latency_ratio: Annotated[float | None, typer.Option(help="Budget: share of the original's latency.")] = None
    macs_ratio: Annotated[float | None, typer.Option(help="Budget: share of the original's MACs.")] = None
    params_ratio: Annotated[float | None, typer.Option(help="Budget: share of the original's parameters.")] = None


@dataclass(frozen=True)
class PruningFlags:
    """What is cut, and which plans are measured."""

    granularity: Annotated[
        str, typer.Option(help="channel; or weight: single weights (fine-grained), e.g. with --params-ratio 0.3.")
    ] = "channel"
    channel_choice: ChannelChoiceFlag = "backward"
    measure_every: Annotated[int, typer.Option(help="Measure every K episodes; 0: new bests only.")] = 50
    min_keep_ratio: Annotated[
        float, typer.Option(help="Lowest share of channels kept per group, of weights per convolution.")
    ] = 0.2


@dataclass(frozen=True)
class ImageFlags:
    """How many images the search looks at."""

    calibration_images: Annotated[
        int, typer.Option(help="Images for the least squares, at most a third of the training images.")
    ] = 1500
    reward_images: Annotated[
        int | None,
        typer.Option(
            help="Images for the reward, apart from all others; at most a third of the training images. Default: 256, "
            "at most a tenth.",
        ),
    ] = None


class Result(Protocol):
    """What a workflow returns: for people and for machines."""

    def text(self) -> str: ...

    def document(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class OutputFlags:
    """What is printed, on stdout and stderr."""

    as_json: JsonFlag = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False

    def progress(self) -> AbstractContextManager[Progress]:
        return progress_bars(self.quiet)

    def show(self, result: Result) -> None:
        show(result.text(), result.document(), as_json=self.as_json)


@dataclass(frozen=True)
class StoredFlags(MeasuringFlags, VariantFlags, NetworkFlags):
    """Which of the tables that are already there, and how its device measures."""

    device: DeviceFlag = None
    serial: SerialFlag = None
    threads: ThreadsFlag = None
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE

    def opened(self) -> tuple[Workspace, Settings]:
        flags = dict(vars(self))
        return opened(flags.pop("workspace"), **flags)


def opened(workspace: Path, **flags: Any) -> tuple[Workspace, Settings]:
    """The workspace, and its settings with `flags` on top: fields of Settings, None where not given."""
    space = Workspace(workspace)
    return space, space.settings(**joined(flags))


def joined(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that may be repeated, as the settings keep them."""
    return {key: ",".join(value) if isinstance(value, list) else value for key, value in flags.items()}


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for Typer: each parameter that is a dataclass gives way to the dataclass's fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group: type[Any] = parameter.annotation
        if is_dataclass(group):
            groups[parameter.name] = group
            parameters += _parameters_of(group)
        else:
            parameters.append(parameter)

    @wraps(command)
    def expanded(**flags: Any) -> None:
        for name, group in groups.items():
            flags[name] = group(**{flag.name: flags.pop(flag.name) for flag in fields(group)})
        command(**flags)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


@cache
def _parameters_of(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=flag.default, annotation=hints[flag.name])
        for flag in fields(group)
    ]
