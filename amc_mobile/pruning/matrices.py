"""Where large matrices are kept: in memory up to a limit, beyond it in a file that vanishes with the process."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHARE = 0.5  # of the memory that is available; the rest is for one matrix's inverse, and for activations
UNKNOWN_BYTES = 2 * 2**30  # where the system does not tell


class Matrices:
    """Hands out float64 tensors. `limit_bytes`: in memory at most, all of them together; None: half of what is free.

    Those that do not fit are mapped from unnamed files in `folder` (None: the system's temporary folder): the system
    keeps in memory what it has room for. The numbers are the same either way, bit by bit. What was
    handed out counts as long as this object lives; a `branch` is for what is given up earlier.
    """

    def __init__(self, limit_bytes: int | None = None, folder: Path | None = None) -> None:
        self._free = int(available_bytes() * SHARE) if limit_bytes is None else limit_bytes
        self._folder = folder
        self.spilled_bytes = 0

    def branch(self) -> Matrices:
        """Another one with the room that is left here; what it hands out does not count here."""
        return Matrices(self._free, self._folder)

    def zeros(self, *shape: int) -> Tensor:
        size = math.prod(shape) * 8
        if size <= self._free:
            self._free -= size
            return torch.zeros(shape, dtype=torch.float64)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self.spilled_bytes += size
        with tempfile.TemporaryFile(dir=self._folder) as file:  # the map holds it open
            if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here, and later the end of the process
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, dtype=np.float64, mode="w+", shape=shape))

    def keep(self, matrix: Tensor) -> Tensor:
        """`matrix` itself, or a copy in a file where there is no room for it."""
        if matrix.nbytes <= self._free:
            self._free -= matrix.nbytes
            return matrix
        return self.zeros(*matrix.shape).copy_(matrix)


def available_bytes() -> int:
    """Memory that this process may still take: the system's and, in a container, the container's."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass  # another system, or an older container: what was found so far
    return max(min(found), 0) if found else UNKNOWN_BYTES
