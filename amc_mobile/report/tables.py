"""The tables, remarks and the verdict of a report, built once for every rendering."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from amc_mobile.device.conditions import readable
from amc_mobile.device.phone_state import FALLBACK, REMEDIES, WIDE_BAND
from amc_mobile.formats import FORMATS, REMEDY
from amc_mobile.latency.calibration import COVERAGE, DRIFT_REMEDY, TOLD_DRIFT, slower
from amc_mobile.latency.gate import Status
from amc_mobile.report.content import (
    TOP1,
    Accuracy,
    FurtherBudget,
    Latency,
    LayerRow,
    Predictions,
    Report,
    Scalar,
    Unit,
)

NOTHING = "-"  # where a step has not run


def printable(text: str) -> str:
    """Control characters, line breaks and direction marks shown as escapes: a name cannot rewrite what is around it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, length: int) -> str:
    """At most `length` characters; the middle goes, because paths differ at their ends."""
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 3
    return text[: length - 1 - tail] + "…" + text[-tail:]


def decimals_for(value: float, significant: int = 4) -> int:
    """Decimals that show `significant` digits of `value`; 0 to 6."""
    if not math.isfinite(value) or value == 0:
        return 0
    exponent = int(f"{value:.{significant - 1}e}".split("e")[1])  # after rounding: 0.99997 counts as 1.000
    return min(6, max(0, significant - 1 - exponent))


def number(value: float | None, *, like: float | None = None, significant: int = 4) -> str:
    """Four significant digits, or as many decimals as `like` gets so that numbers side by side can be compared."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{decimals_for(value if like is None else like, significant)}f}"


def ms(value: float | None, *, like: float | None = None) -> str:
    return NOTHING if value is None else f"{number(value, like=like)} ms"


def against_limit(cost: float, limit: float) -> tuple[str, str]:
    """Both with so many decimals that they differ in print when they differ, up to nine."""
    decimals = decimals_for(limit)
    while f"{cost:.{decimals}f}" == f"{limit:.{decimals}f}" and cost != limit and decimals < 9:
        decimals += 1
    return f"{cost:.{decimals}f}", f"{limit:.{decimals}f}"


def count(value: float | None) -> str:
    """MACs and parameters: 569 M, 41.2 M, 475 k."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.{decimals_for(value / size, 3)}f}{suffix}"
    return f"{value:.0f}"


def size(value: int | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return NOTHING
    return f"{count(value)}B" if value >= 1000 else f"{value} B"


def kilobytes(value: int | None) -> str:
    """Memory, which the kernel counts in KiB."""
    return size(None if value is None else value * 1024)


def megahertz(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} MHz"


def percent(share: float | None, decimals: int = 1) -> str:
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def change(before: float | None, after: float | None) -> str:
    """Relative, signed."""
    if before is None or after is None or before == 0:
        return NOTHING
    return f"{100 * (after / before - 1):+.1f} %"


def points(before: Accuracy | None, after: Accuracy | None) -> str:
    """Change in percentage points, signed, with its interval."""
    if before is None or after is None:
        return NOTHING
    change = f"{100 * (after.top1 - before.top1):+.1f} points"
    interval = after.change_from(before)
    return change if interval is None else f"{change} (95 % CI {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"


def accuracy(value: Accuracy | None) -> str:
    if value is None:
        return NOTHING
    interval = value.interval
    return percent(value.top1) + (
        f" (95 % CI {100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval is not None else ""
    )


def compared(samples: int, metric: str) -> str:
    """What a file and torch were compared on: one class an image, in a detector one an anchor."""
    return f"{samples}" if metric == TOP1 else f"the anchors of {samples}"


def p50_with_interval(latency: Latency | None) -> str:
    if latency is None:
        return NOTHING
    low, high = (number(v, like=latency.p50_ms) for v in (latency.ci_low_ms, latency.ci_high_ms))
    return f"{ms(latency.p50_ms)} (95 % CI {low} to {high})"


def cost(value: float | None, unit: Unit) -> str:
    """A cost in the budget's unit."""
    return ms(value) if unit == "ms" else f"{count(value)} {'MACs' if unit == 'macs' else unit}"


NUMERIC = re.compile(r"[-+]?[\d.,]+( ?(%|ms|[kMG]?B?|x|px|points))?|-|")


def _columns(text: str) -> int:
    """Terminal columns that `text` takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def is_numeric_column(cells: Sequence[str]) -> bool:
    """Every cell is a number with an optional unit, or empty; at least one is a number."""
    return all(NUMERIC.fullmatch(cell) for cell in cells) and any(cell not in ("", "-") for cell in cells)


def render_rows(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled header, numbers to the right; no line ends in blanks.

    Control characters in cells are shown as escapes. Raises ValueError when a row has another number of cells.
    """
    table = [[printable(cell) for cell in row] for row in rows]
    for row in table:
        if len(row) != len(headers):
            raise ValueError(f"{len(row)} cells under {len(headers)} headers: {row}")
    right = [is_numeric_column([row[i] for row in table]) for i in range(len(headers))]
    widths = [max(_columns(row[i]) for row in [list(headers), *table]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, to_right in zip(cells, widths, right, strict=True):
            blanks = " " * (width - _columns(cell))
            padded.append(blanks + cell if to_right else cell + blanks)
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in table)])


