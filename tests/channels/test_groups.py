from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ControlFlow, UnknownOperator, build, example, randomised
from torch import Tensor, nn

from amc_mobile.channels import surgery
from amc_mobile.channels.groups import find_groups, later_half, prove, random_kept
from amc_mobile.channels.structure import ChannelGroups, CostModel, DimensionIds, Layer
from amc_mobile.errors import InvalidInput, UnsupportedLayer
from amc_mobile.models.zoo.registry import MODELS


def layers(groups: ChannelGroups) -> dict[str, Layer]:
    return {layer.name: layer for layer in groups.layers}


def reasons(groups: ChannelGroups) -> dict[str, str]:
    return {group.name: group.reason for group in groups.kept_groups}


def test_a_chain_has_one_group_per_convolution(traced) -> None:
    groups = traced("Chain").groups
    assert groups.channels == {"stem": 12, "wide": 16, "last": 12}
    assert [(g.producers, g.consumers) for g in groups.groups] == [
        (("stem",), ("wide",)),
        (("wide",), ("last",)),
        (("last",), ("fc",)),
    ]
    assert reasons(groups) == {"fc": "network output"}


def test_a_residual_sum_couples_what_it_adds(traced) -> None:
    joined = next(group for group in traced("Bottleneck").groups.groups if group.name == "block.2")
    assert joined.producers == ("block.2", "shortcut", "again.2")
    assert joined.consumers == ("again.0.0", "fc")


def test_depthwise_convolutions_follow_their_input(traced) -> None:
    groups = traced("PaddedDepthwise").groups
    assert groups.channels == {"stem.1": 8, "expand.0": 24, "project": 16, "inner.0.0": 32}
    depthwise = layers(groups)["depthwise"]
    assert depthwise.kind == "depthwise"
    assert (depthwise.stride, depthwise.out_size) == ((2, 2), (4, 4))


def test_zero_channels_of_a_padded_shortcut_stay(traced) -> None:
    groups = traced("PaddedShortcut").groups
    last = layers(groups)["b2"].out_ids.group
    assert (last[np.r_[0:4, 12:16]] == -1).all()
    assert last[4:12].tolist() == [groups.names.index("stem.0")] * 8


def test_flattening_repeats_each_channel_for_every_position(traced) -> None:
    linear = layers(traced("Flattened").groups)["classifier.0"]
    assert linear.in_ids.position.tolist() == np.repeat(np.arange(12), 4).tolist()


def test_a_concatenation_reads_several_groups(traced) -> None:
    groups = traced("InceptionLike").groups
    read = dict.fromkeys(layers(groups)["hidden"].in_ids.group.tolist())
    assert [groups.names[index] for index in read] == ["point.0", "wide.1.0", "pool.1.0"]


@pytest.mark.parametrize(
    ("name", "kept", "reason", "others"),
    [
        ("Grouped", "before.0", "read by a grouped convolution", {"stem.0", "after.0"}),
        ("Grouped", "grouped.0", "grouped convolution", {"stem.0", "after.0"}),
        ("BareParameter", "stem.0", "combined with the bare parameter scale", {"body.0"}),
        ("HardCodedSplit", "free.0", "sizes that do not follow", {"stem.0", "left.0"}),
    ],
)
def test_channels_that_must_stay_are_kept_with_the_reason(name: str, kept: str, reason: str, others: set[str], traced):
    groups = traced(name).groups
    assert set(groups.names) == others
    assert reason in reasons(groups)[kept]


def test_a_squeeze_and_excite_gate_joins_the_channels_it_scales(traced) -> None:
    groups = traced("SqueezeExcite").groups
    assert groups.groups[0].producers == ("stem.0", "excite")
    assert groups.channels == {"stem.0": 12, "squeeze": 4, "project": 8, "hidden": 16}


def test_a_module_called_twice_and_a_shared_weight_are_one_group_each(traced) -> None:
    groups = traced("CalledTwice").groups
    assert [layer.name for layer in groups.layers].count("body.0") == 2
    assert groups.channels == {"stem.0": 8, "one": 12}


def test_layers_come_in_the_order_of_execution_with_what_a_convolution_needs(traced) -> None:
    found = layers(traced("Chain").groups)
    assert list(found) == ["stem", "wide", "last", "fc"]
    assert (found["stem"].stride, found["stem"].out_size) == ((2, 2), (8, 8))
    assert (found["last"].kernel_size, found["last"].out_size) == ((3, 1), (8, 8))  # padding="same"
    assert (found["fc"].kind, found["fc"].kernel_size) == ("linear", (1, 1))


