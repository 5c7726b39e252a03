"""Other programs on a device that is measured: how much of its processor they take, and the wait for them to end.

A neighbour that is there from the first reading on slows every pass alike, so no anchor shows it; the kernel's counts
of processor time do.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

# Judgement: a core that was left alone took 0.07. A neighbour that took half of the core measured on slowed full
# networks by 3 to 11 %, one on another core MobileNet-V2 by up to 8 %; networks of half the width by 1 % at most.
BUSY_CORES = 0.25
WINDOW_S = 0.5  # the kernel counts in hundredths of a second
POLL_S = 1.0
MAX_CORES = 1024
_COUNTS = re.compile(r"cpu(\d{1,4})((?: +\d{1,18}){4,12}) *", re.ASCII)
OnNeighbours = Callable[["Neighbours", float], None]  # and the seconds waited for them so far
_IDLE, _IOWAIT, _GUEST = 3, 4, 8  # what guests run is a part of what users run


@dataclass(frozen=True)
class Neighbours:
    """What other programs take of a processor: `cores` of 1.0 is one core all the time. `program`: the greediest of
    them; empty where that is unknown."""

    cores: float
    program: str = ""

    @property
    def is_busy(self) -> bool:
        return self.cores > BUSY_CORES

    def to_document(self) -> dict[str, Any]:
        return {"cores": round(self.cores, 2), "program": self.program or None}

    def text(self) -> str:
        greediest = f", most of it {self.program}" if self.program else ""
        return f"other programs take {self.cores:.2f} processor cores{greediest}"


@dataclass(frozen=True)
class CpuTimes:
    """Ticks by core. `busy`: all in which a core did not wait; what a hypervisor stole is among them."""

    busy: Mapping[int, int]
    total: Mapping[int, int]

    def neighbours_since(self, before: CpuTimes, own_ticks: float = 0.0) -> Neighbours | None:
        """What ran besides one's own; None where no time has passed, or the counts went back."""
        cores = self.total.keys() & before.total.keys()  # others were switched off or on meanwhile
        passed = {core: self.total[core] - before.total[core] for core in cores}
        if not cores or max(passed.values()) <= 0:
            return None
        # A core that sleeps deeply may not have counted on.
        elapsed = statistics.median(ticks for ticks in passed.values() if ticks > 0)
        busy = sum(min(max(0, self.busy[core] - before.busy[core]), elapsed) for core in cores)
        return Neighbours(max(0.0, busy - own_ticks) / elapsed)


def parse_cpu_times(text: str) -> CpuTimes | None:
    """Lines `cpuN ...` of /proc/stat; None where they are missing, doubled or impossible."""
    found: dict[int, list[int]] = {}
    for line in text.splitlines():
        if match := _COUNTS.fullmatch(line):
            core = int(match[1])
            if core >= MAX_CORES or core in found:
                return None
            found[core] = [int(word) for word in match[2].split()][:_GUEST]
    if not found:
        return None
    total = {core: sum(counts) for core, counts in found.items()}
    return CpuTimes({c: total[c] - sum(found[c][_IDLE : _IOWAIT + 1]) for c in found}, total)


# What a phone prints for `parse_neighbours`. LOOK_BACK is for the shell that has started a runner after SAVE_TIMES,
# waited for it, and then run SAVE_OWN: its own counts then hold the runner's. In any other shell it prints nothing.
LOOK = f"grep '^cpu[0-9]' /proc/stat; sleep {WINDOW_S}; echo then; grep '^cpu[0-9]' /proc/stat"
SAVE_TIMES = "grep '^cpu[0-9]' /proc/stat >cpu_times 2>/dev/null"
SAVE_OWN = "read -r own </proc/self/stat"
LOOK_BACK = """[ -n "$own" ] && cat cpu_times && echo then && grep '^cpu[0-9]' /proc/stat && echo own && echo "$own" """


def parse_neighbours(text: str) -> Neighbours | None:
    """The output of LOOK or LOOK_BACK; None where it does not tell: kernels may hide the counts."""
    before, then, rest = text.replace("\r\n", "\n").partition("\nthen\n")
    after, own, process = rest.partition("\nown\n")
    times = parse_cpu_times(before), parse_cpu_times(after)
    if not then or times[0] is None or times[1] is None:
        return None
    # After the name, which may hold anything: user and system time of the process, and of those that it waited for.
    words = process.rpartition(")")[2].split()[11:15]
    if own and not (len(words) == 4 and all(re.fullmatch(r"\d{1,18}", word, re.ASCII) for word in words)):
        return None
    return times[1].neighbours_since(times[0], sum(map(int, words)))


class Neighbourhood:
    """The neighbours of a device while it is measured.

    `look`: what others take now, over about WINDOW_S; None where that cannot be told. `patience_s`: how long to wait
    for their end, in all sessions together. `on_wait`: told the neighbours and the seconds waited so far.
    """

    def __init__(
        self,
        look: Callable[[], Neighbours | None],
        patience_s: float,
        on_wait: OnNeighbours | None = None,
    ) -> None:
        self.now: Neighbours | None = None  # when last looked
        self.most: Neighbours | None = None  # while measuring
        self._look = look
        self._patience_s = patience_s
        self._waited_s = 0.0
        self._on_wait = on_wait
        self._is_accepted = False

    @property
    def is_steady(self) -> bool:
        """Whether no neighbour came while measuring; one that waiting did not end is part of the device."""
        return self.now is None or not self.now.is_busy or self._is_accepted

    def see(self, now: Neighbours | None) -> None:
        """Takes note of a look at the device, made while or just before measuring."""
        if now is not None and now.is_busy and not now.program and self.now is not None:
            now = replace(now, program=self.now.program)  # a look back tells how much, not who
        self.now = now
        self._is_accepted = self._is_accepted and now is not None and now.is_busy
        if now is not None and (self.most is None or now.cores > self.most.cores):
            self.most = now

    def look(self) -> None:
        self.see(self._look())

    def wait(self) -> None:
        """Until the device is left alone; at the end of the patience, measuring goes on beside the neighbours."""
        began = time.monotonic()
        while True:
            now = self._look()
            waited = self._waited_s + time.monotonic() - began
            if now is None or not now.is_busy or waited >= self._patience_s:
                break
            if self._on_wait:
                self._on_wait(now, waited)
            time.sleep(min(POLL_S, self._patience_s - waited))
        self._waited_s = waited
        self._is_accepted = True
        self.see(now)