@dataclass(frozen=True)
class PredictionQuality:
    """Relative errors are (measured - predicted) / predicted, so that the band is the same on both sides."""

    models: int
    kinds: tuple[tuple[str, int], ...]
    mean_error: float  # absolute
    bias: float
    rank_correlation: float | None  # Spearman; None below three models or without spread
    covered: float | None  # share of the models inside the band

    @property
    def breaks_promise(self) -> bool:
        """Whether more models are outside the band than a band of COVERAGE leaves out, by more than one."""
        outside = 0.0 if self.covered is None else (1 - self.covered) * self.models
        return outside > (1 - COVERAGE) * self.models + 1


def prediction_quality(predictions: Predictions) -> PredictionQuality | None:
    """None without points."""
    import pandas as pd

    points = predictions.points
    if not points:
        return None
    frame = pd.DataFrame([asdict(point) for point in points])
    errors = frame["measured_ms"] / frame["predicted_ms"] - 1
    ranks = frame[["predicted_ms", "measured_ms"]].rank()  # equal values share the mean of their ranks
    has_ranks = len(frame) >= 3 and ranks.std().min() > 0
    return PredictionQuality(
        models=len(frame),
        kinds=tuple(Counter(frame["kind"]).items()),
        mean_error=float(errors.abs().mean()),
        bias=float(errors.mean()),
        rank_correlation=float(ranks.corr().iloc[0, 1]) if has_ranks else None,
        covered=None if predictions.band is None else float((errors.abs() <= predictions.band).mean()),
    )


MOST_LAYERS = 400  # rows; every layer is in layers.csv and report.json
BAND_MEANING = (
    f"Band: {percent(COVERAGE, 0)} of whole networks should be measured within so many percent of their prediction; a "
    "search holds a plan's prediction and the band on top of it against the budget."
)
USE_OF_SPLIT = {
    "train": "fine-tuning",
    "calibration": "channel choice and least squares",
    "reward": "scores the plans of the search",
    "test": "only the accuracies of this report",
}


@dataclass(frozen=True)
class Section:
    """One table. Without rows, `empty` says why and which command fills it."""

    key: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str
    note: str = ""
    has_total: bool = False  # the last row sums up the others
    link: str = ""  # where the first column's names lead on a page, e.g. "runs/{}/search.json"

    def without_empty(self, *headers: str) -> Section:
        """Leaves out those of these columns that no row has anything in."""
        used = [
            i for i, header in enumerate(self.headers)
            if header not in headers or any(row[i] not in ("", NOTHING) for row in self.rows)
        ]  # fmt: skip
        rows = tuple(tuple(row[i] for i in used) for row in self.rows)
        return replace(self, headers=tuple(self.headers[i] for i in used), rows=rows)


