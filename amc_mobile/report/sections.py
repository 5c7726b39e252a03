"""The report's tables, built once for every rendering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amc_mobile.device.conditions import readable
from amc_mobile.latency.calibration import COVERAGE
from amc_mobile.report.content import TOP1, Report, Scalar
from amc_mobile.report.details import EpisodePoint, LayerRow
from amc_mobile.report.prediction_quality import prediction_quality
from amc_mobile.report.quantities import (
    NOTHING,
    accuracy,
    change,
    compared,
    cost,
    count,
    kilobytes,
    megahertz,
    ms,
    number,
    p50_with_interval,
    percent,
    points,
    size,
)

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
