"""Stretches of passes between two looks at the anchor, which tells whether the device stayed the same meanwhile.

Where the anchor has drifted, the stretch is thrown away and made again, a bounded number of times; after that its
passes are kept and flagged busy, as are those made beside other programs.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

from amc_mobile.device.timing import Device, Job, ResumableDevice, TimedPass, Timing
from amc_mobile.latency.anchor import Anchor
from amc_mobile.latency.measurement import Pass
from amc_mobile.latency.protocol_config import ProtocolConfig
from amc_mobile.latency.requests import Request
from amc_mobile.latency.statistics import pass_low_ms
from amc_mobile.latency.stretch_plan import StretchPlan

SHORTEST_CLOCK_MS = 200.0  # the kernel counts in steps of 10 ms


class DeviceState(NamedTuple):
    """The device during a stretch: the anchor's reading after it, and the mean clock; None: unknown."""

    anchor_ms: float | None
    mhz: float | None


class Stretch(NamedTuple):
    """`passes`: (key, pass) in the order made; `beside`: whether other programs ran meanwhile."""

    passes: list[tuple[str, Pass]]
    beside: bool
    state: DeviceState


def is_busy(device: Device) -> bool:
    """Whether other programs ran when the device was last looked at."""
    found = device.neighbours()
    return found is not None and found.is_busy


def _mean_mhz(timed: Sequence[TimedPass]) -> float | None:
    known = [(one.record.clock_mhz_ms or 0.0, one.record.clock_ms) for one in timed if one.record.clock_ms]
    total_ms = sum(ms for _, ms in known)
    return sum(mhz_ms for mhz_ms, _ in known) / total_ms if total_ms >= SHORTEST_CLOCK_MS else None


class StretchMaker:
    """Makes stretches within one session of a device.

    `requests`: by key; `anchor`: None for a device that is not watched. `stored`: the passes by key that outlive this
    process, as they grow, None where none do; with them a device that can goes on after a kill. `plan`: what a killed
    process left, whose count of repeats goes on.
    """

    def __init__(
        self,
        device: Device,
        requests: Mapping[str, Request],
        timing: Timing,
        anchor: Anchor | None,
        config: ProtocolConfig,
        *,
        stored: Mapping[str, Sequence[Pass]] | None,
        plan: StretchPlan | None,
    ) -> None:
        self._device = device
        self._requests = requests
        self._timing = timing
        self._anchor = anchor
        self._config = config
        self._stored = stored
        self._in_a_row = plan.in_a_row if plan else 0
        self._repeats_left = plan.repeats_left if plan else config.anchor_total_repeats

    def make(self, stretches: Sequence[Sequence[str]]) -> Iterator[Stretch]:
        """Makes a pass per key. A stretch that is made again comes after those made along with it."""
        waiting = list(stretches)
        while waiting:
            count = max(1, self._device.jobs_per_batch // self._config.anchor_every)
            batch, waiting = waiting[:count], waiting[count:]
            again = []
            for keys, timed, steady, state in self._batch(batch):
                self._in_a_row = 0 if steady else self._in_a_row + 1
                if steady or self._in_a_row > self._config.anchor_repeats or self._repeats_left == 0:
                    beside = is_busy(self._device)
                    passes = [Pass(one.samples_ms, beside or not steady, one.record) for one in timed]
                    yield Stretch(list(zip(keys, passes, strict=True)), beside, state)
                else:
                    self._repeats_left -= 1
                    again.append(keys)
            if again:
                self._device.settle()
                waiting = again + waiting

    def _batch(
        self, stretches: Sequence[Sequence[str]]
    ) -> Iterator[tuple[Sequence[str], list[TimedPass], bool, DeviceState]]:
        """For each stretch as it comes: keys, what was timed, whether the device stayed the same, and its state."""
        anchor = self._anchor
        first = anchor.first_jobs() if anchor else []
        last = anchor.jobs() if anchor else []
        jobs = list(first)
        for keys in stretches:
            requests = [self._requests[key] for key in keys]
            jobs += [Job(request.key, request.label, request.model, self._timing) for request in requests] + last
        with closing(self._start(jobs, stretches)) as made:
            if anchor is not None:
                anchor.see([one.samples_ms for one in islice(made, len(first))])
            for position, keys in enumerate(stretches):
                timed = list(islice(made, len(keys)))
                readings = list(islice(made, len(last)))
                steady = anchor.is_steady([one.samples_ms for one in readings]) if anchor else True
                # Heat shows in the anchor as well; the device itself is asked when it has nothing to do.
                if position == len(stretches) - 1:
                    steady = steady and self._device.is_steady()
                anchor_ms = min((pass_low_ms(one.samples_ms) for one in readings), default=None)
                yield keys, timed, steady, DeviceState(anchor_ms, _mean_mhz([*timed, *readings]))

    def _start(self, jobs: Sequence[Job], stretches: Sequence[Sequence[str]]) -> Generator[TimedPass, None, None]:
        if self._stored is None or not isinstance(self._device, ResumableDevice):
            return self._device.passes(jobs)
        anchor = self._anchor
        plan = StretchPlan(
            tuple(tuple(keys) for keys in stretches),
            {key: len(self._stored[key]) for keys in stretches for key in keys},
            anchor.key if anchor else "",
            anchor.lowest_ms if anchor else math.inf,
            self._in_a_row,
            self._repeats_left,
        )
        return self._device.passes(jobs, plan=plan.to_text())