def comparison(report: Report) -> Section:
    columns = (report.original, report.pruned)
    latencies = [column.latency if column else None for column in columns]
    rows: list[tuple[str, ...]] = []

    def add(label: str, shown: Callable[[Any], str], sides: Sequence[object], attribute: str = "", *,
            changes: Callable[[Any, Any], str] | None = change) -> None:  # fmt: skip
        values = [getattr(side, attribute, None) if attribute else side for side in sides]
        cells = [shown(value) for value in values]
        if any(cell != NOTHING for cell in cells):
            rows.append((label, *cells, changes(*values) if changes else NOTHING))

    p50s = [latency.p50_ms if latency else None for latency in latencies]
    add("latency p50", p50_with_interval, latencies, changes=lambda *_: change(*p50s))
    add("latency p90", ms, latencies, "p90_ms")
    add("load time", ms, latencies, "load_ms")
    add("first inference", ms, latencies, "first_ms")
    add("peak memory", kilobytes, latencies, "peak_rss_kb")
    add("mean clock", megahertz, latencies, "mean_mhz", changes=None)
    add("time at the highest clock", percent, latencies, "top_clock_share", changes=None)
    add("context switches per sample", number, latencies, "switches_per_sample", changes=None)
    add("screen", lambda screen: screen or NOTHING, latencies, "screen", changes=None)
    add("predicted p50", ms, columns, "predicted_ms")
    add("MACs", count, columns, "macs")
    add("parameters", count, columns, "parameters")
    add("file size", size, columns, "file_bytes")
    accuracies = [column.accuracy if column else None for column in columns]
    split = next((a.split for a in accuracies if a), "test")
    add(
        report.metric if split == "test" else f"{report.metric} on {split} images", accuracy, accuracies, changes=points
    )
    return Section(
        "comparison", "Original and pruned", ("", "original", "pruned", "change"), tuple(rows),
        "Nothing known about the model yet: run `amc-mobile search`.",
        "1 MAC = 2 FLOPs. The interval of the p50 comes from resampling its runs." if any(latencies) else "",
    )  # fmt: skip


def stages(report: Report) -> Section:
    first = next((stage.accuracy for stage in report.stages if stage.accuracy), None)
    rows = tuple(
        (
            stage.name,
            accuracy(stage.accuracy),
            points(first, stage.accuracy) if stage.accuracy is not first else NOTHING,
            f"{stage.accuracy.images or '?'} {stage.accuracy.split}" if stage.accuracy else NOTHING,
            f"{percent(stage.parity.top1_agreement)} of {compared(stage.parity.samples, report.metric)}"
            if stage.parity
            else NOTHING,
            f"{stage.parity.max_abs:.2g}" if stage.parity else NOTHING,
            stage.note,
        )
        for stage in report.stages
    )
    # A detector's outputs are offsets of boxes too.
    largest = f"largest {'logit ' if report.metric == TOP1 else ''}difference"
    headers = ("stage", report.metric, "change", "images", "same class as torch", largest, "note")
    return Section(
        "stages", "Accuracy of each stage", headers, rows, "No accuracy yet: run `amc-mobile search`."
    ).without_empty(*headers[4:])


def layers(report: Report, *, most: int = MOST_LAYERS) -> Section:
    rows = [_layer_row(layer) for layer in report.layers[:most]]
    left_out = len(report.layers) - len(rows)
    before = [layer.ms_before for layer in report.layers if layer.ms_before is not None]
    after = [layer.ms_after for layer in report.layers if layer.ms_after is not None]
    has_total = not left_out and bool(before or after)
    if has_total:
        old, new = (sum(values) if values else None for values in (before, after))
        rows.append(("all layers", "", "", "", "", number(old), number(new), change(old, new)))
    note = "Kernels timed alone, in the latency table: their sum is near, not equal to, the latency of the whole."
    if any(layer.unused_channels for layer in report.layers):
        note += (
            " Unused: so many more output channels this kernel computes in the same time, up to the device's next step."
        )
    if left_out:
        note += f" The first {most} layers; {left_out} more in layers.csv."
    headers = ("layer", "kernel", "channels", "kept", "unused", "ms before", "ms after", "change")
    nothing = (
        "No layers yet: run `amc-mobile search`."
        if not _counts(report)
        else ("A search for MACs or parameters looks at no kernels; the plan is in search.json.")
    )
    return Section("layers", "Layers", headers, tuple(rows), nothing, note, has_total).without_empty("unused")


