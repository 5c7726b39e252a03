"""Widths that give themselves away: from the integers of a few exported files to sums of group widths.

The network is exported as it is and again with every group pruned to a width of its own. An integer of the exported
graph then has one value per file, and the widths are chosen so that only one sum of group widths explains them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from amc_mobile.kernels.expression import Expression, total

Widths = NDArray[np.int64]
MIN_CHANNELS = 2  # a convolution with one input channel is exported as another operator
MAX_TRACES = 4
ATTEMPTS = 100  # draws for each number of traces
MAX_SUMMANDS = 8  # inputs of one operator whose labels are tried as a sum


class UndecodableError(Exception):
    """No sum of group widths explains an integer."""


class AmbiguousError(UndecodableError):
    """Several do: one more trace tells them apart."""


class WidthCode:
    """Explains integers. `widths`: (traces + 1, G), the original widths first; `vocabulary`: sums known to occur."""

    def __init__(self, widths: Widths, vocabulary: Iterable[Expression]) -> None:
        self.widths = widths
        single = [Expression(0, ((group, 1),)) for group in range(widths.shape[1])]
        known = (e.primitive() for e in vocabulary if not e.is_constant)
        self._bases = list(dict.fromkeys([*single, *known]))
        self._signatures = np.array([e.evaluate(widths) for e in self._bases], dtype=np.int64).reshape(-1, len(widths))
        self._explained: dict[tuple[tuple[int, ...], tuple[Expression, ...]], Expression] = {}

    @property
    def traces(self) -> int:
        return len(self.widths) - 1

    def is_unambiguous(self) -> bool:
        """No known sum has the values of another's multiple, none stays the same in all files."""
        signatures = self._signatures
        if (signatures == signatures[:, :1]).all(axis=1).any():
            return False
        # [i, j]: whether row i is a whole multiple of row j
        factors = signatures[:, None, 0] // signatures[None, :, 0]
        multiple = (signatures[None] * factors[..., None] == signatures[:, None]).all(axis=2) & (factors > 0)
        return int(multiple.sum()) == len(signatures)

    def explain(self, values: Sequence[int], local: Iterable[Expression] = ()) -> Expression:
        """The sum that has `values` (one per file). `local`: labels of the same operator's inputs.

        Tried first: multiples of known sums, multiples and sums of `local`; then those plus a constant. Raises
        UndecodableError, or AmbiguousError where explanations differ.
        """
        key = (tuple(int(v) for v in values), tuple(e for e in local if not e.is_constant))
        if key not in self._explained:
            self._explained[key] = self._explain(np.array(key[0], dtype=np.int64), list(key[1]))
        return self._explained[key]

    def _explain(self, values: Widths, local: list[Expression]) -> Expression:
        if (values == values[0]).all():
            return Expression(int(values[0]))
        sums = [
            total(chosen)
            for count in range(1, min(len(local), MAX_SUMMANDS) + 1)
            for chosen in combinations(local[:MAX_SUMMANDS], count)
        ]
        found = {self._bases[i].times(int(values[0]) // int(self._signatures[i, 0])) for i in self._dividing(values)}
        for expression in sums:
            signature = expression.evaluate(self.widths)
            if _multiples(signature[None], values)[0]:
                found.add(expression.times(int(values[0]) // int(signature[0])))
        if not found:
            candidates = [*sums, *(self._bases if self.traces > 1 else [])]
            for expression in candidates:
                rest = values - expression.evaluate(self.widths)
                if (rest == rest[0]).all():
                    found.add(expression.plus(int(rest[0])))
        if len(found) > 1:
            raise AmbiguousError(f"the sizes {values.tolist()} have {len(found)} explanations")
        if not found:
            raise UndecodableError(f"no channel group explains the sizes {values.tolist()}")
        return found.pop()

    def _dividing(self, values: Widths) -> list[int]:
        return [int(i) for i in np.flatnonzero(_multiples(self._signatures, values))]


def _multiples(signatures: Widths, values: Widths) -> NDArray[np.bool_]:
    """Of which rows of `signatures` the vector `values` is a whole multiple."""
    factors = values[0] // signatures[:, 0]
    return np.asarray((signatures * factors[:, None] == values).all(axis=1) & (factors > 0))


def choose_widths(sizes: Widths, vocabulary: Sequence[Expression], *, traces: int = 1, seed: int = 0) -> WidthCode:
    """Widths for as few traces as are unambiguous, at least `traces`. `sizes`: (G,), each above MIN_CHANNELS.

    Raises UndecodableError when more than MAX_TRACES would be needed.
    """
    rng = np.random.default_rng(seed)
    for count in range(traces, MAX_TRACES + 1):
        for _ in range(ATTEMPTS):
            widths = _draw(sizes, count, rng)
            if widths is None:
                continue
            code = WidthCode(widths, vocabulary)
            if code.is_unambiguous():
                return code
    raise UndecodableError(f"{len(sizes)} channel groups with {int(sizes.sum())} channels are too many to tell apart")


def _draw(sizes: Widths, traces: int, rng: np.random.Generator) -> Widths | None:
    """Random widths, shape (traces + 1, G), whose shares of the originals differ between groups; None if none is left.

    Equal shares would make the sizes of one group multiples of another's, as in 16 of 32 and 32 of 64.
    """
    taken: set[tuple[float, ...]] = set()
    rows = []
    for size in (int(s) for s in sizes):
        for attempt in range(40):
            # At least half stays while there is room: far from zero, fewer sums coincide.
            low = min(max(MIN_CHANNELS, size // 2), size - 1) if attempt < 10 else MIN_CHANNELS
            # The full width tells nothing alone; among several traces it makes room for small groups.
            high = size if traces == 1 or attempt < 10 else size + 1
            row = [int(w) for w in rng.integers(low, high, traces)]
            share = tuple(w / size for w in row)
            if share not in taken and min(share) < 1:
                break
        else:
            return None
        taken.add(share)
        rows.append([size, *row])
    return np.array(rows, dtype=np.int64).reshape(len(sizes), traces + 1).T
