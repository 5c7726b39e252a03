"""Several phones of one kind fill one table: each kernel is measured on one of them.

A few kernels are measured on all. Where their latencies differ by one factor, the rest is dealt out: what another than
the first phone measures is stored under its own conditions, and taken over times the factor, which the table keeps on
record. Where they do not, that phone is left out.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.device import Device, Job, Neighbours, Pass, ResumableDevice
from amc_mobile.errors import DeviceError
from amc_mobile.latency.measurement import KernelMeasurement, KernelRequest
from amc_mobile.latency.protocol import DEFAULT, SEED, ProtocolConfig, best_anchor, measure_kernels
from amc_mobile.latency.table import LatencyTable

T = TypeVar("T")
ANCHORS = 8
CANDIDATES = 16  # number of kernels that anchors are chosen from where no latency is known yet
TOLERANCE = 0.05  # of one ratio from 1, or of all from their median
LEAST_MS = 0.02  # the ratio of shorter kernels is mostly noise


@dataclass(frozen=True)
class Agreement:
    """`ratio`: the median of new over old; `spread`: the largest relative distance of one ratio from it.

    "accept": all ratios are 1 within the tolerance. "rescale": all are the same within it. "rebuild": neither.
    """

    action: Literal["accept", "rescale", "rebuild"]
    ratio: float
    spread: float
    ratios: Mapping[str, float]  # label -> new / old

    def to_document(self) -> dict[str, Any]:
        return {"action": self.action, "ratio": self.ratio, "spread": self.spread, "ratios": dict(self.ratios)}

    def text(self) -> str:
        lines = [f"  {ratio:6.3f}  {label}" for label, ratio in self.ratios.items()]
        return "\n".join(
            [f"new over old, {len(lines)} anchors: median {self.ratio:.3f}, spread {self.spread:.1%}", *lines]
        )


def judge(ratios: Mapping[str, float]) -> Agreement:
    values = np.array(list(ratios.values()))
    middle = float(np.median(values))
    spread = float(np.abs(values / middle - 1).max())
    if (np.abs(values - 1) <= TOLERANCE).all():
        return Agreement("accept", middle, spread, ratios)
    return Agreement("rescale" if spread <= TOLERANCE else "rebuild", middle, spread, ratios)


def anchors(kernels: Sequence[KernelMeasurement], types: Mapping[str, str]) -> list[KernelMeasurement]:
    """Up to eight kernels without flags and of LEAST_MS or more, spread over their types and latencies.

    `types`: kernel key -> operator type. Where fewer than eight are long enough, the longest.
    """
    steady = sorted([k for k in kernels if not k.flags] or kernels, key=lambda k: (-k.low_ms, k.key))
    long_enough = [k for k in steady if k.low_ms >= LEAST_MS]
    by_type: dict[str, list[KernelMeasurement]] = {}
    for kernel in long_enough if len(long_enough) >= ANCHORS else steady[:ANCHORS]:
        by_type.setdefault(types[kernel.key], []).append(kernel)
    return _spread_over_types(by_type, ANCHORS)


def candidates(keys: Sequence[str], types: Mapping[str, str]) -> list[str]:
    """Kernels to measure first, for anchors among them; of each type the greater half. `keys`: most work first."""
    by_type: dict[str, list[str]] = {}
    for key in keys:
        by_type.setdefault(types[key], []).append(key)
    return _spread_over_types({kind: found[: (len(found) + 1) // 2] for kind, found in by_type.items()}, CANDIDATES)


def _spread_over_types(by_type: Mapping[str, Sequence[T]], picks: int) -> list[T]:
    shares = dict.fromkeys(by_type, 0)
    for _ in range(picks):  # one to each type in turn, the one with the longest kernel first
        unused = [kind for kind, found in by_type.items() if shares[kind] < len(found)]
        if unused:
            shares[min(unused, key=lambda kind: shares[kind])] += 1
    return [found[i] for kind, found in by_type.items() for i in _spread(len(found), shares[kind])]


def _spread(count: int, picks: int) -> list[int]:
    """`picks` positions of `count`, the first and the last among them."""
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, picks)}) if picks else []


@dataclass
class PhoneShare:
    """What one phone did. `ratio`: what its latencies were multiplied by; None where it was left out."""

    serial: str
    ratio: float | None = None
    kernels: int = 0
    problem: str = ""

    def to_document(self) -> dict[str, Any]:
        return {"serial": self.serial, "ratio": self.ratio, "kernels": self.kernels, "problem": self.problem}

    def text(self) -> str:
        did = "left out" if self.ratio is None else f"{self.kernels} kernels, latencies times {self.ratio:.3f}"
        return f"{self.serial}: {did}{'; ' + self.problem if self.problem else ''}"


class SharingPhone:
    """A device under conditions of its own, whose passes end when the others' work is given up."""

    def __init__(self, serial: str, device: Device, conditions: Conditions, given_up: threading.Event) -> None:
        self.share = PhoneShare(serial)
        self.jobs_per_batch = device.jobs_per_batch
        self._device, self._conditions, self._given_up = device, conditions, given_up

    def conditions(self) -> Conditions:
        return self._conditions

    def session(self) -> AbstractContextManager[object]:
        return self._device.session()

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[Pass, None, None]:
        device = self._device
        given = device.passes(jobs, plan=plan) if isinstance(device, ResumableDevice) else device.passes(jobs)
        with closing(given) as made:
            for p in made:
                if self._given_up.is_set():
                    raise DeviceError("stopped", next_step="run the same command again: what was measured is kept")
                yield p

    def unfinished(self) -> str:
        return self._device.unfinished() if isinstance(self._device, ResumableDevice) else ""

    def alternate(self, before: Job, after: Job, rounds: int) -> Generator[tuple[Pass, Pass], None, None]:
        yield from self._device.alternate(before, after, rounds)

    def is_steady(self) -> bool:
        return self._device.is_steady()

    def settle(self) -> None:
        self._device.settle()

    def neighbours(self) -> Neighbours | None:
        return self._device.neighbours()

    def most_neighbours(self) -> Neighbours | None:
        return self._device.most_neighbours()

    def screen(self) -> str:
        return self._device.screen()


