"""Sums of group widths: what a dimension of the exported graph is worth at any plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Expression:
    """`constant` + sum of factor * width over `terms`, pairs (group index, factor) in ascending group order."""

    constant: int
    terms: tuple[tuple[int, int], ...] = ()

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def at(self, widths: Sequence[int]) -> int:
        """The value at one plan, `widths` of length G."""
        return self.constant + sum(factor * widths[group] for group, factor in self.terms)

    def evaluate(self, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values at many plans: shape (..., G) to (...)."""
        total = np.full(widths.shape[:-1], self.constant, dtype=np.int64)
        for group, factor in self.terms:
            total += factor * widths[..., group]
        return total

    def times(self, factor: int) -> Expression:
        return Expression(self.constant * factor, tuple((g, f * factor) for g, f in self.terms))

    def plus(self, constant: int) -> Expression:
        return Expression(self.constant + constant, self.terms)

    def primitive(self) -> Expression:
        """Divided by the greatest common divisor of all its numbers."""
        divisor = math.gcd(self.constant, *(f for _, f in self.terms))
        if divisor < 2:
            return self
        return Expression(self.constant // divisor, tuple((g, f // divisor) for g, f in self.terms))

    def linear(self, groups: int) -> NDArray[np.int64]:
        """The factors alone, shape (groups,)."""
        factors = np.zeros(groups, dtype=np.int64)
        for group, factor in self.terms:
            factors[group] = factor
        return factors


def total(expressions: Iterable[Expression]) -> Expression:
    constant, factors = 0, dict[int, int]()
    for expression in expressions:
        constant += expression.constant
        for group, factor in expression.terms:
            factors[group] = factors.get(group, 0) + factor
    return Expression(constant, tuple(sorted((g, f) for g, f in factors.items() if f)))
