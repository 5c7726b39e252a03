"""What can go wrong with a phone on purpose."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Strikes services whose name matches `when`, `times` times, once `after_bytes` passed in the watched direction.

    `kind`: "disconnect", "stall" (until mended), "drip" (a byte every 50 ms), "garbage" (a line before all output),
    "close" (the service ends without a word).
    """

    kind: str
    when: str
    after_bytes: int = 0
    times: int = 1
    struck: int = field(default=0, compare=False)
    released: threading.Event = field(default_factory=threading.Event, compare=False)  # ends this stall alone

    def matches(self, service: str) -> bool:
        return self.struck < self.times and re.search(self.when, service, re.DOTALL) is not None


class Faults:
    """The faults that wait to strike. `mended` is set while nothing stalls."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()
        self.mended = threading.Event()

    def add(self, kind: str, when: str = "", *, after_bytes: int = 0, times: int = 1) -> Fault:
        fault = Fault(kind, when, after_bytes, times)
        with self._lock:
            self._waiting.append(fault)
            self.mended.clear()
        return fault

    def mend(self) -> None:
        """Takes all faults away and lets what stalls go on."""
        with self._lock:
            self._waiting.clear()
            self.mended.set()

    def strike(self, service: str) -> Fault | None:
        """The first fault that matches the service, counted as struck."""
        with self._lock:
            for fault in self._waiting:
                if fault.matches(service):
                    fault.struck += 1
                    return fault
        return None
