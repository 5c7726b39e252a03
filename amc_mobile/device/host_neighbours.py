"""What other programs take of this computer's processor. Linux tells; elsewhere it is unknown."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path

from amc_mobile.device.neighbours import WINDOW_S, CpuTimes, Neighbours, parse_cpu_times

PROC = Path("/proc")
LONG_S = 10.0  # over a longer time than this, a neighbour that has just come would not show
NAME_CHARACTERS = 40


class HostNeighbours:
    """Looks at the processor time of all programs but this one. `proc`: where the kernel tells it."""

    def __init__(self, proc: Path | None = None) -> None:
        self._proc = proc or PROC
        self._before: tuple[float, float, CpuTimes] | None = None

    def look(self) -> Neighbours | None:
        """What others take in the next WINDOW_S, and the greediest of them where they are too many."""
        if self._read() is None:
            return None
        programs = self._programs()
        self._before = self._read()
        time.sleep(WINDOW_S)
        found = self.since_before()
        return replace(found, program=self._greediest(programs)) if found and found.is_busy else found

    def since_before(self) -> Neighbours | None:
        """What others took since the last look, while this program worked."""
        before, now = self._before, self._read()
        self._before = now
        if before is None or now is None:
            return None
        ticks = (now[1] - before[1]) * os.sysconf("SC_CLK_TCK")
        return now[2].neighbours_since(before[2], ticks)

    @property
    def seconds_since(self) -> float:
        """Since the last look; infinite before the first."""
        return time.monotonic() - self._before[0] if self._before else math.inf

    def _read(self) -> tuple[float, float, CpuTimes] | None:
        """When, this program's own processor time in seconds, and everyone's."""
        try:
            times = parse_cpu_times((self._proc / "stat").read_text(errors="replace"))
        except OSError:
            return None
        return (time.monotonic(), time.process_time(), times) if times else None

    def _programs(self) -> dict[int, tuple[int, str]]:
        """Pid -> its ticks so far, and its name; those that we may see."""
        found = {}
        for folder in self._proc.iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                try:
                    name, _, counts = (folder / "stat").read_text(errors="replace").rpartition(") ")
                    words = counts.split()
                    found[int(folder.name)] = (int(words[11]) + int(words[12]), name.partition("(")[2])
                except (OSError, ValueError, IndexError):
                    continue  # it has ended meanwhile
        return found

    def _greediest(self, before: dict[int, tuple[int, str]]) -> str:
        taken = {pid: (ticks - before.get(pid, (0, ""))[0], name) for pid, (ticks, name) in self._programs().items()}
        pid = max(taken, key=lambda pid: taken[pid][0], default=None)
        if pid is None or taken[pid][0] <= 0:
            return ""
        # Any program may choose its name.
        shown = "".join(character if character.isprintable() else "?" for character in taken[pid][1])
        return f"{shown[:NAME_CHARACTERS]} (process {pid})"
