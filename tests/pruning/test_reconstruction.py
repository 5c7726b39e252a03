from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from traced_networks import first_order, halves, subject

from amc_mobile.channels import surgery
from amc_mobile.errors import NotFinite
from amc_mobile.pruning import reconstruction
from amc_mobile.pruning.channel_choice import channel_order
from amc_mobile.pruning.least_squares import corrected, factorised, ridged
from amc_mobile.pruning.reconstruction import Reconstructor


def reconstructor(name: str) -> Reconstructor:
    net = subject(name)
    return Reconstructor(net.model, net.groups, net.gram, channel_order(net.groups, net.model, net.gram))


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_full_width_is_the_original_and_shares_nothing_with_it(name: str) -> None:
    net = subject(name)
    built = reconstructor(name).build(net.groups.sizes)
    original = net.model.state_dict()
    for key, value in built.state_dict().items():
        assert torch.equal(value, original[key])
        assert value.data_ptr() != original[key].data_ptr() or value.numel() == 0


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_reconstructed_network_has_the_shapes_of_surgery(name: str) -> None:
    net, rebuild = subject(name), reconstructor(name)
    widths = halves(net.groups)
    built = rebuild.build(widths)
    expected = surgery.apply(net.model, net.groups, rebuild.kept(widths)).state_dict()
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    with torch.no_grad():
        assert built(net.images[:2]).isfinite().all()


@pytest.mark.parametrize(("name", "group"), [("PaddedShortcut", "a1.0"), ("Flattened", "features.2.0")])
def test_the_reader_gets_the_least_squares_weights_of_true_activations(name: str, group: str) -> None:
    """The same answer as unfolding the whole activations and calling a solver, the group cut alone."""
    net = subject(name)
    rebuild = Reconstructor(net.model, net.groups, net.gram, first_order(net.groups))
    index = net.groups.names.index(group)
    widths = net.groups.sizes
    widths[index] //= 2
    reader = net.groups.groups[index].consumers[0]
    seen = []
    hook = net.model.get_submodule(reader).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net.model(net.images)
    hook.remove()
    weight = net.model.get_parameter(f"{reader}.weight").detach()
    if weight.ndim == 4:
        rows = torch.nn.functional.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    else:
        rows = seen[0].double()
    width = rows.shape[1] // net.groups.sizes[index] * widths[index]  # first channels: first columns
    expected = torch.linalg.lstsq(rows[:, :width], rows @ weight.flatten(1).T.double()).solution.T
    solved = rebuild.build(widths).get_parameter(f"{reader}.weight").detach().flatten(1).double()
    error = [
        float((rows[:, :width] @ w.T - rows @ weight.flatten(1).T.double()).square().sum()) for w in (expected, solved)
    ]
    assert error[1] == pytest.approx(error[0], rel=2e-2)


@pytest.mark.parametrize("name", ["PaddedShortcut", "PaddedDepthwise", "Bottleneck", "SqueezeExcite", "InceptionLike"])
def test_reconstruction_brings_the_outputs_closer(name: str) -> None:
    net, rebuild = subject(name), reconstructor(name)
    widths = np.maximum(2, net.groups.sizes * 3 // 4)
    with torch.no_grad():
        wanted = net.model(net.images)
        nets = rebuild.build(widths), surgery.apply(net.model, net.groups, rebuild.kept(widths))
        errors = [float((model(net.images) - wanted).square().mean()) for model in nets]
    assert errors[0] < 0.7 * errors[1]


def test_the_error_of_a_group_is_that_of_the_layer_in_the_network_and_falls_with_the_width() -> None:
    net, rebuild = subject("PaddedShortcut"), reconstructor("PaddedShortcut")
    widths = net.groups.sizes
    index = net.groups.names.index("a1.0")
    widths[index] = 4
    outputs = []
    for model in (net.model, rebuild.build(widths)):
        hook = model.get_submodule("a2").register_forward_hook(lambda _m, _i, out: outputs.append(out.double()))
        with torch.no_grad():
            model(net.images)
        hook.remove()
    true, cut = outputs
    expected = (true - cut).square().mean((0, 2, 3)).sum() / true.var((0, 2, 3), correction=0).sum()
    errors = rebuild.group_errors(index, np.arange(2, 9))
    assert errors[2] == pytest.approx(float(expected), rel=1e-2)
    assert errors[-1] == 0 and (np.diff(errors) < 0).all()


def test_a_small_cache_gives_the_same_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("PaddedShortcut")
    widths = halves(net.groups)
    small, large = reconstructor("PaddedShortcut"), reconstructor("PaddedShortcut")
    other = large.build(widths).state_dict()
    monkeypatch.setattr(reconstruction, "CACHE_BYTES", 1)
    for _ in range(2):
        one = small.build(widths).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert len(small._solved) == 1
    assert small._used_bytes == next(iter(small._solved.values())).nbytes


def test_changing_a_built_network_leaves_the_next_one_alone() -> None:
    net, rebuild = subject("PaddedShortcut"), reconstructor("PaddedShortcut")
    widths = halves(net.groups)
    first = rebuild.build(widths)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in rebuild.build(widths).state_dict().items())


def test_modules_that_share_a_weight_share_it_after_the_cut() -> None:
    net = subject("CalledTwice")
    built = reconstructor("CalledTwice").build(halves(net.groups))
    assert built.one.weight is built.two.weight


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(ridged(nothing, 1e-4), torch.eye(3, dtype=torch.float64))
    assert torch.equal(corrected(nothing, torch.zeros(3, 2, dtype=torch.float64), 1e-4), nothing[:, :2])


def test_a_moment_that_is_not_finite_is_refused_at_once() -> None:
    moment = torch.eye(3, dtype=torch.float64)
    moment[1, 2] = float("nan")
    with pytest.raises(NotFinite):
        factorised(moment, 1e-4)
