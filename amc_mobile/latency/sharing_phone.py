"""The phones that share the work: the device of each, its conditions, and what it did."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Any

from amc_mobile.device.conditions import Conditions, unit_of
from amc_mobile.device.neighbours import Neighbours
from amc_mobile.device.timing import Device, Job, ResumableDevice, TimedPass
from amc_mobile.errors import DeviceError


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

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[TimedPass, None, None]:
        device = self._device
        given = device.passes(jobs, plan=plan) if isinstance(device, ResumableDevice) else device.passes(jobs)
        with closing(given) as made:
            for one in made:
                if self._given_up.is_set():
                    raise DeviceError("stopped", next_step="run the same command again: what was measured is kept")
                yield one

    def unfinished(self) -> str:
        return self._device.unfinished() if isinstance(self._device, ResumableDevice) else ""

    def alternate(self, before: Job, after: Job, rounds: int) -> Generator[tuple[TimedPass, TimedPass], None, None]:
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
        found = other.conditions()
        if differences := replace(common, unit=found.unit).differences(found):
            told = "; ".join(f"{name} {own} on {first}, {its} on {serial}" for name, (own, its) in differences.items())
            raise DeviceError(
                f"the phones cannot share the work: {told}",
                next_step=f"bring them to the same state, or measure on one: --serial {first}",
            )
        if found.unit in {phone.conditions().unit for phone in phones}:  # clones that answer with one serial
            found = replace(found, unit=unit_of(serial))
        phones.append(SharingPhone(serial, other, found, given_up))
    return phones