def _counts(report: Report) -> bool:
    """Whether a plan was searched for by MACs or parameters, so that no latency was predicted."""
    return report.budget is not None and report.budget.unit != "ms"


def _layer_row(layer: LayerRow) -> tuple[str, ...]:
    old, new = layer.channels_before, layer.channels_after
    channels = NOTHING if old is None else f"{old}" if new in (None, old) else f"{old} -> {new}"
    return (
        layer.name,
        layer.kernel_after or layer.kernel_before,
        channels,
        percent(layer.keep_ratio, 0),
        f"{layer.unused_channels} to {(layer.channels_after or 0) + layer.unused_channels}"
        if layer.unused_channels
        else "",
        number(layer.ms_before),
        number(layer.ms_after, like=layer.ms_before),
        change(layer.ms_before, layer.ms_after),
    )


def search(report: Report) -> Section:
    unit = report.budget.unit if report.budget else "ms"
    rows: list[tuple[str, str]] = []
    note = ""
    if report.episodes:
        rewards = [(p.reward, p.episode) for p in report.episodes if p.reward is not None]
        rows.append(("episodes", str(len({p.episode for p in report.episodes}))))
        policies = ", ".join(dict.fromkeys(p.policy for p in report.episodes if p.policy))
        if policies:
            rows.append(("proposed by", policies))
        chosen = next((p for p in report.episodes if p.is_best), None)
        if chosen is not None:
            predicted = cost(chosen.predicted, unit)
            if unit == "ms" and report.pruned and report.pruned.predicted_ms is not None:
                predicted = ms(report.pruned.predicted_ms)
            text = f"episode {chosen.episode}, reward {number(chosen.reward)}, predicted {predicted}"
            rows.append(
                ("chosen", text + (f", {ms(chosen.measured_ms)} by its speed-up" if chosen.measured_ms else ""))
            )
        elif rewards:
            best, episode = max(rewards, key=lambda pair: pair[0])
            rows.append(("highest reward", f"{number(best)} in episode {episode}"))
        rows.append(("measured while searching", f"{sum(p.measured_ms is not None for p in report.episodes)} plans"))
        if any(p.measured_ms is not None for p in report.episodes):
            note = "Measured: the original's p50 over the plan's measured speed-up."
    if report.budget is not None:
        asked = f" (asked: {report.budget.asked})" if report.budget.asked else ""
        limit = cost(report.budget.limit, unit)
        if report.budget.searched_limit is not None:
            note = " ".join([note, _moved(report.budget.search_scale)]).strip()
        rows.append(("budget", f"{'p50 ' if unit == 'ms' else ''}{limit}{asked}"))
    for one in report.further_budgets:
        is_latency = one.unit == "ms" and one.gate.cost is not None
        found = f"measured, at most {ms(one.gate.cost)}" if is_latency else cost(one.predicted, one.unit)
        said = f"{found} of {cost(one.limit, one.unit)}: {one.status}"
        rows.append((f"budget {one.asked}", said))
    return Section("search", "Search", ("", ""), tuple(rows), "No search yet: run `amc-mobile search`.", note)


def _moved(scale: float) -> str:
    """How the reference of a share of the original moved."""
    return (
        f"The budget is a share of the original, which took {scale:.3f} times as long at the export as when the search "
        "began: all ms of the search are shown on the scale of the export."
    )


