"""Channel choices from Gram matrices against their definitions on the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from amc_mobile.channels.structure import DimensionIds
from amc_mobile.pruning.channel_choice import contributions, greedy_removal, lasso, matching_pursuit
from amc_mobile.pruning.gram import LayerGram


@dataclass(frozen=True)
class Problem:
    """A layer with its rows; `channels` of the group come first, each with `block` columns, then fixed ones."""

    gram: LayerGram
    places: np.ndarray
    rows: Tensor
    outputs: Tensor  # behind the batch norm


def problem(channels: int, block: int, *, fixed: int = 0, outputs: int = 4, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    columns = (channels + fixed) * block
    rows = drawn(300, columns) @ drawn(columns, columns) + drawn(columns)  # correlated, with a mean
    weight, scale = drawn(columns, outputs), drawn(outputs).abs() + 0.2
    group = np.r_[np.zeros(channels), np.full(fixed, -1)].astype(np.int64)
    ids = DimensionIds(group, np.r_[np.arange(channels), np.zeros(fixed)].astype(np.int64))
    gram = LayerGram(ids, block, weight, rows.T @ rows / len(rows), rows.mean(0), len(rows), scale)
    return Problem(gram, np.arange(channels)[:, None], rows, rows @ weight * scale)


def part(subject: Problem, channel: int) -> Tensor:
    """(rows, outputs): what one channel adds to the layer's output, its share of the output's variance."""
    here = slice(channel * subject.gram.block, (channel + 1) * subject.gram.block)
    added = subject.rows[:, here] @ subject.gram.weight[here] * subject.gram.output_scale
    return added / np.sqrt(len(subject.rows) * subject.gram.output_variance)


def target(subject: Problem) -> Tensor:
    return subject.outputs / np.sqrt(len(subject.rows) * subject.gram.output_variance)


CASES = [[(7, 1)], [(6, 4)], [(6, 2), (6, 3)]]  # channels and block of each reader


def subjects(case: list[tuple[int, int]], fixed: int = 0) -> list[Problem]:
    return [problem(channels, block, fixed=fixed, seed=seed) for seed, (channels, block) in enumerate(case)]


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_what_the_channels_add(case: list[tuple[int, int]]) -> None:
    readers = subjects(case, fixed=2)
    found = contributions([(s.gram, s.places) for s in readers])
    for i in range(case[0][0]):
        toward = sum(float((part(s, i) * target(s)).sum()) for s in readers)
        assert found.with_target[i] == pytest.approx(toward, rel=1e-6)
        for j in range(case[0][0]):
            expected = sum(float((part(s, i) * part(s, j)).sum()) for s in readers)
            assert found.products[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_thinet_removes_what_disturbs_the_outputs_least(case: list[tuple[int, int]]) -> None:
    readers = subjects(case)
    order = greedy_removal(contributions([(s.gram, s.places) for s in readers])).tolist()
    gone: list[int] = []
    while len(gone) < case[0][0]:
        left = [c for c in range(case[0][0]) if c not in gone]
        lost = [sum(float(sum(part(s, g) for g in [*gone, c]).square().sum()) for s in readers) for c in left]
        gone.append(left[int(np.argmin(lost))])
    assert order == gone[::-1]


def test_two_channels_that_cancel_leave_together() -> None:
    subject = problem(5, 1)
    # A large channel and its negative copy: each alone is important, both together are nothing.
    subject.rows[:, 3] = -subject.rows[:, 1]
    subject.gram.weight[3] = subject.gram.weight[1] = subject.gram.weight[1] * 3
    gram = LayerGram(
        subject.gram.in_ids, 1, subject.gram.weight, subject.rows.T @ subject.rows / 300, subject.rows.mean(0), 300,
        subject.gram.output_scale,
    )  # fmt: skip
    found = contributions([(gram, subject.places)])
    order = greedy_removal(found).tolist()
    assert abs(order.index(1) - order.index(3)) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_lasso_order_is_that_of_solving_it_for_falling_penalties(case: list[tuple[int, int]]) -> None:
    readers = subjects(case)
    inputs = np.concatenate(
        [torch.stack([part(s, c).flatten() for c in range(case[0][0])], 1).numpy() for s in readers]
    )
    wanted = np.concatenate([target(s).flatten().numpy() for s in readers])
    order = lasso(contributions([(s.gram, s.places) for s in readers])).tolist()
    assert sorted(order) == list(range(case[0][0]))
    entered: set[int] = set()
    largest = np.abs(inputs.T @ wanted).max() / len(wanted)
    for penalty in np.geomspace(largest, largest * 1e-4, 200):
        model = Lasso(alpha=penalty, fit_intercept=False, tol=1e-8, max_iter=20000).fit(inputs, wanted)
        entered |= set(np.flatnonzero(np.abs(model.coef_) > 1e-9).tolist())
        assert set(order[: len(entered)]) == entered
    assert len(entered) >= 4


def test_channels_without_a_contribution_come_last() -> None:
    subject = problem(6, 2)
    subject.gram.weight[4:6] = 0
    found = contributions([(subject.gram, subject.places)])
    assert lasso(found)[-1] == greedy_removal(found)[-1] == 2


@pytest.mark.parametrize("fixed", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_matching_pursuit_takes_what_explains_most_of_the_residual(case: list[tuple[int, int]], fixed: int) -> None:
    readers = subjects(case, fixed)
    order = matching_pursuit([(s.gram, s.places, s.gram.moment) for s in readers]).tolist()
    channels = case[0][0]
    chosen: list[int] = []
    while len(chosen) < channels:
        explained = np.zeros(channels)
        for s in readers:
            block = s.gram.block
            columns = [c * block + i for c in [*chosen, *range(channels, channels + fixed)] for i in range(block)]
            residual = s.outputs
            if columns:
                residual = residual - s.rows[:, columns] @ torch.linalg.lstsq(s.rows[:, columns], s.outputs).solution
            for c in range(channels):
                mine = s.rows[:, c * block : (c + 1) * block]
                fitted = mine @ torch.linalg.lstsq(mine, residual).solution
                explained[c] += float(fitted.square().sum()) / s.gram.output_variance
        explained[chosen] = -np.inf
        chosen.append(int(explained.argmax()))
    assert order == chosen
