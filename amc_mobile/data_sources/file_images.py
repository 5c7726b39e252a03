"""Images that stay in their files and are decoded, by several threads, whenever they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Decode = Callable[[str], NDArray[np.uint8]]


class FileImages:
    """Indexed like a (N, C, H, W) uint8 tensor; each use decodes anew, so that no more than a batch is in memory.

    `decode`: a file's name -> (C, H, W), called from `workers` threads at once: decoding JPEG holds no lock.
    `identity`: what tells these files from others, e.g. their sizes.
    """

    dtype = torch.uint8

    def __init__(
        self, names: Sequence[str], decode: Decode, shape: tuple[int, int, int], *, workers: int, identity: str
    ) -> None:
        self._names, self._decode, self._identity = tuple(names), decode, identity
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.threads = workers
        self.shape = torch.Size((len(self._names), *shape))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, select: slice | Tensor) -> Tensor:
        """The selected images, decoded. Raises what `decode` does for a broken file."""
        decoded = list(self._workers.map(self._decode, self._selected(select)))
        return torch.from_numpy(np.stack(decoded)) if decoded else torch.empty((0, *self.shape[1:]), dtype=self.dtype)

    def subset(self, index: Tensor) -> FileImages:
        """The images at `index`, still in their files."""
        shape = (self.shape[1], self.shape[2], self.shape[3])
        return FileImages(self._selected(index), self._decode, shape, workers=self.threads, identity=self._identity)

    def fingerprint(self) -> bytes:
        """Of the files' names and `identity`: reading every pixel would take as long as an epoch."""
        return hashlib.sha256("\0".join((self._identity, *self._names)).encode()).digest()

    def _selected(self, select: slice | Tensor) -> list[str]:
        if isinstance(select, slice):
            return list(self._names[select])
        return [self._names[int(i)] for i in select]
