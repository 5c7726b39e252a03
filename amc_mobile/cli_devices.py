"""Commands about phones, runtime libraries and latency tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from amc_mobile.cli_options import (
    DEFAULT_WORKSPACE,
    OF_DEVICE,
    OF_NETWORK,
    CommandLine,
    JsonFlag,
    Opened,
    OutputFlags,
    WorkspaceFlag,
    expand_groups,
    given_settings,
    opened_settings,
    show,
)  # fmt: skip
from amc_mobile.errors import InvalidConfig
from amc_mobile.workflows.workspace import Workspace

STORED = opened_settings(*OF_NETWORK, *OF_DEVICE)  # which of the tables that are there, and how its device measures
runtime_app = CommandLine(help="Inference libraries for phones. Example: amc-mobile runtime list")


def devices(as_json: JsonFlag = False) -> None:
    """List the devices that can measure: this computer, and the phones adb sees with the profile each matches.

    Example: amc-mobile devices --json
    """
    from amc_mobile.workflows.devices import list_devices

    listed = list_devices()
    show(listed, as_json=as_json)


@expand_groups
def doctor(
    *,
    given: dict[str, Any] = given_settings("runtime"),
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean", help="Remove amc-mobile's files from the phones: runners, libraries, models, unfinished batches."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what keeps a phone from measuring, and what to do about it. Exit 1 when something does.

    Runs a tiny network on the phone with each library that was added. Without --runtime it asks for the one that the
    workspace used last.

    Example: amc-mobile doctor --runtime onnxruntime
    """
    from amc_mobile.workflows.devices import doctor as examine

    diagnosis = examine(Workspace(workspace), clean=clean, **given)
    show(diagnosis, as_json=as_json)
    if not diagnosis.ok:
        raise typer.Exit(1)