def sharing_phones(devices: Mapping[str, Device], given_up: threading.Event) -> list[SharingPhone]:
    """Each under its own conditions, which differ in the unit alone. `devices`: by serial.

    Raises DeviceError for phones under unlike conditions.
    """
    (first, device), *others = devices.items()
    common = device.conditions()
    phones = [SharingPhone(first, device, common, given_up)]
    for serial, other in others:
        own_conditions = other.conditions()
        if differences := replace(common, unit=own_conditions.unit).differences(own_conditions):
            unlike = "; ".join(
                f"{name} {own} on {first}, {its} on {serial}" for name, (own, its) in differences.items()
            )
            raise DeviceError(
                f"the phones cannot share the work: {unlike}",
                next_step=f"bring them to the same state, or measure on one: --serial {first}",
            )
        if own_conditions.unit in {phone.conditions().unit for phone in phones}:  # clones that answer with one serial
            own_conditions = replace(own_conditions, unit=unit_of(serial))
        phones.append(SharingPhone(serial, other, own_conditions, given_up))
    return phones


RESIDUAL = 0.03  # of any anchor's ratio from their median
LEAST_SHARE = 12  # kernels dealt out at once: a batch costs seconds to start
OnProgress = Callable[[str, int, int], None]  # what is measured, done, total


def share_kernels(
    devices: Mapping[str, Device],
    requests: Mapping[str, KernelRequest],
    types: Mapping[str, str],
    *,
    table: LatencyTable,
    on_progress: OnProgress | None = None,
    config: ProtocolConfig = DEFAULT,
) -> list[PhoneShare]:
    """Measures on all phones at once; returns what each did.

    `devices`: by serial; the table speaks of the first. `requests`: by key, those with the most work first; `types`:
    key -> operator type. A phone that fails ends its part, and the others do its kernels; those that the first had
    begun, and all where no phone remains, are still missing then. Resumes from `table`. Raises DeviceError for phones
    under unlike conditions, and where the first fails before anything is dealt out.
    """
    return _Sharing(devices, requests, types, table, on_progress, config).run()


