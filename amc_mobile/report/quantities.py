"""Numbers and names as a reader sees them."""

from __future__ import annotations

import math

from amc_mobile.report.content import TOP1, Accuracy, Latency, Unit

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
