"""What training and evaluation need of an image set; the image sets of the data module fit it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class StoredImages(Protocol):
    """A (N, C, H, W) tensor, or what is indexed like one."""

    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class LabelledImages(Protocol):
    @property
    def images(self) -> StoredImages:
        """(N, C, H, W), as stored."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, or (N, objects, 5) float32 for detectors."""

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image keeps its label."""

    def __len__(self) -> int: ...

    def normalised(self, select: slice) -> Tensor:
        """The selected images as float32 (N, C, H, W), ready for the network."""

    def normalise(self, images: Tensor) -> Tensor:
        """The same for images that were stored here and changed since."""

    def fingerprint(self) -> str:
        """Equal for equal images, labels and normalisation only."""
