"""What there is to measure: kernels and whole models, each under the key that its passes are stored by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Request(Protocol):
    """What the protocol needs to know of either. `model` builds the file; it is called once per pass."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def model(self) -> Callable[[], bytes]: ...


class KernelInfo(Protocol):
    """What a latency table needs to know of a kernel."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str: ...
    def to_document(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class KernelRequest:
    """A kernel to measure. `model` builds the runnable one-kernel model."""

    kernel: KernelInfo
    model: Callable[[], bytes]

    @property
    def key(self) -> str:
        return self.kernel.key

    @property
    def label(self) -> str:
        return self.kernel.label


@dataclass(frozen=True)
class ModelRequest:
    """A whole model to measure: a template at the widths of a plan.

    `template` names network, weights and runtime, so that equal widths of two networks stay apart.
    """

    template: str
    widths: tuple[int, ...]
    model: Callable[[], bytes]

    @property
    def key(self) -> str:
        return model_key(self.template, self.widths)

    @property
    def label(self) -> str:
        return f"the whole model at {' '.join(map(str, self.widths))} channels"


def model_key(template: str, widths: Sequence[int]) -> str:
    """SHA-256 of the template's name and the widths."""
    document = json.dumps([template, [int(width) for width in widths]])
    return hashlib.sha256(document.encode()).hexdigest()
