from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_mobile.kernels.kernel import Expression, total
from amc_mobile.kernels.labels import MIN_CHANNELS, AmbiguousError, UndecodableError, WidthCode, choose_widths

A, B = Expression(0, ((0, 1),)), Expression(0, ((1, 1),))
CODE = WidthCode(np.array([[16, 32], [11, 25]]), [total([A, B])])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((7, 7), Expression(7)),
        ((16, 11), A),
        ((128, 88), A.times(8)),
        ((48, 36), total([A, B])),
        ((96, 72), total([A, B]).times(2)),
    ],
)
def test_integers_are_explained_by_groups_and_known_sums(values: tuple[int, int], expected: Expression) -> None:
    assert CODE.explain(values) == expected


def test_sums_of_an_operators_inputs_are_tried_with_repeats() -> None:
    assert CODE.explain((64, 47), [A, A, B]) == Expression(0, ((0, 2), (1, 1)))


def test_an_offset_is_found_next_to_an_input() -> None:
    assert CODE.explain((19, 14), [A]) == A.plus(3)


def test_an_integer_that_nothing_explains_is_an_error() -> None:
    with pytest.raises(UndecodableError, match=r"\[17, 3\]"):
        CODE.explain((17, 3))


def test_two_explanations_are_an_error_not_a_guess() -> None:
    code = WidthCode(np.array([[16, 32, 48], [8, 17, 25]]), [])
    with pytest.raises(AmbiguousError):
        code.explain((48, 25), [A, B])


def test_widths_that_are_multiples_of_each_other_are_ambiguous() -> None:
    assert not WidthCode(np.array([[16, 32], [8, 16]]), []).is_unambiguous()
    assert CODE.is_unambiguous()


def test_a_sum_with_the_values_of_a_group_is_ambiguous() -> None:
    widths = np.array([[16, 32, 48], [11, 25, 36]])
    assert WidthCode(widths, []).is_unambiguous()
    assert not WidthCode(widths, [total([A, B])]).is_unambiguous()


@pytest.mark.parametrize(
    ("sizes", "traces"),
    [
        ([32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024], 1),  # MobileNet-V1
        ([16] * 10 + [32] * 9 + [64] * 9, 2),  # ResNet-56
        ([3, 3, 3], 3),
        ([4] * 6, 3),
    ],
)
def test_few_traces_suffice(sizes: list[int], traces: int) -> None:
    code = choose_widths(np.array(sizes), [])
    assert code.traces <= traces
    assert code.is_unambiguous()


@settings(deadline=None)  # the first example imports and warms up
@given(st.lists(st.integers(3, 200), min_size=1, max_size=12), st.integers(1, 50), st.integers(0, 2**31))
def test_every_multiple_of_every_width_decodes_to_its_group(sizes: list[int], factor: int, seed: int) -> None:
    code = choose_widths(np.array(sizes), [], seed=seed)
    assert (code.widths[1:] >= MIN_CHANNELS).all() and (code.widths[1:] <= code.widths[0]).all()
    for group in range(len(sizes)):
        assert code.explain(code.widths[:, group] * factor) == Expression(0, ((group, factor),))


def test_too_many_small_groups_are_refused() -> None:
    with pytest.raises(UndecodableError, match="too many"):
        choose_widths(np.array([3] * 30), [])


def test_expressions_evaluate_one_plan_and_many_alike() -> None:
    expression = Expression(5, ((0, 2), (2, 1)))
    plans = np.array([[1, 2, 3], [10, 20, 30]])
    assert expression.evaluate(plans).tolist() == [expression.at(plan) for plan in plans.tolist()] == [10, 55]