class _Sharing:
    def __init__(
        self,
        devices: Mapping[str, Device],
        requests: Mapping[str, KernelRequest],
        types: Mapping[str, str],
        table: LatencyTable,
        on_progress: OnProgress | None,
        config: ProtocolConfig,
    ) -> None:
        self._requests, self._types, self._table = requests, types, table
        self._on_progress, self._config = on_progress, config
        self._given_up = threading.Event()
        self._phones = sharing_phones(devices, self._given_up)
        self._first = self._phones[0]
        self._conditions = self._first.conditions()
        self._changed = threading.Condition()
        self._waiting: list[list[str]] = []
        self._at_work = 0
        self._done = 0

    def run(self) -> list[PhoneShare]:
        self._table.add_kernels(request.kernel for request in self._requests.values())
        with ThreadPoolExecutor(len(self._phones)) as pool:
            try:
                self._compare(pool)
                taking_part = [phone for phone in self._phones if phone.share.ratio is not None]
                if len(taking_part) > 1:
                    self._deal()
                    for part in [pool.submit(self._work, phone) for phone in taking_part]:
                        part.result()
            except BaseException:
                self._given_up.set()  # else the pool waits until all is measured
                raise
        return [phone.share for phone in self._phones]

    # Which phones take part

    def _compare(self, pool: ThreadPoolExecutor) -> None:
        """Gives each phone that takes part its ratio. What is on record is not judged again."""
        self._first.share.ratio = 1.0
        recorded, others = self._table.adoptions(), []
        taken_over: set[str] = set()
        for phone in self._phones[1:]:
            phone.share.ratio = recorded.get((self._conditions.key, phone.conditions().key))
            if phone.share.ratio is None:
                others.append(phone)
            else:
                taken_over |= set(self._table.passes(phone.conditions(), self._requests))
        if not others:
            return
        keys = candidates([key for key in self._requests if key not in taken_over], self._types)
        if len(keys) < ANCHORS:
            for phone in others:
                phone.share.problem = f"the network has {len(keys)} kernels to compare phones by, {ANCHORS} are needed"
            return
        parts = {phone: pool.submit(self._measure, phone, keys) for phone in (self._first, *others)}
        own = parts[self._first].result()
        for phone in others:
            try:
                self._judge(phone, own, parts[phone].result())
            except DeviceError as error:
                phone.share.problem = error.message

    def _measure(self, phone: SharingPhone, keys: Sequence[str]) -> dict[str, KernelMeasurement]:
        def report(done: int, total: int, _: str) -> None:
            if self._on_progress and phone is self._first:
                self._on_progress("compare the phones", done, total)

        requests = {key: self._requests[key] for key in keys}
        before = self._finished(phone, keys)
        measured = measure_kernels(phone, requests, table=self._table, on_result=report, config=self._config)
        if phone is self._first:
            phone.share.kernels = len(keys) - len(before)
        return measured

    def _judge(
        self, phone: SharingPhone, own: Mapping[str, KernelMeasurement], others: Mapping[str, KernelMeasurement]
    ) -> None:
        steady = [kernel for key, kernel in own.items() if not kernel.flags and not others[key].flags]
        chosen = anchors(steady, self._types)
        if len(chosen) < ANCHORS:
            phone.share.problem = f"only {len(chosen)} kernels were steady on both phones, {ANCHORS} are needed"
            return
        verdict = judge({kernel.label: kernel.low_ms / others[kernel.key].low_ms for kernel in chosen})
        if verdict.spread > RESIDUAL:
            low, high = min(verdict.ratios.values()), max(verdict.ratios.values())
            phone.share.problem = (
                f"{self._first.share.serial} takes {low:.3f} to {high:.3f} times as long for {ANCHORS} kernels: "
                f"{verdict.spread:.1%} from their median, {RESIDUAL:.0%} is the most for sharing"
            )
            return
        phone.share.ratio = verdict.ratio
        # On record before anything is taken over.
        self._table.adopt(self._conditions, phone.conditions(), [], verdict.ratio)

    # Dealing out

    def _deal(self) -> None:
        """The same shares in every run of one network, so that a phone meets its own again after a kill."""
        keys = random.Random(SEED).sample(list(self._requests), len(self._requests))
        at = 0
        while at < len(keys):
            size = max(LEAST_SHARE, (len(keys) - at) // (2 * len(self._phones)))
            self._waiting.append(keys[at : at + size])
            at += size
        finished = self._finished(self._first, keys)
        self._done = len(finished)
        self._waiting = [share for share in self._waiting if not finished.issuperset(share)]

    def _work(self, phone: SharingPhone) -> None:
        while (share := self._take(phone)) is not None:
            again = []
            try:
                self._do(phone, share)
            except DeviceError as error:
                again = [share]
                phone.share.problem = f"{error.message}; the rest was left to the others"
                return
            except BaseException:
                self._given_up.set()
                raise
            finally:
                with self._changed:
                    self._waiting += again
                    self._at_work -= 1
                    self._changed.notify_all()

    def _take(self, phone: SharingPhone) -> list[str] | None:
        """The phone's next share: one it has begun, else one that nobody has. None when all are done."""
        with self._changed:
            # A phone at work may yet fail and leave its share.
            while not self._waiting and self._at_work and not self._given_up.is_set():
                self._changed.wait(0.5)
            if not self._waiting or self._given_up.is_set():
                return None
            begun = {other: self._begun(other) for other in self._phones}
            ranks = [0 if begun[phone] & set(s) else 1 + any(b & set(s) for b in begun.values()) for s in self._waiting]
            self._at_work += 1
            return self._waiting.pop(ranks.index(min(ranks)))

    def _begun(self, phone: SharingPhone) -> set[str]:
        """The kernels that the phone has passes of, and the table no final ones."""
        own = set(self._table.passes(phone.conditions(), self._requests))
        return own - self._finished(self._first, list(own))

    def _do(self, phone: SharingPhone, share: Sequence[str]) -> None:
        guard = self._guard(phone)
        if phone is not self._first:
            held = self._table.passes(self._conditions, share)
            share = [key for key in share if key not in held]
        before = self._finished(phone, share)
        requests = {key: self._requests[key] for key in (*share, *([guard] if guard else []))}
        try:
            measure_kernels(
                phone, requests, table=self._table, anchor=self._requests[guard] if guard else None,
                on_result=lambda _, __, ___: self._tell(), config=self._config_of(phone),
            )  # fmt: skip
        finally:
            finished = self._finished(phone, share)
            if phone is not self._first:
                self._table.adopt(self._conditions, phone.conditions(), finished, phone.share.ratio or 1.0)
            phone.share.kernels += len(finished - before)

    def _guard(self, phone: SharingPhone) -> str | None:
        """A kernel that the phone was compared by: what it took then is the level for all that follows."""
        keys = candidates(list(self._requests), self._types)
        stored = self._table.passes(phone.conditions(), keys)
        return best_anchor({key: passes for key, passes in stored.items() if self._config.is_kernel_done(passes)})

    def _finished(self, phone: SharingPhone, keys: Sequence[str]) -> set[str]:
        stored = self._table.passes(phone.conditions(), keys)
        config = self._config_of(phone)
        return {key for key, passes in stored.items() if config.is_kernel_done(passes)}

    def _config_of(self, phone: SharingPhone) -> ProtocolConfig:
        # What agrees has to agree when it is multiplied, too.
        return replace(self._config, agreement_us=self._config.agreement_us / (phone.share.ratio or 1.0))

    def _tell(self) -> None:
        with self._changed:
            self._done += 1
            if self._on_progress:
                self._on_progress("measure kernels", self._done, len(self._requests))
