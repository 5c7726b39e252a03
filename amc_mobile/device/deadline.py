"""A total time limit over many steps: the limits of sockets hold for one receive each, so a drip never ends them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from amc_mobile.errors import DeadlineExceeded

NOTICE_S = 4.0  # a wait is reported when it has lasted so long, and again after each such time
OnWait = Callable[[str, float, float], None]  # what is waited for, the seconds waited so far, the limit in seconds


class Deadline:
    """`limit_s` seconds from now for everything that is done under it. `what` names the work in the error.

    `on_wait`: told of waits for an answer that last.
    """

    def __init__(self, what: str, limit_s: float, on_wait: OnWait | None = None) -> None:
        self.what = what
        self.limit_s = limit_s
        self.on_wait = on_wait
        self._end = time.monotonic() + limit_s
        self._why = self._next_step = ""

    def part(self, limit_s: float, *, why: str, next_step: str) -> Deadline:
        """A shorter deadline for a part of the work, whose error adds `why` and `next_step`; never a longer one."""
        is_shorter = limit_s < self.check()
        part = Deadline(self.what, limit_s if is_shorter else self.limit_s, self.on_wait)
        part._end = part._end if is_shorter else self._end
        part._why, part._next_step = why, next_step
        return part

    @property
    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> float:
        """Seconds left, above 0. Raises DeadlineExceeded when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(self.what, self.limit_s, why=self._why, next_step=self._next_step)

    def limit(self, connection: socket.socket) -> None:
        """Lets the next operation of a socket take what is left."""
        self._set(connection, self.check())

    def limit_for_notice(self, connection: socket.socket) -> None:
        """Lets the next operation of a socket take what is left until the wait is to be reported: see `has_waited`."""
        self._set(connection, min(self.check(), NOTICE_S))

    def has_waited(self) -> None:
        """Reports a wait that goes on. Raises DeadlineExceeded when its time is over."""
        left_s = self.check()
        if self.on_wait:
            self.on_wait(self.what, self.limit_s - left_s, self.limit_s)

    def _set(self, connection: socket.socket, limit_s: float) -> None:
        connection.settimeout(limit_s)

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not past the end. Raises DeadlineExceeded when there is no time left before sleeping."""
        time.sleep(min(seconds, self.check()))
