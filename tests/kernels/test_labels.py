from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from template_subjects import differences
from torch import nn

from amc_mobile.channels.groups import find_groups
from amc_mobile.channels.structure import ChannelGroups
from amc_mobile.errors import UnsupportedLayer
from amc_mobile.kernels.kernel import Expression, Graph, Node
from amc_mobile.kernels.labels import Cut, Labels, Vocabulary, WidthCode, decode
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