def gate(report: Report) -> Section:
    """The attempts to show by measurement that the latency budgets are met."""
    own = [(report.budget.asked, report.budget.gate)] if report.budget is not None else []
    gates = [*own, *((one.asked, one.gate) for one in report.further_budgets)]
    rows = tuple(
        (
            asked,
            str(i),
            f"{attempt.within} of {attempt.rounds}",
            NOTHING if attempt.needed is None else str(attempt.needed),
            "yes" if attempt.passed else "no",
            ", ".join(attempt.flags) or "none",
            attempt.why,
        )
        for asked, one in gates
        for i, attempt in enumerate(one.attempts, start=1)
    )
    headers = ("budget", "attempt", "rounds within", "needed", "passed", "flags of either file", "made because")
    note = "; ".join(one.text for _, one in gates if one.attempts)
    return Section("gate", "Gate", headers, rows, "No latency budget was measured: run `amc-mobile export`.", note)


def predictions(report: Report) -> Section:
    quality = prediction_quality(report.predictions)
    rows: list[tuple[str, str]] = []
    if quality is not None:
        kinds = ", ".join(f"{number} {kind}" for kind, number in quality.kinds)
        rows.append(("whole models measured", f"{quality.models} ({kinds})"))
        rows.append(("mean error of these", percent(quality.mean_error)))
        rows.append(("bias", f"{100 * quality.bias:+.1f} %"))
        if quality.rank_correlation is not None:
            rows.append(("rank correlation", f"{quality.rank_correlation:.3f}"))
        if quality.covered is not None:
            rows.append(("inside the band", f"{percent(quality.covered, 0)} ({percent(COVERAGE, 0)} promised)"))
    if report.predictions.band is not None:
        rows.append(("band", f"+-{percent(report.predictions.band)}"))
    if report.predictions.quick:
        rows.append(("profile", "quick: a part of the kernels and whole models, in fewer passes"))
    if report.predictions.loo_error is not None:
        rows.append(("mean error, each model left out in turn", percent(report.predictions.loo_error)))
    if report.predictions.drift is not None:
        rows.append(("the original, against the profile", f"takes {report.predictions.drift:.2f} times as long"))
    for term in report.predictions.terms:
        used = "used" if term.kept else "not used"
        errors = f"{percent(term.error_with)} with it, {percent(term.error_without)} without"
        rows.append((f"correction for {term.name}", f"{used}: {errors}"))
    return Section(
        "predictions", "Predicted against measured", ("", ""), tuple(rows),
        "Only searches for a latency predict one."
        if _counts(report)
        else "No whole model was both predicted and measured: run `amc-mobile profile`.",
        f"{BAND_MEANING} Bias: how much more was measured than predicted, on average." if quality else "",
    )  # fmt: skip


def conditions(report: Report) -> Section:
    rows = _facts(report.conditions)
    if report.flags:
        rows = (*rows, ("flags", ", ".join(report.flags)))
    return Section(
        "conditions", "Device and conditions", ("", ""), rows, "Nothing was measured: run `amc-mobile export`.",
        _unlike_an_app(report.conditions),
    )  # fmt: skip


def _unlike_an_app(conditions: Mapping[str, Scalar]) -> str:
    """How measuring differs from what an app does with the network."""
    if str(conditions.get("os", "")).startswith("Android"):
        cores = str(conditions.get("cores", ""))
        where = f"pinned to cores {cores}" if cores[:1].isdigit() else "on any cores"
        how = f"here a process of adb's shell ran the network back to back, {where}, with no other work"
    else:
        how = "here one process ran the network back to back, with no other work"
    return (
        f"An app may see other latencies: {how}. Closer to it: `amc-mobile measure FILE --cadence-fps 30`, and "
        "`amc-mobile measure FILE --sustained-s 60` for heat."
    )


def data(report: Report) -> Section:
    rows: tuple[tuple[str, ...], ...] = ()
    note = ""
    if report.data is not None:
        rows = tuple((part, str(n), USE_OF_SPLIT.get(part, "")) for part, n in report.data.sizes.items())
        note = f"From {report.data.source}. No image is in two parts."
    return Section("data", "Data split", ("part", "images", "used for"), rows, "No data split recorded.", note)


