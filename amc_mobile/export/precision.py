"""The number formats that exported files come in. Plain names: needs neither torch nor a converter."""

from __future__ import annotations

FLOAT32 = "float32"
PRECISIONS = (FLOAT32, "int8", "float16")
