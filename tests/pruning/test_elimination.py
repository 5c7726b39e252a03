from __future__ import annotations

import numpy as np
import pytest
import torch

from amc_mobile.pruning.channel_choice import Fit, eliminate
from amc_mobile.pruning.least_squares import ridged


def moments(channels: int, block: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(400, channels * block, dtype=torch.float64, generator=generator)
    mixing = torch.randn(channels * block, channels * block, dtype=torch.float64, generator=generator)
    return ridged((rows @ mixing).T @ (rows @ mixing) / 400, 1e-4)


def error(moment: torch.Tensor, weight: torch.Tensor, left: list[int]) -> float:
    """Of the best fit of X W on the columns `left`, worked out from scratch."""
    fitted = torch.linalg.solve(moment[left][:, left], (moment @ weight)[left])
    full = torch.zeros_like(weight)
    full[left] = fitted
    return float(((weight - full) * (moment @ (weight - full))).sum())


def naive_order(problems: list[tuple[torch.Tensor, torch.Tensor, float]], channels: int, block: int) -> list[int]:
    left, gone = list(range(channels)), []
    while len(left) > 1:
        errors = []
        for channel in left:
            stay = [c * block + i for c in left if c != channel for i in range(block)]
            errors.append(sum(error(m, w, stay) / norm for m, w, norm in problems))
        gone.append(left.pop(int(np.argmin(errors))))
    return [*left, *reversed(gone)]


@pytest.mark.parametrize(("channels", "block", "consumers"), [(12, 1, 1), (9, 4, 1), (10, 3, 2)])
def test_downdates_find_the_order_of_refitting_from_scratch(channels: int, block: int, consumers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    problems = []
    for seed in range(consumers):
        weight = torch.randn(channels * block, 5, dtype=torch.float64, generator=generator)
        problems.append((moments(channels, block, seed), weight, 2.0 + seed))
    fits = [Fit(torch.linalg.inv(m), w.clone(), channels, norm) for m, w, norm in problems]
    assert eliminate(fits, channels).tolist() == naive_order(problems, channels, block)


def test_increases_are_the_exact_errors_after_several_removals() -> None:
    moment, weight = moments(8, 2, 3), torch.randn(16, 4, dtype=torch.float64)
    fit = Fit(torch.linalg.inv(moment), weight.clone(), 8, 1.0)
    for channel in (5, 0, 7):
        fit.remove(channel)
    increases = fit.increases()
    left = [1, 2, 3, 4, 6]
    columns = [c * 2 + i for c in left for i in range(2)]
    before = error(moment, weight, columns)
    assert np.isinf(increases[[5, 0, 7]]).all()
    for channel in left:
        stay = [c * 2 + i for c in left if c != channel for i in range(2)]
        assert increases[channel] == pytest.approx(error(moment, weight, stay) - before, rel=1e-6)


def test_columns_outside_the_group_stay_in_the_fit() -> None:
    moment, weight = moments(7, 1, 4), torch.randn(7, 3, dtype=torch.float64)
    inside, outside = [1, 3, 4, 6], [0, 2, 5]
    fit = Fit(torch.linalg.inv(moment)[inside][:, inside], weight[inside], 4, 1.0)
    order = eliminate([fit], 4)
    for count in (3, 2, 1):
        kept = sorted([inside[i] for i in order[:count]] + outside)
        others = [[inside[i] for i in order[: count + 1] if i != order[j]] for j in range(count + 1)]
        errors = [error(moment, weight, sorted(other + outside)) for other in others]
        assert error(moment, weight, kept) == pytest.approx(min(errors))


def test_a_copy_of_a_channel_goes_first() -> None:
    rows = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows[:, 4] = rows[:, 1] + 1e-3 * rows[:, 4]
    moment = ridged(rows.T @ rows / 300, 1e-6)
    weight = torch.ones(6, 2, dtype=torch.float64)
    order = eliminate([Fit(torch.linalg.inv(moment), weight, 6, 1.0)], 6)
    assert order[-1] in (1, 4)
