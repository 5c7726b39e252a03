"""A total time limit over many steps: the limits of sockets hold for one receive each, so a drip never ends them."""

from __future__ import annotations

import socket
import time

from amc_mobile.errors import DeadlineExceeded


class Deadline:
    """`limit_s` seconds from now for everything that is done under it. `what` names the work in the error."""

    def __init__(self, what: str, limit_s: float) -> None:
        self.what = what
        self.limit_s = limit_s
        self._end = time.monotonic() + limit_s

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
        return DeadlineExceeded(self.what, self.limit_s)

    def limit(self, connection: socket.socket) -> None:
        """Lets the next operation of a socket take what is left."""
        connection.settimeout(self.check())

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not past the end. Raises DeadlineExceeded when there is no time left before sleeping."""
        time.sleep(min(seconds, self.check()))
