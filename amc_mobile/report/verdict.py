"""The first thing a reader sees: passed or not, and the numbers that decide it."""

from __future__ import annotations

from dataclasses import dataclass

from amc_mobile.report.content import FurtherBudget, Report
from amc_mobile.report.quantities import (
    accuracy,
    against_limit,
    change,
    cost,
    count,
    ms,
    number,
    percent,
    points,
    printable,
)

CONDITIONS_IN_LINE = ("device", "cpu", "soc", "os")


@dataclass(frozen=True)
class Clause:
    """One number with what it is compared with: `label value (note)`."""

    label: str
    value: str
    note: str = ""

    def text(self) -> str:
        return f"{self.label} {self.value}" + (f" ({self.note})" if self.note else "")


def clauses(report: Report) -> tuple[Clause, ...]:
    """The budget's quantity first; what has not been measured is left out."""
    makers = [_latency, _speedup, _accuracy, _macs, _parameters, _predicted]
    if report.budget is not None and report.budget.unit != "ms":
        makers.sort(
            key=lambda make: make is not (_macs if report.budget and report.budget.unit == "macs" else _parameters)
        )
    found = [clause for make in makers if (clause := make(report)) is not None]
    return (*found, *_promised(report), *map(_further, report.further_budgets))


def _promised(report: Report) -> tuple[Clause, ...]:
    if report.accuracy_kept is None:
        return ()
    allowed = f"--max-loss {report.settings.get('max_loss', 0):g}"
    return (Clause(allowed, "kept" if report.accuracy_kept else "NOT KEPT", "on the reward images"),)


def _latency(report: Report) -> Clause | None:
    latency = report.pruned.latency if report.pruned else None
    budget = report.budget if report.budget and report.budget.unit == "ms" else None
    if latency is None:
        return Clause("budget", ms(budget.limit), "p50, not measured yet") if budget is not None else None
    low = number(latency.ci_low_ms, like=latency.p50_ms)
    high = number(latency.ci_high_ms, like=latency.p50_ms)
    note = ""
    if budget is not None:
        note = f"; budget {number(budget.limit, like=latency.p50_ms)} ms"
        if budget.gate.cost is not None:
            cost, limit = against_limit(budget.gate.cost, budget.limit)
            note = f"; at most {cost}, budget {limit} ms"
    return Clause("latency p50", ms(latency.p50_ms), f"95 % CI {low} to {high}{note}")


def _speedup(report: Report) -> Clause | None:
    if report.speedup is not None:
        low, high = report.speedup.ci_low, report.speedup.ci_high
        return Clause("speed-up", f"{report.speedup.value:.2f}x", f"paired runs, 95 % CI {low:.2f} to {high:.2f}")
    before, after = report.original.latency, report.pruned.latency if report.pruned else None
    if before is None or after is None:
        return None
    return Clause("speed-up", f"{before.p50_ms / after.p50_ms:.2f}x", "from two p50s, not paired")


def _accuracy(report: Report) -> Clause | None:
    before, after = report.original.accuracy, report.pruned.accuracy if report.pruned else None
    if after is None:
        return Clause(f"original {report.metric}", accuracy(before)) if before is not None else None
    note = f"original {percent(before.top1)}, {points(before, after)}" if before is not None else ""
    if after.split != "test":
        note = "; ".join(part for part in (note, f"on {after.split} images") if part)
    return Clause(report.metric, percent(after.top1), note)


def _macs(report: Report) -> Clause | None:
    return _counted(report, "macs", "MACs", report.original.macs, report.pruned.macs if report.pruned else None)


def _parameters(report: Report) -> Clause | None:
    pruned = report.pruned.parameters if report.pruned else None
    return _counted(report, "parameters", "parameters", report.original.parameters, pruned)


def _counted(report: Report, unit: str, label: str, before: int | None, after: int | None) -> Clause | None:
    if after is None:
        return None
    notes = [f"{percent(after / before)} of {count(before)}"] if before else []
    if report.budget is not None and report.budget.unit == unit:
        limit = report.budget.limit
        same = count(limit) == count(after) and limit != after
        notes.append(f"budget {limit:,.0f}; has {after:,}" if same else f"budget {count(limit)}")
    return Clause(label, count(after), "; ".join(notes))


def _predicted(report: Report) -> Clause | None:
    pruned = report.pruned
    if pruned is None or pruned.predicted_ms is None:
        return None
    note = (
        f"measured {change(pruned.predicted_ms, pruned.latency.p50_ms)}" if pruned.latency else "by the latency table"
    )
    return Clause("predicted", ms(pruned.predicted_ms), note)


def _further(one: FurtherBudget) -> Clause:
    shown = one.gate.cost if one.gate.cost is not None else one.predicted
    note = "" if one.unit != "ms" else "at most; " if one.gate.cost is not None else "predicted, not measured; "
    return Clause(printable(one.asked), cost(shown, one.unit), f"{note}budget {cost(one.limit, one.unit)}")


def device_line(report: Report) -> str:
    """Device, runtime, threads and clocks in one line; empty when nothing was measured."""
    facts = report.conditions
    parts = list(dict.fromkeys(str(facts[key]) for key in CONDITIONS_IN_LINE if facts.get(key)))
    runtime = " ".join(str(facts[key]) for key in ("runtime", "runtime_version", "delegate") if facts.get(key))
    if runtime:
        parts.append(runtime)
    if facts.get("threads"):
        parts.append(f"{facts['threads']} thread" + ("" if facts["threads"] == 1 else "s"))
    if facts.get("cores") not in (None, ""):
        parts.append(f"cores {facts['cores']}")
    if facts.get("clock_mode"):
        parts.append(f"clocks {facts['clock_mode']}")
    return printable(", ".join(parts))


def validity(report: Report) -> str:
    """The flags, or VALID when measurements carry none; empty without measurements."""
    if report.flags:
        return printable("flags " + ", ".join(report.flags))
    measured = report.pruned is not None and report.pruned.latency is not None
    return "VALID" if measured else ""


def verdict_line(report: Report) -> str:
    rest = [device_line(report), validity(report)]
    first = [clause.text() for clause in clauses(report)]
    return f"{report.verdict.status}  " + " | ".join(part for part in first + rest if part)