def kept_groups(report: Report) -> Section:
    rows = tuple((group.name, str(group.channels), group.reason) for group in report.kept_groups)
    return Section(
        "kept", "Channel groups kept whole", ("group", "channels", "why"), rows, "Every channel group could be cut."
    )


def files(report: Report) -> Section:
    rows = tuple(
        (
            f"{file.path} (outdated)" if file.is_outdated else file.path,
            size(file.file_bytes),
            p50_with_interval(file.latency),
            file.runtime or NOTHING,
            file.precision,
            NOTHING if file.sqnr_db is None else f"{file.sqnr_db:.1f} dB",
            file.sha256,
        )
        for file in report.files
    )
    headers = ("file", "size", "p50", "runtime", "precision", "SQNR", "sha256")
    note = "; ".join(
        f"{file.path}: XNNPACK did not take {', '.join(file.not_delegated)}"
        for file in report.files
        if file.not_delegated
    )
    nothing = "Nothing exported yet: run `amc-mobile export --tflite --onnx`."
    return Section("files", "Files", headers, rows, nothing, note, link="./{}").without_empty("SQNR")


def reproduce(report: Report) -> Section:
    """What went in; the commands are shown as they are."""
    return Section("hashes", "Reproduce", ("SHA-256 of", ""), tuple(report.hashes.items()), "")


def settings(report: Report) -> Section:
    return Section("settings", "Settings", ("", ""), _facts(report.settings), "No settings recorded.")


def _facts(mapping: object) -> tuple[tuple[str, str], ...]:
    pairs = readable(mapping).items() if isinstance(mapping, dict) else ()
    return tuple((key.replace("_", " "), str(value)) for key, value in pairs if value not in (None, ""))


CPU_DELEGATES = {form.delegate for form in FORMATS.values()}
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
    own = {
        "ms": _latency(report), "speed-up": _speedup(report), "accuracy": _accuracy(report),
        "macs": _counted(report, "macs"), "parameters": _counted(report, "parameters"),
        "predicted": _predicted_clause(report),
    }  # fmt: skip
    first = own.pop(report.budget.unit if report.budget else "ms")
    shown = [clause for clause in (first, _budget_used(report), *own.values()) if clause is not None]
    return (*shown, *_promised(report), *map(_further, report.further_budgets))


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


def _budget_used(report: Report) -> Clause | None:
    used, budget = report.verdict.budget_used, report.budget
    if used is None or budget is None:
        return None
    return Clause("budget used", percent(used), f"{'measured p50' if budget.unit == 'ms' else budget.unit} / budget")


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
    changed = points(before, after).replace(" (", ", ").replace(")", "")
    note = f"original {percent(before.top1)}, {changed}" if before is not None else ""
    if after.split != "test":
        note = "; ".join(part for part in (note, f"on {after.split} images") if part)
    return Clause(report.metric, percent(after.top1), note)


def _counted(report: Report, unit: Literal["macs", "parameters"]) -> Clause | None:
    before, after = getattr(report.original, unit), getattr(report.pruned, unit, None)
    if after is None:
        return None
    notes = [f"{percent(after / before)} of {count(before)}"] if before else []
    if report.budget is not None and report.budget.unit == unit:
        limit = report.budget.limit
        same = count(limit) == count(after) and limit != after
        notes.append(f"budget {limit:,.0f}; has {after:,}" if same else f"budget {count(limit)}")
    return Clause("MACs" if unit == "macs" else unit, count(after), "; ".join(notes))


def _predicted_clause(report: Report) -> Clause | None:
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


def ran_on(report: Report) -> Clause | None:
    """The processor that ran the network, and what of it; None before a measurement."""
    facts = report.conditions
    if not facts.get("runtime"):
        return None
    delegate, threads = str(facts.get("delegate") or ""), facts.get("threads")
    unit = "CPU" if delegate in CPU_DELEGATES else printable(delegate)
    notes = [f"{threads} thread{'' if threads == 1 else 's'}"] if threads else []
    notes.append(f"{facts['runtime']} {facts.get('runtime_version') or ''}".strip())
    left = next((file.not_delegated for file in report.files if file.runtime == facts["runtime"]), None)
    if left is not None:
        notes.append(f"{delegate} took every operator" if not left else f"{delegate} did not take {', '.join(left)}")
    elif delegate:
        notes.append(delegate)
    return Clause("ran on", unit, printable("; ".join(notes)))


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


