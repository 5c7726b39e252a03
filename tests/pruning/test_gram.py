from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import PRUNABLE
from torch import nn
from traced_networks import subject

from amc_mobile.channels.groups import find_groups
from amc_mobile.errors import NotFinite
from amc_mobile.pruning import program
from amc_mobile.pruning.gram import collect_gram, readable_layers
from amc_mobile.pruning.program import Batches, Execution, Program


class Geometries(nn.Module):
    """Every argument a convolution has, and a linear layer that maps rows of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(6, 5, (3, 2), (2, 1), (1, 0), (1, 2)),
            nn.Conv2d(5, 7, (1, 5), padding="same"),
            nn.Conv2d(7, 6, 3, 2, 2, dilation=2, bias=False),
            nn.ConvTranspose2d(6, 4, (3, 4), (2, 3), (1, 2), (1, 1), bias=False),
            nn.ConvTranspose2d(4, 6, 2, padding=1, dilation=2),
        )
        self.rows, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.layers(self.stem(x)))
        return self.last(torch.relu(self.rows(x.permute(0, 2, 3, 1))).mean((1, 2)))


def test_moments_hold_for_every_geometry_of_a_layer() -> None:
    torch.manual_seed(0)
    model, images = Geometries().eval(), torch.randn(6, 3, 12, 12)
    with torch.no_grad():
        for transposed in model.layers[3:]:
            transposed.weight.mul_(6)  # variances that rounding does not reach
    groups = find_groups(model, images[:2])
    gram = collect_gram(model, groups, images, positions=10**6)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        if name in gram.layers:
            module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: (i[0], o)}))
    with torch.no_grad():
        model(images)
    assert set(gram.layers) == {*(f"layers.{i}" for i in range(5)), "rows", "last"}
    for name, (_, written) in seen.items():
        layer, module = gram.layers[name], model.get_submodule(name)
        outputs = (written.movedim(1, -1) if written.ndim == 4 and name != "rows" else written).flatten(0, -2).double()
        bias = torch.zeros(outputs.shape[1]) if module.bias is None else module.bias.detach()
        # What follows from the moments must be the moments of the true outputs.
        assert layer.rows == len(outputs)
        second = (layer.weight * layer.projection).sum(0)
        assert torch.allclose(second, (outputs - bias).square().mean(0), rtol=1e-4), name
        assert torch.allclose(layer.mean @ layer.weight, (outputs - bias).mean(0), atol=1e-5), name
        assert layer.output_variance == pytest.approx(float(outputs.var(0, correction=0).sum()), rel=1e-3)


@pytest.mark.parametrize("name", PRUNABLE)
def test_every_layer_that_reads_a_group_has_a_matrix(name: str) -> None:
    net = subject(name)
    kinds = ("conv", "linear", "transposed")
    readers = {la.name for la in net.groups.layers if la.kind in kinds and not la.in_ids.is_fixed}
    assert set(net.gram.layers) == readers == set(readable_layers(net.groups))
    for layer in net.gram.layers.values():
        assert torch.allclose(layer.moment, layer.moment.T, atol=1e-5)
        assert len(layer.weight) == len(layer.in_ids) * layer.block


def test_the_batch_size_does_not_change_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    net = subject("PaddedShortcut")
    monkeypatch.setattr(program, "BATCH_SIZE", 20)
    again = collect_gram(net.model, net.groups, net.images, positions=10**6)
    for name, layer in net.gram.layers.items():
        assert torch.allclose(layer.moment, again.layers[name].moment, rtol=1e-5, atol=1e-6)


def test_sampled_positions_estimate_the_moments_and_follow_the_seed() -> None:
    net = subject("PaddedShortcut")
    drawn = [collect_gram(net.model, net.groups, net.images, positions=30, seed=s).layers["a2"] for s in (1, 1, 2)]
    truth = net.gram.layers["a2"].moment
    assert torch.equal(drawn[0].moment, drawn[1].moment)
    assert not torch.equal(drawn[0].moment, drawn[2].moment)
    assert float((drawn[0].moment - truth).norm() / truth.norm()) < 0.1


def test_more_positions_are_drawn_where_a_layer_has_many_columns() -> None:
    net = subject("PaddedShortcut")
    gram = collect_gram(net.model, net.groups, net.images, positions=1)
    assert gram.layers["a2"].rows >= 8 * len(gram.layers["a2"].weight)
    assert gram.layers["fc"].rows == len(net.images)  # a map of one position has no more to draw


def test_equal_batches_leave_out_fewer_images_than_there_are_batches() -> None:
    for count in (1, 7, 60, 61, 100, 151):
        batches = Batches(torch.arange(count)[:, None], 50)
        assert len({len(batch) for batch in batches}) == 1
        assert len(batches[0]) <= 50
        assert count - sum(map(len, batches)) < len(batches)


@pytest.mark.parametrize("name", PRUNABLE)
def test_a_program_runs_to_the_outputs_of_its_network(name: str) -> None:
    net = subject(name)
    program = Program(net.model, net.images[:4])
    output = program.nodes[-1].args[0][0]
    run = Execution(program, lambda: net.images[:4], held=[output])
    halfway = None
    while (node := run.pending()) is not None:
        if node is program.nodes[len(program.nodes) // 2]:
            halfway = run.branch()
        run.step()
    with torch.no_grad():
        expected = net.model(net.images[:4])
    assert torch.allclose(run.value(output), expected, atol=1e-5)
    assert list(run._values) == [output]  # the rest is dropped
    assert halfway is not None
    halfway.run_to(output)
    assert torch.equal(halfway.value(output), run.value(output))


def test_the_scale_is_that_of_the_batch_norm_behind_the_layer() -> None:
    net = subject("Flattened")
    norm = net.model.classifier[1]
    expected = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).double().detach()
    assert torch.allclose(net.gram.layers["classifier.0"].output_scale, expected)
    assert np.all(net.gram.layers["classifier.3"].output_scale.numpy() == 1)


@pytest.mark.parametrize(("broken", "named"), [("stem.1.running_var", "a1.0"), ("a2.weight", "a2")])
def test_values_that_are_not_finite_are_an_error_that_names_the_first_layer(broken: str, named: str) -> None:
    net = subject("PaddedShortcut")
    model = copy.deepcopy(net.model)
    with torch.no_grad():
        model.state_dict()[broken].view(-1)[0] = float("nan")
    with pytest.raises(NotFinite) as raised:
        collect_gram(model, net.groups, net.images, positions=3)
    assert raised.value.layer == named
    assert named in raised.value.message
    assert "checkpoint" in raised.value.next_step
