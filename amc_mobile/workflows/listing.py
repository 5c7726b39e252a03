"""What there is: networks, and what a latency table holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amc_mobile.device.conditions import readable
from amc_mobile.errors import InvalidInput
from amc_mobile.workflows.workspace import Workspace


def list_models() -> dict[str, Any]:
    from amc_mobile.models.registry import MODELS

    return {
        "models": [
            {"name": entry.name, "summary": entry.summary, "default_input_size": entry.default_input_size}
            for entry in MODELS.values()
        ]
    }


def models_text(document: dict[str, Any]) -> str:
    from amc_mobile.report.tables import render_rows

    rows = [[row["name"], f"{row['default_input_size']} px", row["summary"]] for row in document["models"]]
    return (
        render_rows(["model", "input", "what it is"], rows)
        + "\nAlso: path/to/file.py:function, torchvision:NAME, timm:NAME (where installed)"
    )


def show_table(space: Workspace) -> dict[str, Any]:
    from amc_mobile.latency.probe import stored_steps
    from amc_mobile.latency.table import LatencyTable

    location = space.table_location()
    if location == space.table_path and not space.table_path.exists():
        raise InvalidInput(f"no latency table in {space.folder}", next_step="run `amc-mobile profile` first")
    with LatencyTable(location) as table:
        document = table.summary()
        for entry, conditions in zip(document["conditions"], table.conditions(), strict=True):
            entry["steps"] = [steps.to_document() for steps in stored_steps(table, conditions)]
    return document


def table_text(document: dict[str, Any]) -> str:
    from amc_mobile.report.tables import render_rows

    parts = []
    for entry in document["conditions"]:
        shown = readable(entry["conditions"])
        heading = ", ".join(f"{key} {value}" for key, value in shown.items() if value not in ("", None))
        rows = [
            [row["label"], f"{row['low_ms']:.4f}", str(row["passes"]), " ".join(row["flags"])]
            for row in entry["kernels"]
        ]
        parts.append(f"{heading}\n" + render_rows(["kernel", "ms (lowest p20)", "passes", "flags"], rows))
        parts.append(f"{len(entry['kernels'])} kernels, {entry['model_measurements']} whole models")
        if entry["steps"]:
            parts.append(steps_text(entry["steps"]))
    return "\n".join(parts) if parts else "the table is empty"


def steps_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a probe found, a type and axis a line."""
    from amc_mobile.report.tables import render_rows

    headers = ["kernel", "type", "channels", "filled up to", "slower unless", "by", "points", "ms", "widest"]
    cells = [
        [
            row["name"], row["dtype"], row["axis"],
            f"multiples of {row['tile']}" if row["tile"] > 1 else "-",
            f"multiples of {row['aligned']}" if row["aligned"] > 1 else "-",
            f"{row['slowdown']:.0%}" if row["aligned"] > 1 else "-",
            str(row["points"]), f"{row['ms']:.4f}", row["example"],
        ]
        for row in rows
    ]  # fmt: skip
    return render_rows(headers, cells)
