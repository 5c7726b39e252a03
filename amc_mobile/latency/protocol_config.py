"""How long, how often and until when is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from amc_mobile.device.timing import Timing
from amc_mobile.errors import InvalidConfig
from amc_mobile.latency.measurement import Pass
from amc_mobile.latency.statistics import pass_low_ms


@dataclass(frozen=True)
class ProtocolConfig:
    """Defaults: the fewest runs that gave kernels within 1 % and whole models within 2 % on a desktop CPU."""

    kernel_samples: int = 4
    kernel_sample_ms: float = 0.25
    min_passes: int = 3
    max_passes: int = 10
    agreement: float = 0.01  # the two lowest passes of a kernel, relative
    agreement_us: float = 0.1  # or this close: a kernel of a few microseconds cannot do better
    kernel_pass_s: float = 1.0  # slow kernels take fewer samples
    model_passes: int = 10
    busy_factor: int = 3  # times as many passes beside other programs: one of them will be nearly undisturbed
    model_samples: int = 20
    model_sample_ms: float = 0.2  # longer models: a sample is one inference
    model_pass_s: float = 1.0
    cadence_fps: float = 0.0  # whole models: so many runs a second, as an app makes them; 0: back to back
    spread_s: float = 0.0  # the passes of `measure_model` are spread over at least this long
    warmup_runs: int = 4  # the fewest
    # Only where the device has rested, as before a batch. Passes follow each other without a rest, so that the clocks
    # stay up, and what a fresh session lacks, memory and caches, it has after some runs: the warm-up sees that its runs
    # get no shorter. At 0.5 s for each pass of some 300 kernels a profile would take 8 minutes longer.
    kernel_warmup_s: float = 0.1
    model_warmup_s: float = 0.5
    pair_rounds: int = 10
    anchor_every: int = 40  # passes
    anchor_drift: float = 0.05
    anchor_repeats: int = 2  # in a row
    anchor_total_repeats: int = 10  # in all: a busy machine must not take for ever
    cpu_time: bool = False  # benchmarks only: the table and every budget speak of wall time
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "kernel_samples", "min_passes", "max_passes", "model_passes", "busy_factor", "model_samples",
            "warmup_runs", "pair_rounds", "anchor_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name} = {getattr(self, name)} must be at least 1")
        if self.max_passes < self.min_passes:
            raise InvalidConfig(f"max_passes = {self.max_passes} is below min_passes = {self.min_passes}")
        for name in ("kernel_sample_ms", "kernel_pass_s", "model_sample_ms", "model_pass_s", "anchor_drift"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"{name} = {getattr(self, name)} must be above 0")
        for name in (
            "agreement", "agreement_us", "cadence_fps", "spread_s", "anchor_repeats", "anchor_total_repeats",
            "kernel_warmup_s", "model_warmup_s",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise InvalidConfig(f"{name} = {getattr(self, name)} must not be negative")

    @property
    def kernel_timing(self) -> Timing:
        return Timing(
            self.kernel_samples, self.kernel_sample_ms, self.warmup_runs, self.kernel_pass_s,
            cpu_time=self.cpu_time, warmup_s=self.kernel_warmup_s,
        )  # fmt: skip

    @property
    def model_timing(self) -> Timing:
        back_to_back = Timing(
            self.model_samples, self.model_sample_ms, self.warmup_runs, self.model_pass_s,
            cpu_time=self.cpu_time, warmup_s=self.model_warmup_s,
        )  # fmt: skip
        if not self.cadence_fps:
            return back_to_back
        # A second of samples after half a second in which the clocks come down.
        return replace(
            back_to_back,
            samples=max(self.model_samples, math.ceil(self.cadence_fps)),
            warmup_runs=max(self.warmup_runs, math.ceil(self.cadence_fps / 2)),
            max_s=2 * self.model_pass_s,
            period_ms=1000 / self.cadence_fps,
            warmup_s=0.0,
        )

    def is_kernel_done(self, passes: Sequence[Pass]) -> bool:
        """The stop rule: the two lowest of at least `min_passes` passes agree, or `max_passes` were made.

        Beside other programs `busy_factor` times as many passes are the least: a slow phase may hold for a few.
        """
        quiet = sum(not one.busy for one in passes)
        fewest = self.min_passes * (1 if quiet >= self.min_passes else self.busy_factor)
        if len(passes) < fewest or len(passes) >= self.max_passes:
            return len(passes) >= self.max_passes
        lows = sorted(pass_low_ms(one.samples_ms) for one in passes)
        return len(lows) < 2 or lows[1] - lows[0] <= max(lows[0] * self.agreement, self.agreement_us / 1000)

    def is_model_done(self, passes: Sequence[Pass]) -> bool:
        """`model_passes` on a device left alone, or `busy_factor` times as many in all."""
        quiet = sum(not one.busy for one in passes)
        return quiet >= self.model_passes or len(passes) >= self.busy_factor * self.model_passes


QUICK = ProtocolConfig(min_passes=2, max_passes=3, model_passes=4)  # a later profile adds the passes that lack