VALID_MEANING = (
    "VALID: the two fastest passes of each file agree, no other program took time, and there are enough runs for the "
    "intervals. Otherwise flags say what makes the numbers less sure."
)


MEANINGS = (
    "p50: the median of the timed runs, on a device that runs nothing else; 95 % CI: its interval, from resampling "
    "passes and the runs in them.",
    "Budget used: the measured p50 over the budget. The gate asks for more: so many of all rounds within the budget "
    "that a network at its limit would pass in at most 2.5 % of cases.",
    "Accuracies: Wilson's interval for that number of test images; of a change Newcombe's interval, which takes the "
    "networks for independent. On the same images the true interval is narrower.",
)


def verdict_line(report: Report) -> str:
    rest = [device_line(report), validity(report)]
    first = [clause.text() for clause in clauses(report)]
    return f"{report.verdict.status}  " + " | ".join(part for part in first + rest if part)


ENOUGH_AGREEMENT = 0.99  # share of images on which an exported file and torch name the same class
SLOWER_THAN_MACS = 0.5  # of the saving in MACs, seen in latency
FLAG_ADVICE = {
    "NOISY": "passes disagree: close other programs and measure again",
    "BUSY": "other programs took time: end them and measure again",
    "FEW_RUNS": "too few runs for a narrow interval: measure longer",
    FALLBACK: f"a part of the network may have run on the CPU: {REMEDIES[FALLBACK]}",
    "EMULATOR": "an emulator's latency says nothing about a phone: measure on a phone",
    WIDE_BAND: f"the latency table predicts too badly to tell plans apart: {REMEDIES[WIDE_BAND]}",
}


NEXT_STEP: Mapping[Status, str] = {
    "NO PLAN": "No plan yet: run `amc-mobile search --latency-ratio 0.5`.",
    "PREDICTED, NOT MEASURED":
        "The device was not used: attach it and run `amc-mobile export` without --offline to pass the budget.",
    "NOT MEASURED": "The pruned network has not been exported and measured: run `amc-mobile export --tflite --onnx`.",
}  # fmt: skip


def nothing_pruned(*, keeps_accuracy: bool) -> str:
    """Of a search that ended with the original network. `keeps_accuracy`: --max-loss was asked for."""
    if keeps_accuracy:
        return "Nothing is pruned: no cheaper plan kept the accuracy. Raise --max-loss, or try more --episodes."
    return (
        "Nothing is pruned: no cheaper plan scored better with this reward. Ask for a size, such as --macs-ratio 0.5, "
        "or for another --reward."
    )


def advice(report: Report) -> tuple[str, ...]:
    """In the order of weight; empty when there is nothing to do."""
    makers = (
        _files_advice,
        _plan_advice,
        _budget_advice,
        _step_advice,
        _quality_advice,
        _prediction_advice,
        _cost_advice,
    )
    return tuple(remark for make in makers for remark in make(report))


def _files_advice(report: Report) -> Iterator[str]:
    if names := [printable(file.path) for file in report.files if file.is_outdated]:
        yield f"{', '.join(names)}: written before the present weights; run `amc-mobile export` again."


def _plan_advice(report: Report) -> Iterator[str]:
    before, after = report.original, report.pruned
    if after and after.macs is not None and (after.macs, after.parameters) == (before.macs, before.parameters):
        yield nothing_pruned(keeps_accuracy="max_loss" in report.settings)
    if report.accuracy_kept is False:
        yield "The accuracy that --max-loss asks for is not kept: fine-tune, search with a larger budget, or raise it."


