"""The number formats that exported files come in. Plain names: needs neither torch nor a converter."""

from __future__ import annotations

FLOAT32 = "float32"
PRECISIONS = (FLOAT32, "int8", "float16")
MOST_LOST = 0.02  # of the accuracy; what a quantised file may lose without a warning
LEAST_SQNR_DB = 10.0  # below it the noise has more than a tenth of the signal's power
REMEDY = "try the other format, `--fp16` (.tflite only) or `--fp32`, or quantise a less pruned network"


def precision_problem(precision: str, metric: str, before: float, after: float, images: int, sqnr_db: float) -> str:
    """What a quantised file loses too much of; empty where it does not.

    `before`, `after`: accuracies of the float32 and of the quantised file on so many test images; one image less is no
    loss.
    """
    found = []
    if before - after > MOST_LOST and (before - after) * images > 1.5:
        found.append(
            f"{precision} costs {100 * (before - after):.1f} points of {metric}, more than {100 * MOST_LOST:.0f}"
        )
    if sqnr_db < LEAST_SQNR_DB:
        found.append(f"its SQNR is {sqnr_db:.1f} dB, below {LEAST_SQNR_DB:.0f} dB")
    return "; ".join(found)
