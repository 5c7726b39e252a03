"""What the official `benchmark_model` prints, in both of its formats.

It keeps no raw samples: only averages and extremes, so a measurement by our own runner says more.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from amc_mobile.errors import PhoneOutputInvalid

SOURCE = "benchmark_model output"
_CLASSIC = re.compile(
    r"Inference timings in us: Init: ([\d.]{1,30}), First inference: ([\d.]{1,30}), "
    r"Warmup \(avg\): ([\d.e+]{1,30}), Inference \(avg\): ([\d.e+]{1,30})",
    re.ASCII,
)
_COUNT = re.compile(r"count=(\d{1,12})\b(.*)", re.ASCII)
_LITERT_HEADING = re.compile(r"^=+ BENCHMARK RESULTS =+$", re.MULTILINE)
_LITERT = re.compile(
    r"^(?:INFO: )?([A-Z][a-z]+(?: \((?:avg|min|max|std|first)\)| initialization)): +([\d.]{1,30})", re.MULTILINE
)
_LITERT_STEP_MS = 0.01
_LITERT_RUNS = re.compile(r"Inference \(avg\): +[\d.]{1,30} ms \((\d{1,12}) runs\)", re.ASCII)


@dataclass(frozen=True)
class BenchmarkModelResult:
    """In ms per inference. `min_ms` and `max_ms` equal the average where all samples were equal.

    `step_ms`: what the format rounds to; 0: no coarser than the clock.
    """

    init_ms: float
    first_ms: float
    average_ms: float
    min_ms: float
    max_ms: float
    runs: int
    step_ms: float = 0.0


def parse_benchmark_model(text: str) -> BenchmarkModelResult:
    """Raises PhoneOutputInvalid when the output holds no result, as after a crash, or one that is not possible."""
    result = _litert(text) if _LITERT_HEADING.search(text) else _classic(text)
    numbers = (result.init_ms, result.first_ms, result.average_ms, result.min_ms, result.max_ms)
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or result.average_ms <= 0:
        raise PhoneOutputInvalid(SOURCE, f"impossible times: {numbers}")
    if result.runs < 1 or not result.min_ms <= result.max_ms:
        raise PhoneOutputInvalid(SOURCE, f"{result.runs} runs between {result.min_ms} and {result.max_ms} ms")
    return result


def _classic(text: str) -> BenchmarkModelResult:
    summary = _CLASSIC.search(text)
    counts = _COUNT.findall(text)
    if summary is None or not counts:
        raise PhoneOutputInvalid(SOURCE, "no line 'Inference timings in us', so it did not finish")
    init_us, first_us, _, average_us = (_number(value) for value in summary.groups())
    runs, rest = counts[-1]  # the first count is of the warm-up
    values = {key: _number(value) for key, value in re.findall(r"\b(curr|min|max)=([\d.e+]{1,30})", rest, re.ASCII)}
    if "(all same)" in rest and "curr" in values:
        # Neither average nor extremes are printed when all samples are equal.
        values["min"] = values["max"] = values["curr"]
        average_us = values["curr"]
    if not {"min", "max"} <= set(values):
        raise PhoneOutputInvalid(SOURCE, f"no minimum and maximum in 'count={runs}{rest[:80]}'")
    return BenchmarkModelResult(
        init_us / 1000, first_us / 1000, average_us / 1000, values["min"] / 1000, values["max"] / 1000, int(runs)
    )


def _litert(text: str) -> BenchmarkModelResult:
    values = {key: _number(value) for key, value in _LITERT.findall(text)}
    runs = _LITERT_RUNS.search(text)
    wanted = ("Model initialization", "Warmup (first)", "Inference (avg)", "Inference (min)", "Inference (max)")
    missing = [key for key in wanted if key not in values]
    if missing or runs is None:
        raise PhoneOutputInvalid(SOURCE, f"the results lack {', '.join(missing) or 'the number of runs'}")
    init_ms, first_ms, average_ms, min_ms, max_ms = (values[key] for key in wanted)
    return BenchmarkModelResult(init_ms, first_ms, average_ms, min_ms, max_ms, int(runs[1]), _LITERT_STEP_MS)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise PhoneOutputInvalid(SOURCE, f"{text!r} is no number") from error