def _budget_advice(report: Report) -> Iterator[str]:
    verdict, budget = report.verdict, report.budget
    if budget is not None and budget.gate.passed is False:
        if verdict.cost is None:
            yield f"{printable(budget.gate.text)}: export for that runtime too."
        else:
            cost, limit = against_limit(verdict.cost, budget.limit)
            if budget.unit != "ms":
                yield f"{cost} {budget.unit} are over the budget of {limit}: search again with this budget."
            elif verdict.cost <= budget.limit:  # within, and other programs may have made it so
                yield f"{printable(budget.gate.text)}: end the other programs and export again."
            else:
                tighter = f"--latency-ms {budget.limit * budget.limit / verdict.cost:.4g}"
                yield (
                    f"The p50 is at most {cost} ms, which is over the budget of {limit} ms: search again with "
                    f"`amc-mobile search {tighter}`, or measure again on a quieter device."
                )
    for further in report.further_budgets:
        if further.status == "FAIL":
            yield f"{printable(further.asked)} is missed: search again with a lower budget for it, or measure again."


def _step_advice(report: Report) -> Iterator[str]:
    if step := NEXT_STEP.get(report.verdict.status):
        yield step


def _quality_advice(report: Report) -> Iterator[str]:
    for flag in report.flags:
        yield f"{printable(flag)}: {FLAG_ADVICE.get(flag, 'see the conditions')}."
    for file in report.files:
        if file.problem and not file.is_outdated:
            yield f"{printable(file.path)}: {printable(file.problem)}; {REMEDY}."
    for stage in report.stages:
        if stage.parity is not None and stage.parity.top1_agreement < ENOUGH_AGREEMENT:
            yield (
                f"{printable(stage.name)} names another class than torch on "
                f"{percent(1 - stage.parity.top1_agreement)} of {compared(stage.parity.samples, report.metric)} images "
                f"(largest difference {stage.parity.max_abs:.2g}): check the export before use."
            )


def _prediction_advice(report: Report) -> Iterator[str]:
    pruned, band, drift = report.pruned, report.predictions.band, report.predictions.drift
    latency, predicted_ms = (pruned.latency, pruned.predicted_ms) if pruned else (None, None)
    if drift is not None and abs(drift - 1) > TOLD_DRIFT:
        yield (
            f"The device is {slower(drift)} than its latency table (the original takes {drift:.2f} times as long as at "
            f"the profile), and so are predictions: {DRIFT_REMEDY}."
        )
    elif latency and predicted_ms and band is not None and abs(latency.p50_ms / predicted_ms - 1) > band:
        yield (
            f"The measured p50 is {change(predicted_ms, latency.p50_ms)} off the predicted {ms(predicted_ms)}, outside "
            f"the band of +-{percent(band)}: the device may have changed since `amc-mobile profile`; run it again."
        )
    if report.predictions.quick:
        yield (
            "The latency table is from a quick profile: run `amc-mobile profile`, which measures the rest, then the "
            "same search again, for a narrower band."
        )
    quality = prediction_quality(report.predictions)
    if quality is not None and quality.breaks_promise:
        yield (
            f"{percent(quality.covered, 0)} of {quality.models} whole models are inside the band of +-{percent(band)} "
            f"that {percent(COVERAGE, 0)} should be in: predictions are less sure than it says. Close other programs "
            "and run `amc-mobile profile` again."
        )


def _cost_advice(report: Report) -> Iterator[str]:
    before, after = report.original, report.pruned
    if report.budget is not None and report.budget.unit != "ms" and after and before.latency and after.latency:
        saved_macs = 1 - after.macs / before.macs if before.macs and after.macs else 0.0
        saved_ms = 1 - after.latency.p50_ms / before.latency.p50_ms
        if saved_macs > 0 and saved_ms < SLOWER_THAN_MACS * saved_macs:
            yield (
                f"MACs fell by {percent(saved_macs)} but latency by {percent(saved_ms)} only: search with --latency-ms "
                "to save what costs time on this device."
            )
    if after is not None and not any("tuned" in stage.name.lower() for stage in report.stages):
        yield "The pruned network has not been fine-tuned: `amc-mobile finetune` usually wins accuracy back."