@pytest.mark.parametrize("name", ["ShuffleLike", "Flattened"])
def test_the_batch_of_the_example_does_not_matter_and_the_network_stays_as_it_was(name: str, traced) -> None:
    model = build(name).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert find_groups(model, example(batch=1)).channels == traced(name).groups.channels
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_detector_is_cut_but_for_the_outputs_of_its_heads_and_keeps_its_task() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    build_detector = MODELS["ssdlite_mobilenet_v2"].factory
    model = randomised(build_detector(num_classes=3, width_multiplier=0.125, input_size=32))
    groups = find_groups(model, images[:1])
    heads = [f"{kind}_heads.{scale}.1" for kind in ("classification", "regression") for scale in range(3)]
    assert {group.name: (group.channels, group.reason) for group in groups.kept_groups} == dict.fromkeys(
        heads, (4 * 4, "network output")
    )
    readers = {group.name: set(group.consumers) for group in groups.groups}
    assert {"classification_heads.0.1", "regression_heads.0.1"} < readers["backbone.14.conv.0.0"]
    assert readers["backbone.18.0"] == {"extras.0.0.0", "classification_heads.1.1", "regression_heads.1.1"}
    assert readers["extras.0.2.0"] == {"classification_heads.2.1", "regression_heads.2.1"}
    for seed in range(3):
        assert prove(model, groups, images, seed=seed) < 1e-5
    assert prove(model, groups, images, kept=later_half(groups)) < 1e-5
    pruned = surgery.apply(model, groups, random_kept(groups, np.random.default_rng(0)))
    with torch.no_grad():
        assert pruned(images).shape == model(images).shape
    assert pruned.task.num_classes(model(images[:1])) == 3


@pytest.mark.parametrize(
    "kept", [{"nothing": [0, 1]}, {"stem": [1, 0]}, {"stem": [0, 0]}, {"stem": [11, 12]}, {"stem": []}]
)
def test_kept_channels_that_do_not_fit_are_refused(kept: dict[str, list[int]], traced) -> None:
    with pytest.raises(InvalidInput):
        traced("Chain").groups.kept_lists({name: np.array(channels) for name, channels in kept.items()})


def test_control_flow_is_an_error_that_names_module_and_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedLayer, match=r"blocks\.1: torch.export cannot trace.*if x.mean\(\) > 0") as caught:
        find_groups(ControlFlow().eval(), example())
    assert caught.value.module == "blocks.1"
    assert "def forward" not in capfd.readouterr().err


def test_weights_that_give_nan_are_named_as_the_cause() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4)
    model = nn.Sequential(*layers).eval()
    model(example())
    groups = find_groups(model, example())
    model[1].running_var[:] = -1.0
    with pytest.raises(InvalidInput, match=r"^1: its output is not finite") as caught:
        prove(model, groups, example())
    assert "checkpoint" in caught.value.next_step


def test_what_an_unknown_operator_reads_is_kept_and_the_reason_names_it() -> None:
    model = randomised(UnknownOperator())
    groups = find_groups(model, example())
    assert groups.channels == {"after": 12}
    assert reasons(groups)["stem.0"] == "read by operator cumsum (middle.1), which has no rule for channels"
    assert prove(model, groups, example()) < 1e-5


def test_an_input_that_does_not_fit_is_an_error_that_names_the_module() -> None:
    with pytest.raises(UnsupportedLayer, match=r"does not run on an input of shape \(2, 4, 16, 16\)") as caught:
        find_groups(build("Chain"), example(channels=4))
    assert caught.value.module == "stem"


class Head(nn.Module):
    """Convolution, whatever `forward` is given, convolution, linear layer."""

    def __init__(self, change, **convolution) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, **convolution)
        self.change = change
        self.weight = nn.Parameter(torch.ones(8, 8, 1, 1))
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.after = nn.Conv2d(8, 10, 1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(self.change(self, self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda net, x: F.conv2d(x, net.weight), "whose weight is the parameter weight, not that of a layer"),
        (lambda net, x: F.conv2d(x, net.weight * 2), "whose weight is computed in the forward pass"),
        (lambda net, x: F.conv2d(x, net.weight.relu()), "whose weight is computed in the forward pass"),
        (lambda net, x: torch.where(x > 0, x, -x), "operator gt, which has no rule"),
        (lambda net, x: x + x.argmax(1, keepdim=True), "operator argmax, which has no rule"),
        (lambda net, x: torch.einsum("nchw,dc->ndhw", x, net.weight[:, :, 0, 0]), "operator einsum, which has no rule"),
        (lambda net, x: net.recurrent(x.flatten(2).transpose(1, 2))[0].transpose(1, 2)[..., None], "operator gru"),
        (lambda net, x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1))[:-1], "operator pad, which pads the batch"),
    ],
)
def test_what_has_no_rule_is_kept_whole_and_named_and_the_rest_is_cut(change, why: str) -> None:
    model = randomised(Head(change))
    groups = find_groups(model, example())
    assert why in reasons(groups)["stem"]
    assert groups.channels == {"after": 10}
    assert prove(model, groups, example()) < 1e-5
    whole = surgery.apply(model, groups, {"after": np.arange(4)})
    assert whole.weight.shape == model.weight.shape


