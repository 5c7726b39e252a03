"""Flags of the commands, one by one; those that come together are in `cli_groups`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc_mobile.cli_config import read_config

WorkspaceFlag = Annotated[Path, typer.Option("--workspace", help="Folder with the table, templates and runs.")]
ModelFlag = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A name of `models`, torchvision:NAME, timm:NAME, or file.py:function: called with those of num_classes, "
        "input_size (pixels), in_channels and width_multiplier that it takes, it returns an nn.Module.",
    ),
]
CheckpointFlag = Annotated[
    str | None,
    typer.Option("--checkpoint", help="Weights: .safetensors, or what torch.save wrote, e.g. a Lightning .ckpt."),
]
DataFlag = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, shapes, cifar10:PATH, imagefolder:PATH, or file.py:function: returns (train, test), each "
        "(images, labels) with uint8 images (N, C, H, W) or (N, H, W, C) and labels (N,), or a torch Dataset.",
    ),
]
AccuracyFlag = Annotated[
    str | None,
    typer.Option(
        "--accuracy",
        help="file.py:function(outputs, labels) -> number in [0, 1], for networks that do not classify: outputs as the "
        "network returns them for a batch, labels (N, ...) as the data have them.",
    ),
]
LossFlag = Annotated[
    str | None,
    typer.Option("--loss", help="file.py:function(outputs, labels) -> mean loss of a batch, to train by."),
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
RuntimeFlag = Annotated[
    str | None, typer.Option("--runtime", help="tflite, onnxruntime or benchmark_model (.tflite on phones, averages).")
]
TableFlag = Annotated[
    str | None,
    typer.Option(
        "--table",
        help="postgresql+psycopg://USER@HOST/NAME; without: a file in the workspace. Its password: PGPASSWORD, "
        "~/.pgpass or typed; one in the URL holds for this command and is not kept.",
    ),
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
        "--memory-mb",
        help="For a search's matrices, the rest goes to a file, and for refitting; e.g. 500; 0: half of what is free.",
    ),
]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")]
ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with flags, e.g. a line macs_ratio = 0.5 for --macs-ratio 0.5; `amc-mobile config` writes one.",
        is_eager=True,
        callback=read_config,
    ),
]
Bf16Flag = Annotated[
    bool, typer.Option("--bf16", help="Forward passes in bfloat16: up to twice as fast where the CPU has AVX512-BF16.")
]
WorkersFlag = Annotated[
    int | None, typer.Option("--workers", help="Decode image folders as they are used, with so many threads, e.g. 4.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RunFlag = Annotated[str | None, typer.Option("--run", help="Name of the run; default: the last one.")]
AlsoFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--also", help="DEVICE:MS: a latency budget on another device, by its own table, e.g. galaxy:35. Repeatable."
    ),
]
ChannelChoiceFlag = Annotated[
    str, typer.Option("--channel-choice", help="backward, omp, lasso, thinet, taylor, fpgm, l1-rms or l1 (AMC's).")
]
MultipleFlag = Annotated[int, typer.Option("--multiple", help="Kept channels are multiples of this.")]
KeepFlag = Annotated[str, typer.Option("--keep", help="Groups that stay whole: names, patterns, or residual.")]
UntrainedFlag = Annotated[
    bool,
    typer.Option(
        "--untrained", envvar="AMC_MOBILE_UNTRAINED",
        help="Go on with a network that is no better than guessing on the images.",
    ),
]  # fmt: skip
RewardFlag = Annotated[str, typer.Option("--reward", help="fidelity, top1, macs or error-log-macs, -params, -latency.")]
DEFAULT_WORKSPACE = Path("amc-workspace")
