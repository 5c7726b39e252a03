"""The inference libraries for phones: adding one, and which there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amc_mobile.device.runtime_library import MAVEN, RuntimeLibrary, add_library, list_libraries
from amc_mobile.device.user_folder import runtimes_folder


def add_runtime(file: Path, *, version: str | None) -> dict[str, Any]:
    """Adds the libraries in a file. Raises InvalidInput, InvalidConfig or CorruptFile."""
    return _document(add_library(file, runtimes_folder(), version=version))


def list_runtimes() -> dict[str, Any]:
    return _document(list_libraries(runtimes_folder()))


def _document(libraries: Sequence[RuntimeLibrary]) -> dict[str, Any]:
    return {"runtimes": [{**asdict(library), "path": str(library.path)} for library in libraries]}


def runtimes_text(document: dict[str, Any]) -> str:
    from amc_mobile.report.tables import render_rows

    rows = [
        [row["runtime"], row["version"], row["abi"], row["libc"], row["sha256"][:16], row["path"]]
        for row in document["runtimes"]
    ]
    if not rows:
        return f"no runtime library yet; download an AAR from Maven ({MAVEN}), then `amc-mobile runtime add FILE.aar`"
    table = render_rows(["runtime", "version", "processor", "C library", "sha256", "file"], rows)
    foreign = any(row["libc"] == "glibc" for row in document["runtimes"])
    return table + ("\nLibraries for glibc run on Linux computers, not on Android." if foreign else "")