@pytest.mark.parametrize(
    "change",
    [
        lambda net, x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda net, x: F.adaptive_max_pool2d(x, 3),
        lambda net, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        lambda net, x: torch.stack([x, x.relu()]).sum(0),
        lambda net, x: x * net.weight.mean(),
    ],
)
def test_channels_that_stay_apart_can_be_cut(change) -> None:
    model = randomised(Head(change))
    groups = find_groups(model, example())
    assert groups.channels == {"stem": 8, "after": 10}
    assert prove(model, groups, example()) < 1e-5


@pytest.mark.parametrize(
    "convolution", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same", "kernel_size": 4}]
)
def test_channels_behind_any_padding_can_be_cut(convolution: dict[str, object]) -> None:
    model = Head(lambda net, x: x)
    model.stem = nn.Conv2d(3, 8, **{"kernel_size": 3, **convolution})
    groups = find_groups(randomised(model), example())
    assert groups.channels == {"stem": 8, "after": 10}
    assert prove(model, groups, example()) < 1e-5


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def test_standardised_weights_stay_and_the_other_layers_are_cut() -> None:
    model = Head(lambda net, x: net.standardised(x).relu())
    model.standardised = Standardised(8, 6, 3, padding=1)
    model.after = nn.Conv2d(6, 10, 1)
    groups = find_groups(randomised(model), example())
    assert groups.channels == {"after": 10}
    assert reasons(groups)["standardised"].startswith(
        "made by operator conv2d (standardised), whose weight is computed"
    )
    assert CostModel(model, groups).macs(groups.sizes) == 14 * 14 * (8 * 27 + 6 * 8 * 9 + 6 * 10) + 10 * 5


def test_a_parameter_that_is_computed_on_elsewhere_stays_in_its_layer() -> None:
    model = Head(lambda net, x: x * net.after.weight.sum((1, 2, 3)).tanh().mean())
    groups = find_groups(randomised(model), example())
    assert not groups.groups
    assert reasons(groups)["stem"].startswith("parameter after.weight is read by operator sum")


class Amplified(nn.Module):
    """Rounds at another place when fewer channels are summed, which the difference makes large."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.mix(self.stem(x)) + 1e7 - 1e7).mean((2, 3)))


def test_rounding_errors_that_a_network_amplifies_are_told_from_wrong_groups_in_float64() -> None:
    model = randomised(Amplified())
    groups = find_groups(model, example())
    assert prove(model, groups, example()) < 1e-4
    assert next(model.parameters()).dtype == torch.float32
    stem = groups.parameters["mix.weight"][1]
    assert stem is not None
    moved = DimensionIds(stem.group, np.roll(stem.position, 1))
    dims = (groups.parameters["mix.weight"][0], moved, None, None)
    with pytest.raises(UnsupportedLayer, match="differs from the masked one's"):
        prove(model, replace(groups, parameters={**groups.parameters, "mix.weight": dims}), example())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda net, x: x.softmax(1), "mixed by softmax"),
        (lambda net, x: x * x.mean(1, keepdim=True), "reduced over channels by operator mean"),
        (lambda net, x: F.group_norm(x, 2), "mixed by group_norm"),
        (lambda net, x: x * x[:, 3:4].sigmoid(), "sizes that do not follow"),
        (lambda net, x: x + x[:, 3].unsqueeze(1), "picked by their index"),
        (lambda net, x: F.pixel_shuffle(x, 2).repeat_interleave(4, 1), "repeat_interleave"),
    ],
)
def test_channels_that_are_mixed_are_kept(change, why: str) -> None:
    found = find_groups(Head(change).eval(), example())
    assert why in reasons(found)["stem"]
    assert "stem" not in found.names
