from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from template_subjects import differences
from torch import nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.kernel import Expression, Graph, Node, total
from amc_mobile.kernels.labels import (
    MIN_CHANNELS,
    AmbiguousError,
    Cut,
    Labels,
    UndecodableError,
    Vocabulary,
    WidthCode,
    choose_widths,
    decode,
)
from amc_mobile.kernels.template import independent

WIDTHS = np.array([[8, 6], [5, 4]])
KEPT = [np.array([0, 2, 3, 5, 7]), np.array([1, 2, 4, 5])]


@pytest.fixture(scope="module")
def groups() -> ChannelGroups:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    return find_groups(model, torch.zeros(1, 3, 2, 2))


def convolution(weight: np.ndarray, **attributes: Any) -> Graph:
    """One operator that reads 8 (or 5) channels and makes 6 (or 4)."""
    node = Node("CONV", ("x", "w"), ("y",), {1: weight}, attributes)
    shapes = {"x": (1, weight.shape[1]), "w": weight.shape, "y": (1, weight.shape[0])}
    return Graph((node,), shapes, dict.fromkeys(shapes, "float32"), ("x",), ("y",))


def labels_of(groups: ChannelGroups, original: Graph, traced: Graph) -> Labels:
    vocabulary = Vocabulary(groups)
    return decode([original, traced], WidthCode(WIDTHS, vocabulary.expressions), vocabulary, [KEPT])


WEIGHT = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
CUT = WEIGHT[np.ix_(KEPT[1], KEPT[0])]


def test_a_weight_is_cut_along_both_groups_at_any_plan(groups: ChannelGroups) -> None:
    graph = convolution(WEIGHT)
    labels = labels_of(groups, graph, convolution(CUT))
    plan = [np.array([1, 6]), np.array([0, 3, 5])]
    cut = Cut(graph, labels, Vocabulary(groups), plan)
    np.testing.assert_array_equal(cut.constant(0, 1), WEIGHT[np.ix_(plan[1], plan[0])])
    assert (cut.shape("x"), cut.shape("y")) == ((1, 2), (1, 3))


@pytest.mark.parametrize("change", [WEIGHT[:4, :5], CUT + np.float32(1e-7), CUT[::-1], CUT.astype(np.float64)])
def test_a_weight_that_differs_by_a_bit_is_an_error_naming_the_operator(
    groups: ChannelGroups, change: np.ndarray
) -> None:
    with pytest.raises(UnsupportedLayer, match=r"operator 0 \(CONV\) constant 1"):
        labels_of(groups, convolution(WEIGHT), convolution(np.ascontiguousarray(change)))


def test_attributes_follow_the_widths(groups: ChannelGroups) -> None:
    traced = convolution(CUT, group=5, shape=(1, 16), mode="same")
    labels = labels_of(groups, convolution(WEIGHT, group=8, shape=(1, 24), mode="same"), traced)
    assert labels.attributes == {
        0: {"group": Expression(0, ((0, 1),)), "shape": (Expression(1), Expression(0, ((1, 4),)))},
    }


def test_integer_constants_follow_the_widths(groups: ChannelGroups) -> None:
    def reshape(channels: int) -> Graph:
        node = Node("RESHAPE", ("x", "s"), ("y",), {1: np.array([-1, 2 * channels], np.int32)}, {})
        shapes = {"x": (2, channels), "s": (2,), "y": (1, 2 * channels)}
        return Graph((node,), shapes, dict.fromkeys(shapes, "float32"), ("x",), ("y",))

    graph = reshape(8)
    labels = labels_of(groups, graph, reshape(5))
    cut = Cut(graph, labels, Vocabulary(groups), [np.arange(3), np.arange(2)])
    assert cut.constant(0, 1).tolist() == [-1, 6]


@pytest.mark.parametrize(
    ("traced", "message"),
    [
        (convolution(CUT, mode="valid"), "attribute mode changes"),
        (replace(convolution(CUT), nodes=()), "other operators"),
        (replace(convolution(CUT), nodes=(Node("DEPTHWISE", ("x", "w"), ("y",), {1: CUT}, {}),)), "another operator"),
        (replace(convolution(CUT), shapes={"x": (1, 5), "y": (1, 7), "w": (4, 5)}), "output 0: no channel group"),
        (replace(convolution(CUT), shapes={"x": (5,), "y": (1, 4), "w": (4, 5)}), "dimensions"),
    ],
)
def test_what_the_widths_do_not_explain_is_an_error(groups: ChannelGroups, traced: Graph, message: str) -> None:
    original = convolution(WEIGHT, mode="same") if "mode" in message else convolution(WEIGHT)
    with pytest.raises(UnsupportedLayer, match=message):
        labels_of(groups, original, traced)


def test_differences_name_the_operator_and_ignore_weights_and_names() -> None:
    one, other = convolution(WEIGHT, stride=1), convolution(WEIGHT * 2, stride=1)
    assert differences(one, other) == []
    assert differences(one, convolution(CUT, stride=1))[0].startswith("operator 0 (CONV) inputs")
    assert differences(one, convolution(WEIGHT, stride=2)) == [
        "operator 0 (CONV) attributes: {'stride': 1} against {'stride': 2}"
    ]
    assert differences(one, replace(one, nodes=())) == ["1 operators against 0"]


def test_axes_leave_out_what_the_others_decide() -> None:
    a, b = Expression(0, ((0, 1),)), Expression(0, ((1, 1),))
    both = Expression(0, ((0, 1), (1, 1)))
    assert independent([Expression(3), a, b, both, a.times(4), b.plus(8)], 2) == (a, b)
    assert independent([both, a.times(2), b], 2) == (both, a.times(2))


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
