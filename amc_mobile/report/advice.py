"""What to do next: every remark names the values behind it and a command or a setting."""

from __future__ import annotations

from amc_mobile.device.phone_state import REMEDIES, WIDE_BAND
from amc_mobile.formats import REMEDY
from amc_mobile.latency.calibration import COVERAGE, DRIFT_REMEDY, TOLD_DRIFT, slower
from amc_mobile.report.content import Report
from amc_mobile.report.tables import against_limit, change, compared, ms, percent, prediction_quality, printable

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
