"""Kernels as other tools know them: an operator and its shape, in words of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from amc_mobile.errors import InvalidInput

if TYPE_CHECKING:
    from amc_mobile.kernels.kernel import Kernel

_SIZE = re.compile(r"[0-9]{1,9}")
CONVOLUTIONS = ("conv", "conv1x1", "depthwise")
OPERATORS = {
    "conv": ("conv2d", "convolution", "convkxk"),
    "conv1x1": ("pw", "pointwise"),
    "depthwise": ("dw", "dwconv", "depthwiseconv", "depthwiseconv2d", "depthwiseconvolution"),
    "linear": ("fc", "dense", "gemm", "matmul", "fullyconnected"),
    "pool": (
        "averagepool2d", "averagepool", "avgpool", "maxpool2d", "maxpool", "mean", "reducemean", "globalaveragepool",
    ),
    "add": ("sum", "eltwise"),
}  # fmt: skip
_OPERATOR_OF = {word: name for name, words in OPERATORS.items() for word in (name, *words)}


@dataclass(frozen=True)
class KernelShape:
    """What decides a kernel's latency besides the device. Maps and windows are square: their height counts.

    `operator`: a key of OPERATORS, or the tool's own word in small letters without signs. `window`: 0 where it is not
    told; a window of 1 makes a "conv" a "conv1x1".
    """

    operator: str
    in_channels: int
    out_channels: int
    out_size: int = 1
    stride: int = 1
    window: int = 0

    @classmethod
    def of(cls, kernel: Kernel) -> KernelShape:
        main = kernel.main
        operator = operator_named(main.kind)
        if operator not in CONVOLUTIONS:
            return cls(operator, main.in_channels, main.out_channels, main.out_map[0] if main.out_map else 1)
        return cls(
            operator, main.in_channels, main.out_channels, main.out_map[0] if main.out_map else 1,
            main.strides[0] if main.strides else 1, main.window[0] if operator != "conv1x1" else 0,
        )  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> KernelShape:
        """`row`: field -> text. Raises InvalidInput for what is no positive number."""
        numbers: dict[str, int] = {}
        for name in SHAPE_FIELDS[1:]:
            if name not in row:
                continue
            text = row[name]
            if not _SIZE.fullmatch(text) or (int(text) < 1 and name != "window"):
                raise InvalidInput(f"{name} {text!r} is not a positive number")
            numbers[name] = int(text)
        operator = operator_named(row["operator"])
        if operator == "conv" and numbers.get("window") == 1:
            operator = "conv1x1"
        if operator not in CONVOLUTIONS:
            numbers["stride"] = 1
        if operator not in ("conv", "depthwise"):
            numbers["window"] = 0
        return cls(operator, **numbers)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> KernelShape:
        """Raises InvalidInput where that is no shape."""
        try:
            return cls.from_row({key: str(value) for key, value in document.items()})
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"not the shape of a kernel: {document!r}") from error

    def to_document(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def place(self) -> KernelShape:
        """The same with no channels: kernels of one place differ in their channels only."""
        return replace(self, in_channels=0, out_channels=0)

    @property
    def channels(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels

    @property
    def label(self) -> str:
        window = f" {self.window}x{self.window}" if self.window else ""
        step = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.operator}{window}{step} {self.in_channels}->{self.out_channels} @{self.out_size}x{self.out_size}"


SHAPE_FIELDS = tuple(field.name for field in fields(KernelShape))
NEEDED_FIELDS = ("operator", "in_channels", "out_channels")


def operator_named(word: str) -> str:
    plain = "".join(letter for letter in word.lower() if letter.isalnum())
    return _OPERATOR_OF.get(plain, plain)
