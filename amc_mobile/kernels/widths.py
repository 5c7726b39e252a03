"""Width tracing: which sum of group widths an integer of the exported graph is.

The network is exported again with every group at its own distinctive width. An integer that is 64 in the original and
37 in the trace can then only belong to the group that was cut from 64 to 37.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.plan import MIN_CHANNELS
from amc_mobile.errors import UnsupportedLayer

Ints = NDArray[np.int64]
MAX_TRACES = 4
ATTEMPTS = 2000


@dataclass(frozen=True)
class Expression:
    """`constant` plus factor x width of some groups."""

    constant: int
    terms: tuple[tuple[int, int], ...] = ()  # (group index, factor)

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def at(self, widths: Sequence[int]) -> int:
        return self.constant + sum(factor * int(widths[group]) for group, factor in self.terms)

    def evaluate(self, widths: Ints) -> Ints:
        """`widths`: (..., groups) -> (...)."""
        total = np.full(widths.shape[:-1], self.constant, dtype=np.int64)
        for group, factor in self.terms:
            total = total + factor * widths[..., group]
        return total

    def times(self, factor: int) -> Expression:
        return Expression(self.constant * factor, tuple((g, f * factor) for g, f in self.terms))

    def plus(self, constant: int) -> Expression:
        return Expression(self.constant + constant, self.terms)

    @staticmethod
    def sum(parts: Sequence[Expression]) -> Expression:
        factors: dict[int, int] = {}
        for group, factor in (term for part in parts for term in part.terms):
            factors[group] = factors.get(group, 0) + factor
        return Expression(sum(part.constant for part in parts), tuple(sorted(factors.items())))


class UndecodedInteger(Exception):
    """No expression, or more than one, explains an integer of the graph."""


class WidthCode:
    """Decodes integers. `widths`: (1 + traces, groups); row 0 holds the original widths."""

    def __init__(self, widths: Ints) -> None:
        self.widths = widths

    @property
    def is_unambiguous(self) -> bool:
        columns = self.widths.T
        if len({tuple(column) for column in columns}) != len(columns):
            return False
        return all(not ((a % b == 0).all() and len(set(a // b)) == 1) for a, b in itertools.permutations(columns, 2))

    def decode(self, values: Sequence[int], local: Sequence[Expression] = ()) -> Expression:
        """`values`: one integer per graph. `local`: the expressions of the operator's inputs, for sums and multiples.

        Raises UndecodedInteger.
        """
        v = np.asarray(values, dtype=np.int64)
        if (v == v[0]).all():
            return Expression(int(v[0]))
        direct = [
            Expression(0, ((group, int(v[0] // w[0])),))
            for group, w in enumerate(self.widths.T)
            if (v % w == 0).all() and len(set(v // w)) == 1
        ]
        if len(direct) == 1:
            return direct[0]
        if direct:
            raise UndecodedInteger(f"{v.tolist()} is ambiguous")
        varying = [e for e in dict.fromkeys(local) if not e.is_constant]
        for expression in varying:
            x = expression.evaluate(self.widths)
            if (v % x == 0).all() and len(set(v // x)) == 1:
                return expression.times(int(v[0] // x[0]))
            if len(set(v - x)) == 1:
                return expression.plus(int(v[0] - x[0]))
            if (x % v == 0).all() and len(set(x // v)) == 1:  # a dimension split in equal parts
                return self._divided(expression, int(x[0] // v[0]), v)
        # Repeats count here: concatenating a tensor with itself doubles it.
        repeated = [e for e in local if not e.is_constant]
        for count in range(2, min(len(repeated), 10) + 1):
            for parts in itertools.combinations(repeated, count):
                rest = v - sum(part.evaluate(self.widths) for part in parts)
                if len(set(rest)) == 1:
                    return Expression.sum(parts).plus(int(rest[0]))
        return self._offset_or_pair(v)

    def _divided(self, expression: Expression, divisor: int, v: Ints) -> Expression:
        terms = tuple((g, f // divisor) for g, f in expression.terms)
        result = Expression(expression.constant // divisor, terms)
        if not (result.evaluate(self.widths) == v).all():
            raise UndecodedInteger(f"{v.tolist()} is not a whole share of {expression}")
        return result

    def _offset_or_pair(self, v: Ints) -> Expression:
        groups = range(self.widths.shape[1])
        found = [
            Expression(0, ((a, 1), (b, 1)))
            for a, b in itertools.combinations(groups, 2)
            if (self.widths[:, a] + self.widths[:, b] == v).all()
        ]
        if not found and len(self.widths) > 2:  # one trace cannot tell an offset from a coincidence
            found = [
                Expression(int(v[0] - w[0]), ((g, 1),))
                for g, w in enumerate(self.widths.T)
                if v[0] > w[0] and len(set(v - w)) == 1
            ]
        if len(found) != 1:
            raise UndecodedInteger(f"{len(found)} explanations for {v.tolist()}")
        return found[0]


def choose_widths(sizes: Ints, *, seed: int = 0) -> WidthCode:
    """Distinctive widths for every group: as few traces as make them unambiguous.

    Raises UnsupportedLayer when MAX_TRACES do not suffice.
    """
    rng = np.random.default_rng(seed)
    for traces in range(1, MAX_TRACES + 1):
        for _ in range(ATTEMPTS // traces):
            rows = [sizes] + [_distinct_row(sizes, rng) for _ in range(traces)]
            code = WidthCode(np.array(rows, dtype=np.int64))
            if code.is_unambiguous:
                return code
    raise UnsupportedLayer("", f"no distinctive widths for {len(sizes)} channel groups with {MAX_TRACES} traces")


def _distinct_row(sizes: Ints, rng: np.random.Generator) -> Ints:
    """One width per group in [C/2, C-1], or [2, C-1] where a size is crowded; distinct within a size if possible."""
    row = np.zeros_like(sizes)
    for size in np.unique(sizes):
        of_size = np.flatnonzero(sizes == size)
        pool = np.arange(max(MIN_CHANNELS, size // 2), size)
        if len(of_size) > len(pool):
            pool = np.arange(MIN_CHANNELS, size)
        row[of_size] = rng.choice(pool, len(of_size), replace=len(of_size) > len(pool))
    return row
