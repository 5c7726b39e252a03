"""What there is: networks, and what a latency table holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc_mobile.device.conditions import readable
from amc_mobile.errors import InvalidInput
from amc_mobile.workflows.workspace import BEGUN, Workspace, safe_name


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


def show_status(space: Workspace) -> dict[str, Any]:
    """What the workspace remembers, its runs (the oldest first) and the next step."""
    from amc_mobile.latency.table import LatencyTable

    settings, last = space.settings(), space.last_run
    tables = []
    if space.table_path.exists():
        with LatencyTable(space.table_path) as table:
            for conditions in table.conditions():
                known = {"key": conditions.key[:8], "kernels": len(table.kernels(conditions))}
                shown = ("device", "runtime", "runtime_version", "threads")
                tables.append({**known, **{name: getattr(conditions, name) for name in shown}})
    begun = sorted(space.runs.glob(f"*/{BEGUN}"), key=lambda path: path.stat().st_mtime)
    prefix = f"{safe_name(settings.model)}-"
    runs = [
        {
            "name": path.parent.name, "short": path.parent.name.removeprefix(prefix), "stage": _stage(path.parent),
            "is_last": path.parent.name == last,
        }
        for path in begun
    ]  # fmt: skip
    weights = settings.checkpoint or (str(space.trained_checkpoint) if space.trained_checkpoint.exists() else "")
    document = {
        "workspace": str(space.folder), "model": settings.model, "data": settings.data, "checkpoint": weights,
        "device": settings.device, "serial": settings.serial, "precision": settings.precision, "tables": tables,
        "runs": runs, "last_run": last,
    }  # fmt: skip
    return {**document, "next": _next_step(document)}


def _stage(run: Path) -> str:
    """The last step that a run went through."""
    steps = {"report": "reported", "export": "exported", "finetune": "fine-tuned", "search": "searched"}
    return next((done for step, done in steps.items() if (run / f"{step}.json").exists()), "begun")


def _next_step(document: Mapping[str, Any]) -> str:
    if not document["model"]:
        return "amc-mobile train --model MODEL --data DATA, or profile with --checkpoint FILE"
    stage = next((run["stage"] for run in document["runs"] if run["is_last"]), "")
    if not stage:
        return "amc-mobile search --latency-ratio 0.5" if document["tables"] else "amc-mobile profile"
    steps = {
        "begun": "amc-mobile search, with the flags it was begun with", "searched": "amc-mobile finetune",
        "fine-tuned": "amc-mobile export --tflite --onnx", "exported": "amc-mobile report",
    }  # fmt: skip
    return steps.get(stage, "amc-mobile search with another budget")


def status_text(document: Mapping[str, Any]) -> str:
    from amc_mobile.report.tables import render_rows

    names = ("workspace", "model", "data", "checkpoint", "device", "serial", "precision")
    lines = [f"{name:<11}{document[name] or '-'}" for name in names if document[name] or name != "serial"]
    lines += [
        f"table      {one['key']}  {one['device']}, {one['runtime']} {one['runtime_version']}, "
        f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}: {one['kernels']} kernels"
        for one in document["tables"]
    ]
    rows = [[run["short"], run["stage"], "last" if run["is_last"] else ""] for run in document["runs"]]
    parts = ["\n".join(lines), *([render_rows(["run", "stage", ""], rows)] if rows else [])]
    return "\n\n".join([*parts, f"next: {document['next']}"])


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
