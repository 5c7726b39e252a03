"""Timing one session, and the anchor that tells whether the machine is still the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from amc_mobile.device.conditions import Conditions
from amc_mobile.errors import AmcMobileError, DeviceError
from amc_mobile.latency.statistics import pass_low_ms


class Session(Protocol):
    run: Callable[[], object]


class Device(Protocol):
    """Where models run. Each `open` gives a fresh session with its inputs filled."""

    def conditions(self) -> Conditions: ...
    def open(self, model: bytes) -> AbstractContextManager[Session]: ...


@dataclass(frozen=True)
class Timing:
    """How one session is timed. Slow models take at least `min_samples` and stop at `max_s`."""

    samples: int
    min_sample_ms: float  # shorter models are called several times per sample, and the sample is the mean
    warmup_runs: int
    max_s: float
    min_samples: int = 4
    cpu_time: bool = False  # of the calling thread, for benchmarks on busy machines; a session must use no other thread


def time_session(session: Session, timing: Timing) -> tuple[float, ...]:
    """Milliseconds per inference, in the order run, after the warm-up runs."""
    run, clock = session.run, time.thread_time if timing.cpu_time else time.perf_counter
    shortest = math.inf
    began = clock()
    for done in range(timing.warmup_runs):
        start = clock()
        run()
        shortest = min(shortest, clock() - start)
        if done > 0 and clock() - began > timing.max_s / 2:
            break
    # The shortest warm-up run decides: a single interrupted one would make the samples too short to time.
    calls = max(1, math.ceil(timing.min_sample_ms / 1000 / max(shortest, 1e-7)))
    samples: list[float] = []
    began = clock()
    for _ in range(timing.samples):
        start = clock()
        for _ in range(calls):
            run()
        end = clock()
        samples.append(max(end - start, 1e-9) * 1000 / calls)
        if end - began > timing.max_s and len(samples) >= timing.min_samples:
            break
    return tuple(samples)


def time_model(device: Device, label: str, model: Callable[[], bytes], timing: Timing) -> tuple[float, ...]:
    """One pass: a fresh session, warmed up and timed. Raises DeviceError that names the model by `label`."""
    try:
        with device.open(model()) as session:
            return time_session(session, timing)
    except AmcMobileError as error:
        raise DeviceError(f"{label}: {error.message}", next_step=error.next_step) from error


class Anchor:
    """A model that is measured again and again: what drifts is the machine."""

    def __init__(self, device: Device, model: bytes, timing: Timing, *, tolerance: float, readings: int = 3) -> None:
        self._device = device
        self._model = model
        self._timing = timing
        self._tolerance = tolerance
        self._readings = readings
        self._lowest_ms = min(self._read() for _ in range(readings))

    def _read(self) -> float:
        return pass_low_ms(time_model(self._device, "the anchor", lambda: self._model, self._timing))

    def is_steady(self) -> bool:
        """Whether one of a few readings is within the tolerance of the lowest reading so far."""
        for _ in range(self._readings):
            reading = self._read()
            steady = reading <= self._lowest_ms * (1 + self._tolerance)
            self._lowest_ms = min(self._lowest_ms, reading)
            if steady:
                return True
        return False
