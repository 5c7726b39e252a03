"""Under which conditions a latency was measured. Plain data; measurements of unlike conditions are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from amc_mobile.device.layout import OnnxLayout
from amc_mobile.errors import InvalidInput

# 1: fresh session per pass, shuffled passes, samples of repeated calls in wall time, single inferences for whole models
PROTOCOL_VERSION = 1
FOREIGN_PROTOCOL = 0
AGAIN = "export the table again"


PARTLY = "gpu and cpu"  # an accelerator, where the CPU may run the operators that it cannot
_LATER = {"layout", "unit", "accelerator"}  # fields that documents of earlier versions lack


@dataclass(frozen=True)
class Conditions:
    """Everything that changes a latency besides the model.

    `library_sha256`: of the runtime's library, since two builds of one version differ by more than 50 %; `cores`: those
    the process may use, as in `0-3,6`; `clock_mode`: the governors of the cores, or "unknown"; on phones also
    the mode held and clocks that are always limited, as in `unlocked schedutil 4-7<=1200MHz`; `layout`: how the
    runtime rewrites graphs on this processor, as `OnnxLayout.text` gives it, "" where unknown; `unit`: which phone of
    its model, "" for computers and where unknown; `accelerator`: "gpu", PARTLY, or "" for the CPU.
    """

    device: str
    soc: str
    os: str
    runtime: str
    runtime_version: str
    library_sha256: str
    delegate: str
    threads: int
    cores: str
    clock_mode: str
    protocol_version: int = PROTOCOL_VERSION
    layout: str = ""
    unit: str = ""
    accelerator: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON document."""
        return hashlib.sha256(json.dumps(self.to_document(), sort_keys=True).encode()).hexdigest()

    @property
    def is_foreign(self) -> bool:
        """Whether another tool measured, by a protocol of its own."""
        return self.protocol_version == FOREIGN_PROTOCOL

    def to_document(self) -> dict[str, Any]:
        document = asdict(self)
        for name in _LATER:
            if not document[name]:
                del document[name]  # as in documents that know of none
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Conditions:
        """Raises InvalidInput when a field is missing, unknown or of the wrong type."""
        types = {field.name: int if field.name in ("threads", "protocol_version") else str for field in fields(cls)}
        if not isinstance(document, Mapping) or set(document) | _LATER != set(types):
            raise InvalidInput(f"not the conditions of a measurement: {str(document)[:200]}", next_step=AGAIN)
        for name, value in document.items():
            if type(value) is not types[name]:
                raise InvalidInput(
                    f"conditions: {name} = {str(value)[:60]!r} is not of type {types[name].__name__}", next_step=AGAIN
                )
        OnnxLayout.parse(document.get("layout", ""))
        return cls(**document)

    def is_of_other_unit(self, other: Conditions) -> bool:
        """Whether the two differ in nothing but the phone of the model."""
        return self.unit != other.unit and replace(self, unit=other.unit) == other

    def differences(self, other: Conditions) -> dict[str, tuple[Any, Any]]:
        """The fields in which the two differ: name -> (own value, other value)."""
        own, others = self.to_document(), other.to_document()
        names = [field.name for field in fields(self)]
        return {name: (own.get(name, ""), others.get(name, "")) for name in names if own.get(name) != others.get(name)}


def unit_of(serial: str) -> str:
    """A short name for one phone among those of its model, which does not reveal the serial."""
    return hashlib.sha256(serial.encode()).hexdigest()[:8]


def readable(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document of conditions for people: of the layout only what it comes to."""
    layout = document.get("layout")
    return {**document, "layout": OnnxLayout.parse(layout).summary} if isinstance(layout, str) else dict(document)


def core_ranges(cores: tuple[int, ...]) -> str:
    """Core numbers in the kernel's list form: (0, 1, 2, 5) -> `0-2,5`."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
