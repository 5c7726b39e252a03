"""Commands about phones: what is attached, what is wrong with it, and the runtime libraries for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc_mobile.cli_flags import DEFAULT_WORKSPACE, JsonFlag, RuntimeFlag, WorkspaceFlag
from amc_mobile.terminal import show
from amc_mobile.workflows.workspace import Workspace

runtime_app = typer.Typer(
    help="Inference libraries for phones. Example: amc-mobile runtime list", rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(devices)
    app.command()(doctor)
    app.add_typer(runtime_app, name="runtime")


def devices(as_json: JsonFlag = False) -> None:
    """List the devices that can measure: this computer, and the phones adb sees with the profile each matches.

    Example: amc-mobile devices --json
    """
    from amc_mobile.workflows.devices import devices_text, list_devices

    document = list_devices()
    show(devices_text(document), document, as_json=as_json)


def doctor(
    runtime: RuntimeFlag = None,
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
    from amc_mobile.workflows.devices import doctor_text

    document = examine(Workspace(workspace), runtime, clean=clean)
    show(doctor_text(document), document, as_json=as_json)
    if not document["ok"]:
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
    from amc_mobile.workflows.runtimes import add_runtime, runtimes_text

    document = add_runtime(file, version=version)
    show(runtimes_text(document), document, as_json=as_json)


@runtime_app.command("list")
def runtime_list(as_json: JsonFlag = False) -> None:
    """List the inference libraries for phones that were added.

    Example: amc-mobile runtime list
    """
    from amc_mobile.workflows.runtimes import list_runtimes, runtimes_text

    document = list_runtimes()
    show(runtimes_text(document), document, as_json=as_json)
