"""The anchor: a model that is measured again and again. What drifts is the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from amc_mobile.device.timing import Job, SamplesMs
from amc_mobile.latency.measurement import Pass
from amc_mobile.latency.statistics import low_ms, pass_low_ms

READINGS = 3
WANTED_MS = 0.1


class Anchor:
    """`job`: some WANTED_MS long. `tolerance`: relative, over the lowest reading so far, `lowest_ms`."""

    def __init__(self, job: Job, *, tolerance: float, lowest_ms: float = math.inf) -> None:
        self._job = job
        self._tolerance = tolerance
        self.lowest_ms = lowest_ms

    @property
    def key(self) -> str:
        return self._job.key

    def first_jobs(self) -> list[Job]:
        """What to run before the first block, for a level to compare with; nothing later."""
        return [] if math.isfinite(self.lowest_ms) else self.jobs()

    def jobs(self) -> list[Job]:
        """What to run after a block: several readings, since a single one may meet a hiccup."""
        return [self._job] * READINGS

    def see(self, readings: Sequence[SamplesMs]) -> None:
        self.lowest_ms = min([self.lowest_ms, *(pass_low_ms(samples) for samples in readings)])

    def is_steady(self, readings: Sequence[SamplesMs]) -> bool:
        """Whether the lowest of these readings is within the tolerance of the lowest before."""
        before = self.lowest_ms
        self.see(readings)
        return min(pass_low_ms(samples) for samples in readings) <= before * (1 + self._tolerance)


def best_anchor(measured: Mapping[str, Sequence[Pass]]) -> str | None:
    """The key whose latency is nearest to the wanted one; None where nothing was measured."""
    distances = {
        key: abs(math.log(low_ms([one.samples_ms for one in passes]) / WANTED_MS))
        for key, passes in measured.items()
        if passes
    }
    return min(distances, key=distances.__getitem__, default=None)
