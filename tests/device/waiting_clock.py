"""A clock for tests of time limits: waits for a phone that does not answer cost no time, and are counted."""

from __future__ import annotations

import math
import socket
import time

import pytest

from amc_mobile.device import adb, phone_runner
from amc_mobile.device.adb import Deadline, RunningShell

REAL_WAIT_S = 0.05


class WaitingClock:
    """Stands in for the module `time` of the modules that wait. Until `hurry` it is the usual clock.

    `waited_s`: all that was waited for in vain since.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waited_s = 0.0
        self._patch = patch
        self._limit_s = 0.0  # of the wait that is under way
        for module in (adb, phone_runner):
            patch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self.waited_s

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def hurry(self) -> None:
        """From now on the phone does not answer: each wait for it ends at once, and counts in full."""
        self._patch.setattr(self, "sleep", self._wait)
        self._patch.setattr(RunningShell, "is_silent_for", lambda shell, seconds: self._wait(seconds) is None)
        exceeded, waited = Deadline.exceeded, Deadline.report_wait

        def shortened(timed: Deadline, connection: socket.socket, most_s: float = math.inf) -> None:
            self._limit_s = min(timed.check(), most_s)
            connection.settimeout(min(self._limit_s, REAL_WAIT_S))

        def counted(timed: Deadline) -> None:
            self._count()
            waited(timed)

        def raised(timed: Deadline) -> Exception:
            self._count()
            return exceeded(timed)

        self._patch.setattr(Deadline, "limit", shortened)
        self._patch.setattr(Deadline, "report_wait", counted)
        self._patch.setattr(Deadline, "exceeded", raised)

    def _wait(self, seconds: float) -> None:
        self.waited_s += seconds

    def _count(self) -> None:
        self.waited_s += self._limit_s
        self._limit_s = 0.0
