"""The flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WorkspaceFlag = Annotated[Path, typer.Option("--workspace", help="Folder with the table, templates and runs.")]
ModelFlag = Annotated[
    str | None, typer.Option("--model", help="A name of `models`, file.py:function, torchvision:NAME, timm:NAME.")
]
CheckpointFlag = Annotated[str | None, typer.Option("--checkpoint", help="Weights: .safetensors, or .pt/.th.")]
DataFlag = Annotated[
    str | None, typer.Option("--data", help="digits, shapes, cifar10:PATH, imagefolder:PATH or file.py:function.")
]
DeviceFlag = Annotated[
    str | None, typer.Option("--device", help="host: this computer; or a phone's profile, e.g. pixel: see `devices`.")
]
SerialFlag = Annotated[str | None, typer.Option("--serial", help="Which phone, where several fit --device.")]
SerialsFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--serial",
        help="Which phone, where several fit --device. Repeat it for phones of one model that share the work, e.g. "
        "--serial A --serial B: the table speaks of the first.",
    ),
]
WaiveFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--waive", help="Measure in spite of a problem, e.g. HOT; BUSY: as if no other program ran. Repeatable."
    ),
]
ClockFlag = Annotated[
    str | None, typer.Option("--clock-mode", help="unlocked, or fixed_performance: Android's sustainable clocks.")
]
RuntimeFlag = Annotated[
    str | None, typer.Option("--runtime", help="tflite, onnxruntime or benchmark_model (.tflite on phones, averages).")
]
Int8Flag = Annotated[
    bool, typer.Option("--int8", help="Files in int8, e.g. `profile --int8`; the workspace remembers it.")
]
Fp16Flag = Annotated[bool, typer.Option("--fp16", help="Files with float16 weights, e.g. `profile --fp16`.")]
Fp32Flag = Annotated[bool, typer.Option("--fp32", help="Back to float32, e.g. `profile --fp32` after `--int8`.")]
TableFlag = Annotated[
    str | None, typer.Option("--table", help="postgresql+psycopg://USER@HOST/NAME; without: a file in the workspace.")
]
OfflineFlag = Annotated[
    bool,
    typer.Option("--offline", help="Without the device: the table predicts, nothing is measured, no gate is passed."),
]
ConditionsFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--conditions",
        help="With --offline, where several of the table fit: a key as listed, e.g. 1a2b3c4d. Repeatable.",
    ),
]
ThreadsFlag = Annotated[int | None, typer.Option("--threads", help="Inference threads that are timed.")]
MemoryFlag = Annotated[
    int | None,
    typer.Option(
        "--memory-mb", help="For a search's matrices, the rest goes to a file, e.g. 500; 0: half of what is free."
    ),
]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")]
WidthFlag = Annotated[float | None, typer.Option("--width", help="Width multiplier of the network, e.g. 0.5.")]
SizeFlag = Annotated[int | None, typer.Option("--input-size", help="Input height and width in pixels.")]
ConfigFlag = Annotated[Path | None, typer.Option("--config", help="TOML file with the same keys as the flags.")]
Bf16Flag = Annotated[
    bool, typer.Option("--bf16", help="Forward passes in bfloat16: up to twice as fast where the CPU has AVX512-BF16.")
]
WorkersFlag = Annotated[
    int | None, typer.Option("--workers", help="Decode image folders as they are used, with so many threads, e.g. 4.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
RunFlag = Annotated[str | None, typer.Option("--run", help="Name of the run; default: the last one.")]
LatencyMsFlag = Annotated[float | None, typer.Option("--latency-ms", help="Budget: p50 in ms, measured.")]
LatencyRatioFlag = Annotated[
    float | None, typer.Option("--latency-ratio", help="Budget: share of the original's latency.")
]
MacsRatioFlag = Annotated[float | None, typer.Option("--macs-ratio", help="Budget: share of the original's MACs.")]
ParamsRatioFlag = Annotated[
    float | None, typer.Option("--params-ratio", help="Budget: share of the original's parameters.")
]
AlsoFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--also", help="DEVICE:MS: a latency budget on another device, by its own table, e.g. galaxy:35. Repeatable."
    ),
]
ChannelChoiceFlag = Annotated[
    str, typer.Option("--channel-choice", help="backward, omp, lasso, thinet, taylor, fpgm, l1-rms or l1 (AMC's).")
]
MeasureEveryFlag = Annotated[int, typer.Option("--measure-every", help="Measure every K episodes; 0: new bests only.")]
MinKeepRatioFlag = Annotated[
    float, typer.Option("--min-keep-ratio", help="Lowest share of channels kept per group, of weights per convolution.")
]
GranularityFlag = Annotated[
    str,
    typer.Option(
        "--granularity", help="channel; or weight: single weights (fine-grained), e.g. with --params-ratio 0.3."
    ),
]
MultipleFlag = Annotated[int, typer.Option("--multiple", help="Kept channels are multiples of this.")]
CalibrationFlag = Annotated[int, typer.Option("--calibration-images", help="Images for the least squares.")]
RewardImagesFlag = Annotated[
    int | None,
    typer.Option(
        "--reward-images",
        help="Images for the reward, apart from all others. Default: 256, at most a tenth of the training images.",
    ),
]
KeepFlag = Annotated[str, typer.Option("--keep", help="Groups that stay whole: names, patterns, or residual.")]
RewardFlag = Annotated[str, typer.Option("--reward", help="fidelity, top1, macs or error-log-macs, -params, -latency.")]
DEFAULT_WORKSPACE = Path("amc-workspace")


def precision_of(*, int8: bool, fp16: bool, fp32: bool) -> str | None:
    """None where no flag was given: as the workspace remembers it."""
    chosen = [name for name, flag in (("int8", int8), ("float16", fp16), ("float32", fp32)) if flag]
    if len(chosen) > 1:
        raise typer.BadParameter("choose one of --int8, --fp16, --fp32")
    return chosen[0] if chosen else None
