"""What benchmarks share: the process time of a call, and how figures are printed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def process_s(run: Callable[[], object], repeats: int) -> float:
    """Median process time of one call: other programs on the machine count little."""
    run()
    samples = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        samples.append(time.process_time() - start)
    return statistics.median(samples)


def print_document(
    name: str, figures: Mapping[str, Any], conditions: Mapping[str, Any], baselines: Mapping[str, Any] | None = None
) -> None:
    """Prints the one JSON document of a benchmark; without `baselines` where there is nothing to compare with."""
    compared = {} if baselines is None else {"baselines": baselines}
    print(json.dumps({"name": name, "figures": figures, **compared, "conditions": conditions}, indent=1))
