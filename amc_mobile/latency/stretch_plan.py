"""What a batch of passes was made for, as text: with it another process goes on where a killed one was."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from amc_mobile.store import parse_object

MAX_COUNT = 1_000_000_000
FORMAT_VERSION = 1  # 1: stretches of indices into keys, passes stored before, the anchor and the repeats


@dataclass(frozen=True)
class StretchPlan:
    """The stretches of one batch, in order, and where the protocol stood when it began.

    `stored`: passes by key that were in the table then; `anchor`: its key, "" for none; `lowest_ms`: its level,
    infinite before the first reading; `in_a_row`, `repeats_left`: of the bounded repeats.
    """

    stretches: tuple[tuple[str, ...], ...]
    stored: Mapping[str, int]
    anchor: str
    lowest_ms: float
    in_a_row: int
    repeats_left: int

    def to_text(self) -> str:
        keys = list(dict.fromkeys(key for stretch in self.stretches for key in stretch))
        numbers = {key: number for number, key in enumerate(keys)}
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "keys": keys,
                "stored": [self.stored[key] for key in keys],
                "stretches": [[numbers[key] for key in stretch] for stretch in self.stretches],
                "anchor": self.anchor,
                "lowest_ms": self.lowest_ms if math.isfinite(self.lowest_ms) else None,
                "in_a_row": self.in_a_row,
                "repeats_left": self.repeats_left,
            }
        )

    @classmethod
    def from_text(cls, text: str) -> StretchPlan | None:
        """None for a text that is no plan: it comes from a phone, where others may write."""
        try:
            document = parse_object(text)
            if document["format_version"] != FORMAT_VERSION:
                return None
            keys = [str(key) for key in document["keys"]]
            lowest = document["lowest_ms"]
            return cls(
                tuple(tuple(keys[_count(number)] for number in stretch) for stretch in document["stretches"]),
                dict(zip(keys, map(_count, document["stored"]), strict=True)),
                str(document["anchor"]),
                math.inf if lowest is None else float(lowest),
                _count(document["in_a_row"]),
                _count(document["repeats_left"]),
            )
        except (ValueError, TypeError, KeyError, IndexError, OverflowError):
            return None

    def fits(self, keys: Collection[str], stored: Mapping[str, int]) -> bool:
        """Whether all of it is among `keys`, and the table still has what it had."""
        known = all(key in keys and stored[key] >= count for key, count in self.stored.items())
        return known and (not self.anchor or self.anchor in keys)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"{value!r} is no count")
    return value


class StoredStretches:
    """Tells of the stretches of a plan, as they come again, which are in the table: a stretch is stored as a whole."""

    def __init__(self, plan: StretchPlan, stored: Mapping[str, int]) -> None:
        """`stored`: passes by key that are in the table now."""
        self._new = Counter({key: stored[key] - count for key, count in plan.stored.items()})

    def holds(self, stretch: Sequence[str]) -> bool:
        wanted = Counter(stretch)
        if any(self._new[key] < count for key, count in wanted.items()):
            return False
        self._new -= wanted
        return True