@runtime_app.command("add")
def runtime_add(
    file: Annotated[Path, typer.Argument(help="An .aar from Maven, a wheel, a shared library, or a benchmark_model.")],
    version: Annotated[
        str | None, typer.Option("--version", help="Where the file's name does not tell: 1.2.3.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Take the inference libraries for phones out of a file and keep them.

    Example: amc-mobile runtime add onnxruntime-android-1.29.0.aar
    """
    from amc_mobile.workflows.devices import add_runtime

    added = add_runtime(file, version=version)
    show(added, as_json=as_json)


@runtime_app.command("list")
def runtime_list(as_json: JsonFlag = False) -> None:
    """List the inference libraries for phones that were added.

    Example: amc-mobile runtime list
    """
    from amc_mobile.workflows.devices import list_runtimes

    listed = list_runtimes()
    show(listed, as_json=as_json)


app = CommandLine(help="Look into the latency table, take it elsewhere, check it. Example: amc-mobile table show")


@app.command("show")
def table_show(workspace: WorkspaceFlag = DEFAULT_WORKSPACE, as_json: JsonFlag = False) -> None:
    """Show what the latency table holds, per device and conditions.

    Example: amc-mobile table show --json
    """
    shown = Workspace(workspace).table()
    show(shown, as_json=as_json)


@app.command("export")
def table_export(
    file: Annotated[Path, typer.Argument(help="A .jsonl bundle that can be imported, or a .csv to be read.")],
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
) -> None:
    """Write the latency table to a file.

    Example: amc-mobile table export table.jsonl
    """
    result = Workspace(workspace).export_table(file)
    show(result, as_json=as_json)


@app.command("import")
@expand_groups
def table_import(
    *,
    file: Annotated[Path, typer.Argument(help="A bundle, or with --csv a table of another tool.")],
    csv: Annotated[bool, typer.Option("--csv", help="A CSV file: one kernel per line.")] = False,
    kernel: Annotated[str, typer.Option(help="Columns that together name a kernel, with commas.")] = "kernel",
    ms: Annotated[str, typer.Option(help="Column of the milliseconds.")] = "ms",
    run: Annotated[str | None, typer.Option(help="Column that tells repeated runs apart.")] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="Columns of the kernels' shapes, FIELD=COLUMN with commas: operator, in_channels, out_channels, and "
            "where there are any out_size, stride, window. Makes the table usable by `search --offline`."
        ),
    ] = "",
    network: Annotated[
        str | None, typer.Option(help="Column that says which whole model a kernel is part of: gives the error band.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="What was measured on, e.g. pixel1; needed with --csv.")] = None,
    soc: Annotated[str | None, typer.Option(help="Its processor.")] = None,
    given: dict[str, Any] = given_settings("runtime", "threads"),
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
) -> None:
    """Add a bundle, or a table of another tool, to the latency table. Other conditions stay apart.

    Example: amc-mobile table import layers.csv --csv --device pixel_1 --kernel model,layer --ms avg_ms --run run
    --shape operator=kind,in_channels=cin,out_channels=cout,out_size=hout,stride=stride --network model
    """
    space = Workspace(workspace)
    if csv:
        if not device:
            raise InvalidConfig("a CSV file does not say what was measured on", next_step="pass --device NAME")
        columns = [name.strip() for name in kernel.split(",") if name.strip()]
        result = space.import_csv(
            file, device=device, kernel=columns, ms=ms, run=run, shape=_shape_columns(shape), network=network,
            soc=soc, **given,
        )  # fmt: skip
    else:
        result = space.import_table(file)
    show(result, as_json=as_json)


def _shape_columns(text: str) -> dict[str, str]:
    """`operator=kind,in_channels=cin` as a mapping. Raises InvalidConfig for unknown fields and missing ones."""
    from amc_mobile.latency.table_files import NEEDED_FIELDS, SHAPE_FIELDS

    found = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, column = part.partition("=")
        if name not in SHAPE_FIELDS or not column:
            raise InvalidConfig(f"--shape {part!r} is not FIELD=COLUMN", next_step=f"fields: {', '.join(SHAPE_FIELDS)}")
        found[name] = column
    missing = [name for name in NEEDED_FIELDS if found and name not in found]
    if missing:
        raise InvalidConfig(f"--shape lacks {', '.join(missing)}", next_step="name their columns, FIELD=COLUMN")
    return found


@app.command("merge")
def table_merge(
    other: Annotated[Path, typer.Argument(help="The table.sqlite of another workspace.")],
    workspace: WorkspaceFlag = DEFAULT_WORKSPACE,
    as_json: JsonFlag = False,
) -> None:
    """Add the table of another workspace. Measurements that both have are taken once.

    Example: amc-mobile table merge other/amc-workspace/table.sqlite
    """
    result = Workspace(workspace).merge_table(other)
    show(result, as_json=as_json)


@app.command("verify")
@expand_groups
def table_verify(
    *,
    stored: Opened = STORED,
    output: OutputFlags,
) -> None:
    """Measure eight kernels again. Exit 1 when they no longer agree with the table.

    Example: amc-mobile table verify
    """
    from amc_mobile.workflows.table import verify_table

    with output.progress() as progress:
        result = verify_table(*stored, progress=progress)
    output.show(result)


@app.command("adopt")
@expand_groups
def table_adopt(
    *,
    stored: Opened = STORED,
    output: OutputFlags,
) -> None:
    """After an update of the system or the runtime: take over the old kernels where eight of them say they still hold.

    Example: amc-mobile table adopt
    """
    from amc_mobile.workflows.table import adopt_table

    with output.progress() as progress:
        result = adopt_table(*stored, progress=progress)
    output.show(result)


@app.command("probe")
@expand_groups
def table_probe(
    *,
    stored: Opened = STORED,
    output: OutputFlags,
) -> None:
    """Find which multiples of channels the device prefers: a search then keeps such multiples. Resumable.

    Example: amc-mobile table probe --device pixel
    """
    from amc_mobile.workflows.table import probe_device

    with output.progress() as progress:
        result = probe_device(*stored, progress=progress)
    output.show(result)


@app.command("plot")
@expand_groups
def table_plot(
    *,
    kernel: Annotated[str, typer.Option(help="Module path of the layer, as in the report.")],
    file: Annotated[Path, typer.Option("--out", help="The SVG file.")] = Path("kernel.svg"),
    stored: Opened = STORED,
    output: OutputFlags,
) -> None:
    """Draw a kernel's latency over its channels: every measured point, and what is predicted.

    Example: amc-mobile table plot --kernel features.2.conv --out kernel.svg
    """
    from amc_mobile.workflows.table import plot_kernel

    with output.progress() as progress:
        result = plot_kernel(*stored, kernel, file, progress=progress)
    output.show(result)
