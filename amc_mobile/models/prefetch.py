"""Batches of stored images, the next one fetched while this one is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from amc_mobile.models.labelled_images import StoredImages


def fetched(images: StoredImages, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(index, pixels) of each batch, in order. Images that are not in memory are read one batch ahead."""
    if isinstance(images, Tensor):
        yield from ((index, images[index]) for index in batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as ahead:
        coming = ahead.submit(images.__getitem__, batches[0])
        for position, index in enumerate(batches):
            pixels = coming.result()
            if position + 1 < len(batches):
                coming = ahead.submit(images.__getitem__, batches[position + 1])
            yield index, pixels
