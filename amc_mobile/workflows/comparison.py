"""What a comparison found: one document per run, and means with spreads over seeds per budget and policy."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amc_mobile.report.tables import render_rows
from amc_mobile.search.budget import format_cost

CUTS = (100, 200, 300)  # episodes after which the best reward is told


@dataclass(frozen=True)
class Comparison:
    """`runs`: one document per run; `policies`: one per budget and policy, means and spreads over seeds."""

    runs: tuple[dict[str, Any], ...]
    policies: tuple[dict[str, Any], ...]
    title: str

    def document(self) -> dict[str, Any]:
        return {"title": self.title, "policies": list(self.policies), "runs": list(self.runs)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and one row per budget and policy."""
        headers = ["budget", "policy", "seeds", "reward", "one-shot", "refitted", "fine-tuned", "MACs", "predicted",
                   "by speed-up", "evaluations", "CPU s"]  # fmt: skip
        rows = [
            [
                row["budget"],
                row["policy"],
                str(row["seeds"]),
                _with_spread(row["reward"], 4),
                *(
                    _with_spread(row[f"{stage}_top1"], 1, percent=True)
                    for stage in ("one_shot", "refitted", "finetuned")
                ),
                _with_spread(row["macs"], 2, scale=1e-6, unit=" M"),
                _cost(row["predicted_cost"], row["unit"]),
                _with_spread(row["measured_ms"], 3, unit=" ms"),
                f"{row['evaluations']['mean']:.0f}",
                f"{row['cpu_s']['mean']:.0f}",
            ]
            for row in self.policies
        ]
        return headers, rows

    def further_table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and one row per policy and budget that its plans meet besides the first; no rows without such."""
        headers = ["budgets", "policy", "further budget", "limit", "cost", "by speed-up", "verdict"]
        rows = [
            [
                row["budget"],
                row["policy"],
                further["asked"],
                format_cost(further["limit"], further["unit"]),
                _cost(further["predicted_cost"], further["unit"]),
                _with_spread(further["measured_ms"], 3, unit=" ms"),
                further["verdict"],
            ]
            for row in self.policies
            for further in row["further_budgets"]
        ]
        return headers, rows

    @property
    def warnings(self) -> list[str]:
        """What must stand over every number: that latencies were not measured."""
        return list(dict.fromkeys(run["note"] for run in self.runs if "note" in run))

    def text(self) -> str:
        failed = [f"  run {run['run']}: {run['error']}" for run in self.runs if "error" in run]
        first = next((run for run in self.runs if "error" not in run), None)
        notes = []
        if first is not None:
            reached = f"{first['metric']} {first['original_top1']:.1%}"
            notes.append(f"original: {reached}; mean +- standard deviation over seeds")
        further = self.further_table()
        tables = [render_rows(*self.table()), *(["", render_rows(*further)] if further[1] else [])]
        return "\n".join([self.title, *self.warnings, *tables, *notes, *failed])

    def csv(self) -> str:
        """One line per run; each further budget has columns of its own."""
        buffer = io.StringIO()
        rows = [{**run, **_further_cells(run)} for run in self.runs]
        further = dict.fromkeys(key for run in self.runs for key in _further_cells(run))
        columns = [*(key for key in COLUMNS if any(key in run for run in self.runs)), *further]
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


COLUMNS = (
    "run", "budget", "policy", "seed", "reward", "original_top1", "one_shot_top1", "refitted_top1", "finetuned_top1",
    "macs", "parameters", "predicted_cost", "measured_ms", "evaluations", "episodes", "cpu_s", "set_up_cpu_s",
    *(f"best_reward_{cut}" for cut in CUTS), "note", "error",
)  # fmt: skip
AVERAGED = (
    "reward", "one_shot_top1", "refitted_top1", "finetuned_top1", "macs", "parameters", "predicted_cost", "measured_ms",
    "evaluations", "cpu_s", *(f"best_reward_{cut}" for cut in CUTS),
)  # fmt: skip


def summaries(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per budget and policy, in the order in which they come: mean and standard deviation over seeds."""
    found = []
    for key in dict.fromkeys((run["budget"], run["policy"]) for run in runs):
        mine = [run for run in runs if (run["budget"], run["policy"]) == key and "error" not in run]
        if mine:
            summary = {"budget": key[0], "policy": key[1], "seeds": len(mine), "unit": mine[0]["unit"]}
            averages = {name: _average([run.get(name) for run in mine]) for name in AVERAGED}
            note = {"note": mine[0]["note"]} if "note" in mine[0] else {}
            further = _further(mine)
            found.append({**summary, **note, **averages, "further_budgets": further, "runs": [r["run"] for r in mine]})
    return found


def _further(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The further budgets of runs that had the same ones."""
    return [
        {
            **{key: rows[0][key] for key in ("asked", "unit", "limit", "device")},
            **{key: _average([row[key] for row in rows]) for key in ("predicted_cost", "measured_ms")},
            "verdict": " / ".join(dict.fromkeys(row["verdict"] for row in rows)),
        }
        for rows in zip(*(run.get("further_budgets", []) for run in runs), strict=True)
    ]


def _further_cells(run: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for further in run.get("further_budgets", []):
        keys = ("predicted_cost", "measured_ms", "verdict") if further["unit"] == "ms" else ("verdict",)
        found.update({f"{further['asked']} {key}": further[key] for key in keys})
    return found


def _average(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": spread, "min": min(known), "max": max(known)}


def _with_spread(
    value: dict[str, float] | None, digits: int, *, scale: float = 1, unit: str = "", percent: bool = False
) -> str:
    if value is None:
        return "-"
    scale = 100 if percent else scale
    spread = f" +- {value['std'] * scale:.{digits}f}" if value["std"] > 0 else ""
    return f"{value['mean'] * scale:.{digits}f}{spread}{'%' if percent else unit}"


def _cost(value: dict[str, float] | None, unit: str) -> str:
    if unit == "ms":
        return _with_spread(value, 3, unit=" ms")
    return _with_spread(value, 2, scale=1e-6, unit=" M")
