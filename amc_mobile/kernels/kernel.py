"""A kernel: one unit of work of an exported graph, and the key of the latency table. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from amc_mobile.errors import InvalidInput
from amc_mobile.kernels.operator import CONVERSIONS, Operator

Runtime = Literal["tflite", "onnxruntime"]

# Work that is folded into its neighbour: it does not name the unit.
MINOR = (*CONVERSIONS, "PAD", "PADV2", "Pad", "Relu", "Clip")


@dataclass(frozen=True)
class Kernel:
    """The operators that run as one, in order. Layers of equal shape are one kernel, whatever their names."""

    runtime: Runtime
    operators: tuple[Operator, ...]

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON document, 64 hex digits."""
        text = json.dumps(self.to_document(), separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def main(self) -> Operator:
        """The operator that the unit is named after: the one with most MACs, else the first that is not minor."""
        heaviest = max(self.operators, key=lambda operator: operator.macs)
        if heaviest.macs:
            return heaviest
        return next((o for o in self.operators if o.name not in MINOR), self.operators[-1])

    @property
    def operator_type(self) -> str:
        return self.main.kind

    @property
    def keeps_channels(self) -> bool:
        """Whether what comes in goes out channel by channel, as in a depthwise convolution or an addition."""
        main = self.main
        return (main.in_channels == main.out_channels and main.macs == 0) or main.kind == "depthwise"

    @cached_property
    def label(self) -> str:
        """For people, like `PAD+CONV_2D 3x3/2 32->64 @56x56`: window/stride, channels, height x width of the output."""
        main = self.main
        names = [operator.name for operator in self.operators]
        parts = ["+".join([name for name in names if name not in CONVERSIONS] or names)]
        if main.window:
            parts.append(main.window_label)
        parts.append(str(main.out_channels) if self.keeps_channels else f"{main.in_channels}->{main.out_channels}")
        if main.out_map:
            parts.append("@" + "x".join(map(str, main.out_map)))
        others = [o.dtype for o in (main, *self.operators) if o.dtype != "float32"]
        if others:  # what is computed on, else what weights are converted from
            parts.append(min(others, key=lambda dtype: dtype.startswith("float32")).removesuffix("/float32"))
        return " ".join(parts)

    @cached_property
    def macs(self) -> int:
        return sum(operator.macs for operator in self.operators)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(operator.weight_bytes for operator in self.operators)

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes that the unit reads and writes at its borders."""
        # Inside a unit each operator hands its output to the next one, so only borders are counted.
        last, handed, converted = self.operators[-1], 0, 0
        total = last.activation_bytes_of(last.outputs)
        for operator in self.operators:
            data = [s for s, constant in zip(operator.inputs, operator.constants, strict=True) if not constant]
            present = [s for s in data if s is not None]
            if not present:  # converts weights, which a later operator reads after its other inputs
                converted += 1
                continue
            total += operator.activation_bytes_of(tuple(present[handed : max(handed, len(present) - converted)]))
            handed = 1
        return total

    def to_document(self) -> dict[str, Any]:
        return {"runtime": self.runtime, "operators": [operator.to_list() for operator in self.operators]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Kernel:
        """Raises InvalidInput when the document is not a kernel."""
        try:
            operators = tuple(Operator.from_list(o) for o in document["operators"])
            if document["runtime"] not in ("tflite", "onnxruntime") or not operators:
                raise ValueError("unknown runtime or no operator")
            return cls(document["runtime"], operators)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"not a kernel: {error!r}") from error
