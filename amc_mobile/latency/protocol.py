"""How kernels and whole models are measured.

Every pass opens a fresh session; the order is shuffled anew for each pass, so that drift meets all alike. Kernels stop
when their two lowest passes agree, of those made while anchor and clocks were at their best. Passes made beside other
programs that did not end are made again as soon as the device is left alone.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from amc_mobile.device.timing import Device, Heat, HeatReader, Job, ResumableDevice, TimedPass, Timing
from amc_mobile.latency.anchor import Anchor, best_anchor
from amc_mobile.latency.measurement import (
    KernelMeasurement,
    ModelMeasurement,
    PairMeasurement,
    Pass,
    SustainedMeasurement,
    Window,
)
from amc_mobile.latency.protocol_config import ProtocolConfig
from amc_mobile.latency.requests import KernelRequest, ModelRequest, Request
from amc_mobile.latency.statistics import pass_low_ms
from amc_mobile.latency.stretch_plan import StoredStretches, StretchPlan
from amc_mobile.latency.stretches import DeviceState, StretchMaker, is_busy
from amc_mobile.latency.table import LatencyTable

WINDOW_S = 5.0
FEWEST_WINDOWS = 4  # fewer do not show how latency changes
MOST_SAMPLES = 100_000  # of one session, as the runner on phones has it
T = TypeVar("T")
OnResult = Callable[[int, int, str], None]  # done, total, the key that is done


def measure_kernels(
    device: Device,
    requests: Mapping[str, KernelRequest],
    *,
    table: LatencyTable | None = None,
    anchor: KernelRequest | None = None,
    on_result: OnResult | None = None,
    config: ProtocolConfig | None = None,
) -> dict[str, KernelMeasurement]:
    """Measures kernels until each has enough passes. `requests`: by key.

    With a `table`, passes already in it under the device's conditions count, and new ones are stored as they are made:
    after a kill the same call goes on, with what a phone went on to measure meanwhile. `anchor`: a kernel of some
    0.1 ms; where none is given, a request that was measured already, else the middle one. It is held against its
    passes in the table from the first reading on. Raises DeviceError naming the kernel that does not run.
    """
    config = config or ProtocolConfig()
    if table is not None:
        table.add_kernels(request.kernel for request in requests.values())
    made = _Run(device, requests, table, config, on_result).all_passes(
        config.kernel_timing, config.is_kernel_done, config.min_passes, anchor, config.max_passes
    )
    conditions = device.conditions()
    return {
        key: KernelMeasurement(key, request.label, tuple(made[key]), conditions) for key, request in requests.items()
    }


def measure_models(
    device: Device,
    requests: Mapping[str, ModelRequest],
    *,
    table: LatencyTable | None = None,
    anchor: KernelRequest | None = None,
    on_result: OnResult | None = None,
    config: ProtocolConfig | None = None,
) -> dict[str, ModelMeasurement]:
    """Measures several whole models, their passes interleaved in shuffled order. Resumes from `table` as kernels do."""
    config = config or ProtocolConfig()
    if table is not None:
        table.add_models(requests.values())
    made = _Run(device, requests, table, config, on_result).all_passes(
        config.model_timing, config.is_model_done, config.model_passes, anchor
    )
    conditions = device.conditions()
    return {key: ModelMeasurement(tuple(made[key]), conditions, config.warmup_runs) for key in requests}


def measure_model(device: Device, model: bytes, config: ProtocolConfig | None = None) -> ModelMeasurement:
    """Measures one whole model. Raises DeviceError when it does not run."""
    config = config or ProtocolConfig()
    job = Job("model", "the model", lambda: model, config.model_timing)

    def attempt() -> list[TimedPass]:
        if config.spread_s == 0:
            return list(device.passes([job] * config.model_passes))
        made: list[TimedPass] = []
        began = time.monotonic()
        while len(made) < config.model_passes:
            due = began + config.spread_s * len(made) / max(1, config.model_passes - 1)
            time.sleep(max(0.0, due - time.monotonic()))
            made += device.passes([job])
        return made

    with device.session():
        made, quiet = _until_steady(device, config, attempt)
    passes = tuple(Pass(one.samples_ms, not quiet, one.record) for one in made)
    return ModelMeasurement(passes, device.conditions(), config.model_timing.warmup_runs, device.screen())


def measure_sustained(
    device: Device,
    model: bytes,
    seconds: float,
    *,
    on_window: Callable[[float], None] | None = None,
    config: ProtocolConfig | None = None,
) -> SustainedMeasurement:
    """Runs one model for `seconds` without letting the device cool, in windows of at most WINDOW_S.

    Each window is a session of its own: loading the model between two takes some milliseconds. `on_window`: given the
    seconds so far. Raises DeviceError when the model does not run.
    """
    config = config or ProtocolConfig()
    count = max(FEWEST_WINDOWS, math.ceil(seconds / WINDOW_S))
    timing = replace(config.model_timing, samples=MOST_SAMPLES, warmup_runs=config.warmup_runs, max_s=seconds / count)
    job = Job("model", "the model", lambda: model, timing)
    windows: list[Window] = []
    with device.session():
        began = time.monotonic()
        for timed in device.passes([job] * count):
            heat = device.heat() if isinstance(device, HeatReader) else Heat()
            record = timed.record
            if record.clock_ms and record.clock_mhz_ms is not None:
                heat = replace(heat, clock_mhz=record.clock_mhz_ms / record.clock_ms)  # the mean of the whole window
            windows.append(Window(time.monotonic() - began, timed.samples_ms, heat))
            if on_window:
                on_window(windows[-1].ended_s)
        device.is_steady()  # looks for other programs; being hot is no fault here
        busy = is_busy(device)
    return SustainedMeasurement(tuple(windows), device.conditions(), busy)


def measure_pair(device: Device, before: bytes, after: bytes, config: ProtocolConfig | None = None) -> PairMeasurement:
    """Times two models in alternating blocks, before-after-after-before, in fresh sessions per round."""
    config = config or ProtocolConfig()
    jobs = [
        Job("before", "the original model", lambda: before, config.model_timing),
        Job("after", "the pruned model", lambda: after, config.model_timing),
    ]
    with device.session():
        rounds, quiet = _until_steady(
            device, config, lambda: list(device.alternate(jobs[0], jobs[1], config.pair_rounds))
        )
    conditions = device.conditions()
    measured = [
        ModelMeasurement(
            tuple(Pass(one[which].samples_ms, not quiet, one[which].record) for one in rounds),
            conditions,
            config.warmup_runs,
            device.screen(),
        )
        for which in (0, 1)
    ]
    speedups = tuple(float(np.median(first.samples_ms) / np.median(second.samples_ms)) for first, second in rounds)
    return PairMeasurement(measured[0], measured[1], speedups)


def _until_steady(device: Device, config: ProtocolConfig, attempt: Callable[[], T]) -> tuple[T, bool]:
    """The first attempt that nothing new spoilt, or the last that is allowed; whether the device was fit meanwhile."""
    for _ in range(config.anchor_repeats + 1):
        made = attempt()
        if device.is_steady():
            return made, not is_busy(device)
        device.settle()
    return made, False


class _Run:
    """One call of the protocol over many requests."""

    def __init__(
        self,
        device: Device,
        requests: Mapping[str, Request],
        table: LatencyTable | None,
        config: ProtocolConfig,
        on_result: OnResult | None,
    ) -> None:
        self._device = device
        self._requests = requests
        self._table = table
        self._config = config
        self._on_result = on_result
        self._conditions = device.conditions()
        self._passes: dict[str, list[Pass]] = {key: [] for key in requests}
        if table is not None:
            for key, stored in table.passes(self._conditions, requests).items():
                self._passes[key] = list(stored)
        # Among the first so many passes of a key, busy ones do not count.
        self._outdated = dict.fromkeys(requests, 0)
        self._outdatings_left = config.anchor_total_repeats
        self._states: dict[str, list[DeviceState | None]] = {
            key: [None] * len(made) for key, made in self._passes.items()
        }
        self._anchor_in_use: Anchor | None = None
        self._most = 0  # so many passes of a key count, however slow the device was
        self._highest_mhz = 0.0
        self._has_beside = any(one.busy for made in self._passes.values() for one in made)

    def all_passes(
        self,
        timing: Timing,
        is_done: Callable[[Sequence[Pass]], bool],
        at_least: int,
        anchor_request: Request | None,
        most: int = 0,
    ) -> dict[str, list[Pass]]:
        """Passes by key, until `is_done` of each; `at_least`: no key is done with fewer. `most`: below so many, passes
        made while the device was slow do not count; 0: they do."""
        passes, self._most = self._passes, most
        todo = [key for key in passes if not is_done(passes[key])]
        if not todo and not self._has_beside:
            return passes
        order = random.Random(self._config.seed)
        with self._device.session():
            self._outdate()
            todo = [key for key in passes if not is_done(self._counted(key))]
            left, total = set(todo), len(passes)
            plan = self._unfinished(anchor_request)
            anchor, stored = self._anchor(anchor_request, todo, plan), passes if self._table is not None else None
            self._anchor_in_use = anchor
            maker = StretchMaker(self._device, self._requests, timing, anchor, self._config, stored=stored, plan=plan)
            waiting: list[Sequence[str]] = list(plan.stretches) if plan else []
            old = StoredStretches(plan, {key: len(made) for key, made in passes.items()}) if plan else None
            while todo:
                if not waiting:
                    # Rounds that every key needs in any case can be given to the device at once.
                    rounds = max(1, at_least - max(len(self._counted(key)) for key in todo))
                    queue = [key for _ in range(rounds) for key in order.sample(todo, len(todo))]
                    length = self._config.anchor_every
                    waiting = [queue[start : start + length] for start in range(0, len(queue), length)]
                for stretch in maker.make(waiting):
                    self._has_beside |= stretch.beside
                    if old and old.holds([key for key, _ in stretch.passes]):
                        continue
                    if self._table is not None:
                        self._table.add_passes(self._conditions, stretch.passes, warmup_runs=timing.warmup_runs)
                    self._highest_mhz = max(self._highest_mhz, stretch.state.mhz or 0.0)
                    for key, one in stretch.passes:
                        passes[key].append(one)
                        self._states[key].append(stretch.state)
                        if key in left and is_done(self._counted(key)):
                            left.discard(key)
                            if self._on_result:
                                self._on_result(total - len(left), total, key)
                waiting, old = [], None
                self._outdate()
                todo = [key for key in passes if not is_done(self._counted(key))]
                left = set(todo)
        return passes

    def _counted(self, key: str) -> list[Pass]:
        """The passes that count towards being done."""
        outdated = self._outdated[key]
        made = list(zip(self._passes[key], self._states[key], strict=True))
        kept = [(one, state) for number, (one, state) in enumerate(made) if number >= outdated or not one.busy]
        if len(kept) < self._most:
            kept = [(one, state) for one, state in kept if one.busy or not self._was_slow(state)]
        return [one for one, _ in kept]

    def _was_slow(self, state: DeviceState | None) -> bool:
        """Whether anchor or clocks have done better at another time: passes may agree on a slow device."""
        if state is None:
            return False
        drift = self._config.anchor_drift
        lowest_ms = self._anchor_in_use.lowest_ms if self._anchor_in_use else math.inf
        is_behind = state.anchor_ms is not None and state.anchor_ms > lowest_ms * (1 + drift)
        return is_behind or (state.mhz is not None and state.mhz < self._highest_mhz * (1 - drift))

    def _outdate(self) -> None:
        """What was made beside other programs does not count any more once the device is left alone."""
        found = self._device.neighbours()
        if self._has_beside and found is not None and not found.is_busy and self._outdatings_left > 0:
            self._outdated = {key: len(made) for key, made in self._passes.items()}
            self._has_beside = False
            self._outdatings_left -= 1

    def _unfinished(self, anchor: Request | None) -> StretchPlan | None:
        """What a killed process left on the device, where it is a part of the present work."""
        if self._table is None or not isinstance(self._device, ResumableDevice):
            return None
        plan = StretchPlan.from_text(self._device.unfinished())
        counts = {key: len(made) for key, made in self._passes.items()}
        if plan is None or not plan.fits({*counts, anchor.key} if anchor else counts, counts):
            return None
        return plan if anchor is None or anchor.key == plan.anchor else None

    def _anchor(self, request: Request | None, todo: Sequence[str], plan: StretchPlan | None) -> Anchor | None:
        if plan is not None and not plan.anchor:
            return None
        if plan is None and len(todo) < 2 and request is None:
            return None
        if request is None:
            quiet = {key: [one for one in made if not one.busy] for key, made in self._passes.items()}
            proven = {key: made for key, made in quiet.items() if len(made) >= self._config.min_passes}
            request = self._requests[plan.anchor if plan else best_anchor(proven) or todo[len(todo) // 2]]
        known: Sequence[Pass] = self._passes.get(request.key, ())
        if not known and self._table is not None:
            known = self._table.passes(self._conditions, [request.key]).get(request.key, ())
        # More samples than a kernel's pass takes: one reading judges a whole stretch.
        timing = replace(self._config.kernel_timing, samples=8)
        lowest_ms = plan.lowest_ms if plan else min((pass_low_ms(one.samples_ms) for one in known), default=math.inf)
        job = Job(request.key, "the anchor", request.model, timing)
        return Anchor(job, tolerance=self._config.anchor_drift, lowest_ms=lowest_ms)
