"""The tables, remarks and the verdict of a report, built once for every rendering."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amc_mobile.device.conditions import readable
from amc_mobile.device.phone_state import REMEDIES, WIDE_BAND
from amc_mobile.formats import REMEDY
from amc_mobile.latency.calibration import COVERAGE, DRIFT_REMEDY, TOLD_DRIFT, slower
from amc_mobile.report.content import (
    TOP1,
    Accuracy,
    EpisodePoint,
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
    """Change in percentage points, signed."""
    if before is None or after is None:
        return NOTHING
    return f"{100 * (after.top1 - before.top1):+.1f} points"


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
    points = predictions.points
    if not points:
        return None
    predicted = np.array([point.predicted_ms for point in points])
    measured = np.array([point.measured_ms for point in points])
    errors = measured / predicted - 1
    covered = None if predictions.band is None else float(np.mean(np.abs(errors) <= predictions.band))
    return PredictionQuality(
        models=len(points),
        kinds=tuple(Counter(point.kind for point in points).items()),
        mean_error=float(np.mean(np.abs(errors))),
        bias=float(np.mean(errors)),
        rank_correlation=_spearman(predicted, measured),
        covered=covered,
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    if len(a) < 3 or not ranks_a.std() or not ranks_b.std():
        return None
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])


MOST_LAYERS = 400  # rows; every layer is in layers.csv and report.json
COSTS = {"load_ms", "first_ms", "peak_rss_kb"}  # what pruning is to change
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


def comparison(report: Report) -> Section:
    before, after = report.original, report.pruned
    rows: list[tuple[str, str, str, str]] = []

    def add(label: str, old: str, new: str, difference: str) -> None:
        if (old, new) != (NOTHING, NOTHING):
            rows.append((label, old, new, difference))

    old_ms, new_ms = before.latency, after.latency if after else None
    add(
        "latency p50", p50_with_interval(old_ms), p50_with_interval(new_ms),
        change(old_ms.p50_ms if old_ms else None, new_ms.p50_ms if new_ms else None),
    )  # fmt: skip
    old_p90, new_p90 = old_ms.p90_ms if old_ms else None, new_ms.p90_ms if new_ms else None
    add("latency p90", ms(old_p90), ms(new_p90), change(old_p90, new_p90))
    for label, shown, attribute in (
        ("load time", ms, "load_ms"), ("first inference", ms, "first_ms"), ("peak memory", kilobytes, "peak_rss_kb"),
        ("mean clock", megahertz, "mean_mhz"), ("time at the highest clock", percent, "top_clock_share"),
        ("context switches per sample", number, "switches_per_sample"),
    ):  # fmt: skip
        old, new = (getattr(side, attribute) if side else None for side in (old_ms, new_ms))
        add(label, shown(old), shown(new), change(old, new) if attribute in COSTS else NOTHING)
    old_screen, new_screen = ((side.screen if side else None) or NOTHING for side in (old_ms, new_ms))
    add("screen", old_screen, new_screen, NOTHING)
    old_guess, new_guess = before.predicted_ms, after.predicted_ms if after else None
    add("predicted p50", ms(old_guess), ms(new_guess), change(old_guess, new_guess))
    for label, shown, attribute in (
        ("MACs", count, "macs"), ("parameters", count, "parameters"), ("file size", size, "file_bytes"),
    ):  # fmt: skip
        old, new = getattr(before, attribute), getattr(after, attribute) if after else None
        add(label, shown(old), shown(new), change(old, new))
    old_top1, new_top1 = before.accuracy, after.accuracy if after else None
    split = next((a.split for a in (old_top1, new_top1) if a), "test")
    label = report.metric if split == "test" else f"{report.metric} on {split} images"
    add(label, accuracy(old_top1), accuracy(new_top1), points(old_top1, new_top1))
    return Section(
        "comparison", "Original and pruned", ("", "original", "pruned", "change"), tuple(rows),
        "Nothing known about the model yet: run `amc-mobile search`.",
        "1 MAC = 2 FLOPs. The interval of the p50 comes from resampling its runs." if old_ms or new_ms else "",
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
    used = [i for i in range(len(headers)) if i < 4 or any(row[i] not in ("", NOTHING) for row in rows)]
    return Section(
        "stages", "Accuracy of each stage", tuple(headers[i] for i in used),
        tuple(tuple(row[i] for i in used) for row in rows), "No accuracy yet: run `amc-mobile search`.",
    )  # fmt: skip


def layers(report: Report, *, most: int = MOST_LAYERS) -> Section:
    rows = [_layer_row(layer) for layer in report.layers[:most]]
    left_out = len(report.layers) - len(rows)
    before = [layer.ms_before for layer in report.layers if layer.ms_before is not None]
    after = [layer.ms_after for layer in report.layers if layer.ms_after is not None]
    has_total = not left_out and bool(before or after)
    if has_total:
        old, new = (sum(values) if values else None for values in (before, after))
        rows.append(("all layers", "", "", "", number(old), number(new), change(old, new)))
    note = "Kernels timed alone, in the latency table: their sum is near, not equal to, the latency of the whole."
    if left_out:
        note += f" The first {most} layers; {left_out} more in layers.csv."
    headers = ("layer", "kernel", "channels", "kept", "ms before", "ms after", "change")
    nothing = (
        "No layers yet: run `amc-mobile search`."
        if not _counts(report)
        else ("A search for MACs or parameters looks at no kernels; the plan is in search.json.")
    )
    return Section("layers", "Layers", headers, tuple(rows), nothing, note, has_total)


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
            text = f"episode {chosen.episode}, reward {number(chosen.reward)}, {_predicted(report, chosen)}"
            rows.append(
                ("chosen", text + (f", {ms(chosen.measured_ms)} by its speed-up" if chosen.measured_ms else ""))
            )
        elif rewards:
            best, episode = max(rewards, key=lambda pair: pair[0])
            rows.append(("highest reward", f"{number(best)} in episode {episode}"))
        rows.append(("measured while searching", f"{sum(p.measured_ms is not None for p in report.episodes)} plans"))
        if any(p.measured_ms is not None for p in report.episodes):
            note = "Measured: the original's p50 when the run began over the plan's measured speed-up."
    if report.budget is not None:
        asked = f" (asked: {report.budget.asked})" if report.budget.asked else ""
        limit = cost(report.budget.limit, unit)
        if report.budget.searched_limit is not None:
            searched = cost(report.budget.searched_limit, unit)
            limit = f"{searched} in the search, {limit} at the export: a share of the original as measured then"
        rows.append(("budget", f"{'p50 ' if unit == 'ms' else ''}{limit}{asked}"))
    for one in report.further_budgets:
        is_latency = one.unit == "ms" and one.gate.cost is not None
        found = f"measured, at most {ms(one.gate.cost)}" if is_latency else cost(one.predicted, one.unit)
        said = f"{found} of {cost(one.limit, one.unit)}: {one.status}"
        rows.append((f"budget {one.asked}", said))
    return Section("search", "Search", ("", ""), tuple(rows), "No search yet: run `amc-mobile search`.", note)


def _predicted(report: Report, chosen: EpisodePoint) -> str:
    """Of the chosen plan: what the search saw, and how that differs from what is predicted by now."""
    unit = report.budget.unit if report.budget else "ms"
    then, now = cost(chosen.predicted, unit), ms(report.pruned.predicted_ms if report.pruned else None)
    if unit != "ms" or now in (then, NOTHING):
        return f"predicted {then}"
    return f"predicted {then} then, {now} with what was measured since"


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
        "Bias: how much more was measured than predicted, on average." if quality else "",
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
    used = [i for i in range(len(headers)) if headers[i] != "SQNR" or any(row[i] != NOTHING for row in rows)]
    note = "; ".join(
        f"{file.path}: XNNPACK did not take {', '.join(file.not_delegated)}"
        for file in report.files
        if file.not_delegated
    )
    return Section(
        "files", "Files", tuple(headers[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows),
        "Nothing exported yet: run `amc-mobile export --tflite --onnx`.", note,
    )  # fmt: skip


def settings(report: Report) -> Section:
    return Section("settings", "Settings", ("", ""), _facts(report.settings), "No settings recorded.")


def _facts(mapping: object) -> tuple[tuple[str, str], ...]:
    pairs = readable(mapping).items() if isinstance(mapping, dict) else ()
    return tuple((key.replace("_", " "), str(value)) for key, value in pairs if value not in (None, ""))


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
    makers = [_latency, _speedup, _accuracy, _macs, _parameters, _predicted_clause]
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


ENOUGH_AGREEMENT = 0.99  # share of images on which an exported file and torch name the same class
SLOWER_THAN_MACS = 0.5  # of the saving in MACs, seen in latency
FLAG_ADVICE = {
    "NOISY": "passes disagree: close other programs and measure again",
    "BUSY": "other programs took time: end them and measure again",
    "FEW_RUNS": "too few runs for a narrow interval: measure longer",
    "EMULATOR": "an emulator's latency says nothing about a phone: measure on a phone",
    WIDE_BAND: f"the latency table predicts too badly to tell plans apart: {REMEDIES[WIDE_BAND]}",
}


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
        _outdated, _uncut, _lost_accuracy, _over_budget, _not_there_yet, _flags, _quantised, _parity, _prediction,
        _quick, _band, _wrong_budget, _fine_tuning,
    )  # fmt: skip
    return tuple(remark for make in makers for remark in make(report))


def _outdated(report: Report) -> list[str]:
    names = [printable(file.path) for file in report.files if file.is_outdated]
    if not names:
        return []
    return [f"{', '.join(names)}: written before the present weights; run `amc-mobile export` again."]


def _uncut(report: Report) -> list[str]:
    before, after = report.original, report.pruned
    if after is None or after.macs is None or (after.macs, after.parameters) != (before.macs, before.parameters):
        return []
    return [nothing_pruned(keeps_accuracy="max_loss" in report.settings)]


def _lost_accuracy(report: Report) -> list[str]:
    if report.accuracy_kept is not False:
        return []
    return ["The accuracy that --max-loss asks for is not kept: fine-tune, search with a larger budget, or raise it."]


def _over_budget(report: Report) -> list[str]:
    verdict, budget = report.verdict, report.budget
    further = [
        f"{printable(one.asked)} is missed: search again with a lower budget for it, or measure again."
        for one in report.further_budgets
        if one.status == "FAIL"
    ]
    if budget is None or budget.gate.passed is not False:
        return further
    if verdict.cost is None:
        return [f"{printable(budget.gate.text)}: export for that runtime too.", *further]
    cost, limit = against_limit(verdict.cost, budget.limit)
    if budget.unit != "ms":
        return [f"{cost} {budget.unit} are over the budget of {limit}: search again with this budget.", *further]
    if verdict.cost <= budget.limit:  # within, and other programs may have made it so
        return [f"{printable(budget.gate.text)}: end the other programs and export again.", *further]
    tighter = budget.limit * budget.limit / verdict.cost
    return [
        f"The p50 is at most {cost} ms, which is over the budget of {limit} ms: search again with "
        f"`amc-mobile search --latency-ms {tighter:.4g}`, or measure again on a quieter device.",
        *further,
    ]


def _not_there_yet(report: Report) -> list[str]:
    if report.verdict.status == "NO PLAN":
        return ["No plan yet: run `amc-mobile search --latency-ratio 0.5`."]
    if report.verdict.status == "PREDICTED, NOT MEASURED":
        return ["The device was not used: attach it and run `amc-mobile export` without --offline to pass the budget."]
    if report.verdict.status == "NOT MEASURED":
        return ["The pruned network has not been exported and measured: run `amc-mobile export --tflite --onnx`."]
    return []


def _flags(report: Report) -> list[str]:
    return [f"{printable(flag)}: {FLAG_ADVICE.get(flag, 'see the conditions')}." for flag in report.flags]


def _quantised(report: Report) -> list[str]:
    return [
        f"{printable(file.path)}: {printable(file.problem)}; {REMEDY}."
        for file in report.files
        if file.problem and not file.is_outdated
    ]


def _parity(report: Report) -> list[str]:
    return [
        f"{printable(stage.name)} names another class than torch on {percent(1 - stage.parity.top1_agreement)} of "
        f"{compared(stage.parity.samples, report.metric)} images (largest difference "
        f"{stage.parity.max_abs:.2g}): check the export before use."
        for stage in report.stages
        if stage.parity is not None and stage.parity.top1_agreement < ENOUGH_AGREEMENT
    ]


def _prediction(report: Report) -> list[str]:
    pruned, band, drift = report.pruned, report.predictions.band, report.predictions.drift
    if drift is not None and abs(drift - 1) > TOLD_DRIFT:
        return [
            f"The device is {slower(drift)} than its latency table (the original takes {drift:.2f} times as long as at "
            f"the profile), and so are predictions: {DRIFT_REMEDY}."
        ]
    if pruned is None or pruned.latency is None or pruned.predicted_ms is None or band is None:
        return []
    if abs(pruned.latency.p50_ms / pruned.predicted_ms - 1) <= band:
        return []
    return [
        f"The measured p50 is {change(pruned.predicted_ms, pruned.latency.p50_ms)} off the predicted "
        f"{ms(pruned.predicted_ms)}, outside the band of +-{percent(band)}: the device may have changed since "
        "`amc-mobile profile`; run it again."
    ]


def _quick(report: Report) -> list[str]:
    if not report.predictions.quick:
        return []
    return [
        "The latency table is from a quick profile: run `amc-mobile profile`, which measures the rest, then the same "
        "search again, for a narrower band."
    ]


def _band(report: Report) -> list[str]:
    quality, band = prediction_quality(report.predictions), report.predictions.band
    if quality is None or band is None or quality.covered is None or not quality.breaks_promise:
        return []
    return [
        f"{percent(quality.covered, 0)} of {quality.models} whole models are inside the band of +-{percent(band)} that "
        f"{percent(COVERAGE, 0)} should be in: predictions are less sure than it says. Close other programs and run "
        "`amc-mobile profile` again."
    ]


def _wrong_budget(report: Report) -> list[str]:
    before, after = report.original, report.pruned
    if report.budget is None or report.budget.unit == "ms" or after is None:
        return []
    if not (before.latency and after.latency and before.macs and after.macs) or after.macs >= before.macs:
        return []
    saved_macs = 1 - after.macs / before.macs
    saved_ms = 1 - after.latency.p50_ms / before.latency.p50_ms
    if saved_ms >= SLOWER_THAN_MACS * saved_macs:
        return []
    return [
        f"MACs fell by {percent(saved_macs)} but latency by {percent(saved_ms)} only: search with --latency-ms to "
        "save what costs time on this device."
    ]


def _fine_tuning(report: Report) -> list[str]:
    if report.pruned is None or any("tuned" in stage.name.lower() for stage in report.stages):
        return []
    return ["The pruned network has not been fine-tuned: `amc-mobile finetune` usually wins accuracy back."]
